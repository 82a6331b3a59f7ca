"""Folders of images as people have them: their classes, and which files in them are images."""

import os
from pathlib import Path

import pytest
from training_runs import picture

from benchmarks.accuracy import labelled_images
from export.images import labelled_paths, unlabelled_paths
from training.folders import NoFolderError, NoImagesError, SplitsError, class_folder, images_below
from training.labelled import Data
from training.labels import ClassesError, LabelsError, match, read_lines, stored_labels

TEN = [
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "x",
]


Capture = pytest.CaptureFixture[str]


def test_hidden_files_and_those_of_a_system_are_ignored(root: Path, capsys: Capture) -> None:
    for name in (
        ".ipynb_checkpoints/a.png",
        ".git/a.png",
        "__MACOSX/a.png",
        "@eaDir/a.png",
        "cat/@eaDir/a.png",
        "cat/._0.png",
    ):
        picture(root / name.replace("._0.png", "tmp.png")).rename(root / name)
    for name in ("cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store", "dog/Thumbs.db"):
        (root / name).write_bytes(b"none")
    os.mkfifo(root / "cat" / "pipe.png")
    found = class_folder(root)
    assert found.names == ["cat", "dog"]
    assert [(path.parent.name, path.name, index) for path, index in found.files] == [
        (name, f"{number}.png", index)
        for index, name in enumerate(("cat", "dog"))
        for number in range(5)
    ]
    assert capsys.readouterr().err == ""


def test_other_files_are_counted_and_nested_and_linked_images_are_found(
    root: Path, capsys: Capture
) -> None:
    picture(root / "cat" / "2021" / "a.JPG")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "linked").symlink_to(picture(root.parent / "elsewhere" / "b.jfif").parent)
    (root / "dog" / "photo.heic").write_bytes(b"none")
    (root / "dog" / "notes.txt").write_bytes(b"none")
    picture(root / "loose.png")
    names = [str(path.relative_to(root)) for path, _ in class_folder(root).files]
    assert "cat/2021/a.JPG" in names
    assert "dog/linked/b.jfif" in names
    assert not any(name.startswith("dog/loop/dog/loop") for name in names)
    err = capsys.readouterr().err
    assert "passed over" in err
    assert ".heic" in err
    assert "left out, beside the class folders: 1 image\n" in err


def test_folders_without_images_are_refused(root: Path) -> None:
    with pytest.raises(NoFolderError, match="does not exist"):
        class_folder(root / "nowhere")
    with pytest.raises(NoFolderError, match="is a file"):
        class_folder(root / "cat" / "0.png")
    with pytest.raises(NoImagesError, match="its 5 images are in no class"):
        class_folder(root / "cat")
    (root / "empty").mkdir()
    with pytest.raises(NoImagesError, match=r"no image in .*empty: remove the folder"):
        class_folder(root)
    assert class_folder(root, empty=True).names == ["cat", "dog", "empty"]
    with pytest.raises(NoImagesError, match=r"no image in .*empty"):
        images_below(root / "empty")


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("Training", "Validation", "test"),
        ("train",),
        ("train", "test", "annotations"),
    ],
)
def test_a_root_of_training_and_validation_images_is_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        picture(tmp_path / name / "cat" / "a.png")
    for use in (class_folder, unlabelled_paths, lambda folder: labelled_paths(folder, list(names))):
        with pytest.raises(SplitsError, match=f"such as {tmp_path}/[Tt]rain"):
            use(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        picture(tmp_path / name / "a.png")
    assert class_folder(tmp_path).names == ["bus", "train"]


@pytest.mark.parametrize(
    ("names", "labels", "classes", "noted"),
    [
        (["church", "tench"], TEN, [4, 0], False),
        (["n01440764", "n03028079"], TEN, [0, 4], False),
        (["tench", "parachute"], ["n01440764", "n03888257"], [0, 1], False),
        (["English_springer", "golf-ball", "GAS PUMP"], TEN, [1, 8, 7], False),
        (["a", "b"], ["cat", "dog"], [0, 1], True),
        (["a", "dog"], ["cat", "dog"], [0, 1], True),
        (["a", "b"], 2, [0, 1], True),
    ],
)
def test_folders_are_matched_with_labels_by_name_else_by_order(
    names: list[str], labels: list[str] | int, classes: list[int], noted: bool
) -> None:
    found = match(names, labels, "DIR", "the model")
    assert found.classes == classes
    assert bool(found.note) == noted


def test_wordnet_ids_stand_for_the_labels_of_imagenet() -> None:
    labels = stored_labels({}, 1000)
    assert labels
    ids = ["n01443537", "n02113186", "n02963159", "n03888257"]
    found = match(ids, labels, "DIR", "the model")
    expected = ["goldfish", "Cardigan", "cardigan", "parachute"]
    assert [labels[index] for index in found.classes] == expected
    assert not found.note


@pytest.mark.parametrize(
    ("names", "labels", "text"),
    [
        (
            ["a", "b"],
            TEN,
            r"DIR has 2 folders of images and the model 10 classes \(tench, .* and 7 more\); "
            "a, b are none of them",
        ),
        (["tench", "b"], TEN, "b is none of them"),
        (["dog", "x"], ["cat", "dog"], "x is none of them"),
        (["a", "b"], 10, "they must be as many"),
        (["cat", "CAT"], ["cat", "dog", "cow"], "order differs"),
        (["crane"], ["crane", "Crane", "dog"], "crane is none of them"),
    ],
)
def test_folders_of_other_classes_are_refused(
    names: list[str], labels: list[str] | int, text: str
) -> None:
    with pytest.raises(ClassesError, match=text):
        match(names, labels, "DIR", "the model")


def test_accuracy_and_calibration_take_a_subset_by_name(root: Path, capsys: Capture) -> None:
    labels = ["cow", "dog", "cat"]
    assert {(path.parent.name, index) for path, index in labelled_images(root, labels)} == {
        ("cat", 2),
        ("dog", 1),
    }
    assert {(path.parent.name, index) for path, index in labelled_paths(root, labels)} == {
        ("cat", 2),
        ("dog", 1),
    }
    with pytest.raises(ClassesError, match="the bundle 10 classes"):
        labelled_images(root, TEN)
    assert {index for _, index in labelled_paths(root, TEN)} == {None}
    assert "judged without labels" in capsys.readouterr().err


def test_training_takes_the_teachers_order(root: Path) -> None:
    found = class_folder(root)
    data = Data(root, found.files, found.names, False).for_model(["Dog", "Cat"], 2, "the teacher")
    assert data.labels == ["Dog", "Cat"]
    assert {(path.parent.name, index) for path, index in data.files} == {("cat", 1), ("dog", 0)}
    named = Data(root, found.files, ["Katze", "Hund"], True).for_model(
        ["Hund", "Katze"], 2, "the teacher"
    )
    assert named.labels == ["Hund", "Katze"]
    assert {(path.parent.name, index) for path, index in named.files} == {("cat", 1), ("dog", 0)}


def test_labels_as_editors_save_them(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufefftench\r\n\r\nFrench horn\r\n".encode())
    assert read_lines(file) == ["tench", "French horn"]
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        file.write_bytes("café\nhôtel\n".encode(encoding))
        with pytest.raises(LabelsError, match=r"labels\.txt is not UTF-8 text.*: save it as UTF-8"):
            read_lines(file)


def test_labels_that_a_checkpoint_holds() -> None:
    assert stored_labels({"labels": '["a", "b\\n c"]'}, 2) == ["a", "b c"]
    assert stored_labels({"labels": "no JSON"}, 2) is None
    assert stored_labels({"labels": '["a"]'}, 2) is None
    assert stored_labels({}, 1000)[0] == "tench"  # type: ignore[index]
