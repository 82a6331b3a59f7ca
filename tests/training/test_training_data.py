"""Folders of images as people have them: whose classes they are, what is no image in them, and what is damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accuracy import labelled_images
from export.images import labelled_paths, unlabelled_paths
from training import backbone, evaluate
from training.checkpoint import save_model, save_state
from training.data import (
    Batched,
    ReadableImages,
    SeededImages,
    UnreadableError,
    evaluation_images,
    read_image,
    training_images,
)
from training.folders import (
    Damage,
    DamagedImageError,
    DataError,
    NoFolderError,
    NoImagesError,
    SplitsError,
    class_folder,
    images_below,
)
from training.labelled import Data
from training.labels import ClassesError, LabelsError, match, read_lines, stored_labels
from training.models import build_random_model

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


def picture(path: Path, level: int = 90, side: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five images each."""
    for name in ("cat", "dog"):
        for index in range(5):
            picture(tmp_path / "images" / name / f"{index}.png", index)
    return tmp_path / "images"


def test_what_is_hidden_or_a_systems_own_is_no_class_and_no_image(
    root: Path, capsys: Capture
) -> None:
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


def test_what_is_passed_over_is_said_and_nested_and_linked_images_are_taken(
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


def test_folders_that_are_none_of_images(root: Path) -> None:
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


@pytest.mark.parametrize(
    ("names", "labels", "text"),
    [
        (
            ["a", "b"],
            TEN,
            r"DIR has 2 folders of images and the model 10 classes \(tench, .* and 7 more\); a, b are none of them",
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


def spoil(root: Path) -> list[Path]:
    """A file cut short, one that is no image, one that a link promises: of dog's five."""
    cut = root / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:500])
    (root / "dog" / "2.png").write_bytes(b"no image")
    (root / "dog" / "4.png").unlink()
    (root / "dog" / "4.png").symlink_to("nowhere")
    return [root / "dog" / name for name in ("1.png", "2.png", "4.png")]


def test_the_next_image_takes_a_damaged_ones_place_and_no_others_crop_changes(
    root: Path, capsys: Capture
) -> None:
    before = [
        SeededImages(training_images(class_folder(root).files, 32), 7)[index] for index in range(10)
    ]
    damaged = spoil(root)
    images = SeededImages(training_images(class_folder(root).files, 32), 7)
    places = [
        0,
        1,
        2,
        3,
        4,
        5,
        8,
        8,
        8,
        0,
    ]  # 6 and 7 are damaged, and 9, after which comes the first
    for index, place in enumerate(places):
        assert torch.equal(images[index][0], before[place][0])
        assert images[index][1] == before[place][1]
    damage = Damage(skip=True)
    for workers in (0, 2):
        batches = list(Batched(images, damage, batch_size=5, num_workers=workers))
        assert [len(labels) for _, labels in batches] == [5, 5]
        assert damage.count_lately() == 3
    assert sorted(damage.files) == sorted(map(str, damaged))
    damage.report()
    err = capsys.readouterr().err
    assert sum(line.startswith("left out: ") for line in err.splitlines()) == 3
    assert "3 damaged images were left out" in err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_refused_by_name(root: Path, workers: int) -> None:
    spoil(root)
    images = SeededImages(training_images(class_folder(root).files, 32), 0)
    with pytest.raises(
        DamagedImageError, match=r"dog/1\.png is damaged or cut short .*give --skip_damaged"
    ) as caught:
        list(Batched(images, Damage(skip=False), batch_size=10, num_workers=workers))
    assert "Traceback" not in str(caught.value)


def test_in_measuring_damaged_images_are_left_out(root: Path) -> None:
    spoil(root)
    images = evaluation_images(class_folder(root).files, 32, 32)
    batches = list(Batched(ReadableImages(images), Damage(skip=True), batch_size=4))
    assert [labels.tolist() for _, labels in batches] == [[0] * 4, [0, 1], [1]]


def test_a_folder_without_one_good_image_is_given_up(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "a" / f"{index}.png").write_bytes(b"none")
    images = SeededImages(training_images(class_folder(tmp_path).files, 32), 0)
    with pytest.raises(DataError, match="images in a row cannot be read"):
        list(Batched(images, Damage(skip=True), batch_size=3))


def test_training_sees_images_as_the_edge_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.images.preprocess import preprocess

    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (16, 24), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.integers(0, 256, (16, 24, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(np.asarray(read_image(path)), preprocess(path, as_is=True)), path
    Image.fromarray(rng.random((16, 16), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableError, match="levels of mode F"):
        read_image(tmp_path / "float.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match=r"deep\.png has too many pixels"):
        read_image(tmp_path / "deep.png")


def test_a_run_names_the_damaged_image_or_counts_it(
    root: Path, tmp_path: Path, capsys: Capture
) -> None:
    spoil(root)
    command = ["--data", str(root), "--smoke", "--run_dir", str(tmp_path / "run")]
    assert backbone.main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("training.backbone: ")
    assert "dog" in err
    assert "--skip_damaged" in err
    assert backbone.main([*command, "--skip_damaged"]) == 0
    (record,) = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert record["left_out"] in (2, 3)
    assert "damaged images were left out" in capsys.readouterr().err


def test_data_that_cannot_be_trained_on_is_refused_before_a_model_is_made(
    root: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "one" / "images").mkdir(parents=True)
    picture(tmp_path / "one" / "images" / "cat" / "a.png")
    for more, text in (
        (["--data", str(tmp_path / "one")], "two classes or more"),
        (["--data", str(root), "--held_out", "10"], "give --held_out a number under 10"),
        (
            ["--data", str(root), "--held_out", "2", "--batch_size", "9"],
            "8 images do not fill one batch of 9: give a smaller --batch_size",
        ),
        (["--data", str(tmp_path / "nowhere")], "does not exist"),
        (["--data", str(root), "--device", "meta"], "choose cpu or cuda"),
    ):
        assert backbone.main([*more, "--run_dir", str(tmp_path / "run")]) == 1
        assert text in capsys.readouterr().err


def test_nothing_need_be_held_out(root: Path, tmp_path: Path) -> None:
    run = [
        "--run_dir",
        str(tmp_path / "run"),
        "--batch_size",
        "4",
        "--train_size",
        "32:1",
        "--held_out",
        "0",
        "-w",
        "0",
        "--fixseed",
    ]
    assert backbone.main(["--data", str(root), *run, "--lr_sched", "cosine"]) == 0
    (record,) = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert "held_out_top1" not in record


def test_a_fine_tuned_backbone_keeps_the_order_of_its_classes(root: Path) -> None:
    found = class_folder(root)
    start = root.parent / "start.safetensors"
    save_state(
        start,
        backbone._start(None, Data(root, found.files, found.names, False))[0].state_dict(),
        {"labels": '["dog", "cat"]'},
    )
    assert backbone._start(str(start), Data(root, found.files, found.names, False))[1].labels == [
        "dog",
        "cat",
    ]
    save_state(
        start,
        backbone._start(None, Data(root, found.files, found.names, False))[0].state_dict(),
        {"labels": '["cow", "hen"]'},
    )
    assert backbone._start(str(start), Data(root, found.files, found.names, False))[1].labels == [
        "cat",
        "dog",
    ]


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """checkpoints/ours_n0 with one checkpoint of cat, cow and dog."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "ours_n0"
    save_model(
        folder / "lmb1.safetensors",
        build_random_model("ours_n0", 3),
        {"labels": '["dog", "cow", "cat"]'},
    )
    return folder


def test_evaluation_matches_folders_with_labels_and_leaves_out_what_is_damaged(
    root: Path, points: Path, capsys: Capture
) -> None:
    (points / "lmb_old.pt").write_bytes(b"none")
    spoil(root)
    command = ["-d", str(root), "--torch", "--json", "-w", "0", "--predictions", "out"]
    assert evaluate.main(command) == 1
    assert "give --skip-damaged" in capsys.readouterr().err
    assert evaluate.main([*command, "--skip_damaged"]) == 0
    captured = capsys.readouterr()
    assert "passed over checkpoints/ours_n0/lmb_old.pt" in captured.err
    record = json.loads(captured.out)
    assert (record["images"], record["left_out"]) == (7, 3)
    classes = [int(line) for line in Path("out/ours_n0_lmb1.txt").read_text().split()]
    truth = [2] * 5 + [0] * 2
    assert record["top1"]["share"] == sum(a == b for a, b in zip(classes, truth, strict=True)) / 7


def test_data_of_other_classes_is_refused_before_anything_is_exported(
    root: Path, points: Path, capsys: Capture
) -> None:
    (root / "cat").rename(root / "hen")
    assert evaluate.main(["-d", str(root)]) == 1
    assert "hen is none of them" in capsys.readouterr().err
    assert evaluate.main(["-d", str(root.parent), "-m", "ours_n0"]) == 1
    assert "checkpoints, images are none of them" in capsys.readouterr().err
