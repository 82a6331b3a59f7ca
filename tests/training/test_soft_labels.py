"""training.backbone --teacher: soft labels of any classifier, among the classes of the folders."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet50
from training_runs import picture, read_log

from training import backbone
from training.backbones import Backbone
from training.checkpoint import save_state
from training.data import IMAGENET, Normalisation, blended
from training.folders import class_folder
from training.labelled import Data
from training.labels import ClassesError
from training.loss import divergence
from training.soft_labels import SoftLabels, TeacherSizeError, read_soft_labels
from training.teachers import Teacher, load_teacher, uncut
from training.weights import read_metadata

Capture = pytest.CaptureFixture[str]
MOBILENET = "torchvision:mobilenet_v3_small"


def _teacher_file(path: Path, labels: list[str], seed: int = 0) -> Path:
    """A ResNet-50 with RANDOM weights, whose first channels decide the class."""
    torch.manual_seed(seed)
    state = resnet50(weights=None, num_classes=len(labels)).state_dict()
    save_state(path, state, {"labels": json.dumps(labels)})
    return path


def _data(root: Path) -> Data:
    found = class_folder(root)
    return Data(root, found.files, found.names, False)


class Levels(nn.Module):
    """Logits of four classes: the mean of each channel, and their sum."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-1] == 40:
            raise RuntimeError("no image of 40 pixels\nat all")
        means = image.mean((2, 3))
        return torch.cat([means, means.sum(1, keepdim=True)], 1)


def _soft(classes: list[int], side: int | None, normalisation: Normalisation) -> SoftLabels:
    teacher = Teacher(4, Backbone(MOBILENET, "", 0, 0, normalisation, "classifier.3"))
    teacher.backbone = Levels()
    return SoftLabels(teacher, classes, side)


def test_a_teacher_sees_its_own_normalisation_and_size_and_gives_the_runs_classes() -> None:
    pixels = torch.rand(2, 3, 48, 48)
    mean, std = IMAGENET.tensors()
    image = (pixels - mean) / std
    half = Normalisation((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    mean, std = half.tensors()
    means = ((pixels - mean) / std).mean((2, 3))
    expected = torch.stack([means.sum(1), means[:, 1]], 1)
    assert torch.allclose(_soft([3, 1], None, half).logits(image), expected, atol=1e-5)
    assert torch.allclose(_soft([0], None, IMAGENET).logits(image)[:, 0], image[:, 0].mean((1, 2)))
    sizes = []
    soft = _soft([3, 1], 96, half)
    soft.teacher.backbone.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape))
    assert torch.allclose(soft.logits(image), expected, atol=1e-2)
    assert sizes == [(2, 3, 96, 96)]


def test_a_teacher_that_does_not_take_a_size_is_refused() -> None:
    soft = _soft([3, 1], None, IMAGENET)
    soft.check_sizes([48, 96])
    with pytest.raises(
        TeacherSizeError, match=r"40 pixels a side \(no image of 40 pixels\): .*--teacher_size"
    ):
        soft.check_sizes([48, 40])


def test_classes_are_found_by_label_or_id_or_refused(root: Path, tmp_path: Path) -> None:
    teacher = _teacher_file(tmp_path / "t.safetensors", ["hen", "Dog", "church", "cat"])
    assert read_soft_labels(str(teacher), None, None, _data(root)).classes == [3, 1]
    (root / "cat").rename(root / "n03028079")
    assert read_soft_labels(str(teacher), None, None, _data(root)).classes == [1, 2]
    (root / "dog").rename(root / "cow")
    with pytest.raises(
        ClassesError,
        match=r"has 2 folders of images and the teacher .* 4 classes \(hen, Dog, church and 1 more"
        r"\); cow is none of them: name each folder as its label",
    ):
        read_soft_labels(str(teacher), None, None, _data(root))


def test_imagenets_classes_are_known(root: Path, tmp_path: Path) -> None:
    (root / "cat").rename(root / "n03445777")
    (root / "dog").rename(root / "tench")
    weights = tmp_path / "weights.safetensors"
    save_file(Teacher(1000, uncut(MOBILENET)).backbone.state_dict(), weights)
    soft = read_soft_labels(MOBILENET, weights, None, _data(root))
    assert soft.classes == [574, 0]  # ImageNet's golf ball, and its first class
    assert not any(parameter.requires_grad for parameter in soft.teacher.parameters())


def test_the_divergence_at_a_temperature() -> None:
    teacher, student = torch.tensor([[4.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    expected = []
    for row in teacher / 2:
        p = row.softmax(0)
        expected.append(float((p * (p.log() - np.log(0.5))).sum()))
    assert divergence(student, teacher, 2) == pytest.approx(4 * np.mean(expected))
    assert divergence(student + 3, student) == pytest.approx(0, abs=1e-6)


def test_blended_images() -> None:
    image = torch.arange(64.0).reshape(64, 1, 1, 1).expand(64, 3, 4, 4)
    assert torch.equal(blended(image, 0), image)
    torch.manual_seed(0)
    mixed = blended(image, 1)[:, 0, 0, 0]
    assert (mixed != image[:, 0, 0, 0]).sum() > 56
    assert float(mixed.min()) >= 0
    assert float(mixed.max()) <= 63


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 images: red and blue, with noise."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (root / name).mkdir()
        for index in range(40):
            pixels = rng.normal(90, 30, (40, 40, 3))
            pixels[:, :, channel] += 90
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(root / name / f"{index}.png")
    return root


@pytest.mark.slow
def test_it_learns_what_the_teacher_says_and_resumes(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The teacher calls red blue, and blue red: labels would teach the contrary."""
    teacher = _teacher_file(tmp_path / "t.safetensors", ["red", "fish", "blue"])
    read = backbone.read_soft_labels

    def read_levels(*given: object) -> SoftLabels:
        soft = read(*given)
        assert soft.classes == [2, 0]
        soft.teacher.backbone = nn.Sequential(Levels(), nn.Linear(4, 3))
        red_less_blue = torch.tensor([[1.0, 0, -1, 0]])
        soft.teacher.backbone[1].weight.data = torch.cat(
            [-red_less_blue, torch.full((1, 4), 50.0), red_less_blue]
        )
        soft.teacher.backbone[1].bias.data.zero_()
        return soft

    monkeypatch.setattr(backbone, "read_soft_labels", read_levels)
    options = ["--data", str(colours), "--teacher", str(teacher)]
    options += ["--run_dir", str(tmp_path / "run"), *["--train_size", "32:8", "--batch_size", "12"]]
    options += ["--held_out", "8", "--val_size", "32", "-w", "0", "--no-amp"]
    options += ["--lr", "1e-3", "--mix", "0.3", "--temperature", "1"]
    assert backbone.main(options) == 0
    log = read_log(tmp_path / "run")
    assert "the teacher is right for 0.0% of the held-out images" in capsys.readouterr().err
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["agreement"] > 0.8
    assert log[-1]["held_out_top1"] < 0.3
    out = tmp_path / "run" / "resnet50.safetensors"
    about = read_metadata(out)
    assert (about["teacher"], json.loads(about["labels"])) == ("t.safetensors", ["blue", "red"])
    recipe = json.loads(about["recipe"])
    assert (recipe["mix"], recipe["temperature"], recipe["teacher_size"]) == ("0.3", "1.0", "None")
    assert str(tmp_path) not in about["recipe"]
    # A finished run gives its result again; another teacher of the same name is another run.
    before = load_teacher(out).backbone.state_dict()
    out.unlink()
    assert backbone.main(options) == 0
    assert "resuming after epoch 8" in capsys.readouterr().err
    after = load_teacher(out).backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    _teacher_file(teacher, ["red", "fish", "blue"], seed=1)
    assert backbone.main(options) == 1
    assert "teacher sha256" in capsys.readouterr().err


@pytest.mark.parametrize("part", [0.0, 0.25, 1.0])
def test_labels_beside_the_soft_ones(part: float) -> None:
    """The loss is the mean of both, weighted; without --label_part it is the teacher's alone."""
    torch.manual_seed(0)
    ours, theirs, label = torch.randn(8, 3), torch.randn(8, 3), torch.randint(3, (8,))
    options = ["--data", "d", "--teacher", "t", "--mix", "0", "--temperature", "3"]
    args = backbone._parser().parse_args([*options, *(["--label_part", f"{part}"] if part else [])])
    backbone._settle(args)
    soft = SimpleNamespace(logits=lambda _: theirs)
    found = backbone._loss(args, soft)(lambda _: ours, torch.zeros(8, 3, 4, 4), label, 0)["loss"]
    labels = cross_entropy(ours, label, label_smoothing=0.1)
    assert float(found) == pytest.approx(
        float(part * labels + (1 - part) * divergence(ours, theirs, 3)), rel=1e-6
    )
    assert ("label_part" in args) == bool(part)


def test_a_network_of_a_library_teaches_in_a_smoke_run(
    root: Path, tmp_path: Path, capsys: Capture
) -> None:
    torch.manual_seed(0)
    weights, labels = tmp_path / "weights.safetensors", tmp_path / "labels.txt"
    save_file(
        Teacher(2, uncut(MOBILENET)).backbone.state_dict(), weights, {"labels": '["dog", "cat"]'}
    )
    labels.write_text("Cat\nDog\n")
    options = ["--data", str(root), "--labels", str(labels), "--teacher", MOBILENET, "--smoke"]
    options += ["--run_dir", str(tmp_path / "run"), "--ema", "--teacher_size", "96"]
    assert backbone.main([*options, "--weights", str(weights)]) == 0
    (record,) = read_log(tmp_path / "run")
    assert record["size"] == 64
    about = read_metadata(tmp_path / "run" / "resnet50.safetensors")
    assert (about["teacher"], json.loads(about["recipe"])["ema"]) == (MOBILENET, "True")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--mix", "0.5"], "--mix is for a run with a teacher: name it with --teacher"),
        (["--label_part", "0.5"], "--label_part is for a run with a teacher"),
        (["--no-colour"], "--colour is for a run with a teacher"),
        (["--teacher", MOBILENET, "--label_part", "0.5", "--mix", "0.1"], "give --mix 0"),
        (["--weights", "x.pt"], "--weights is for a run with a teacher"),
        (["--teacher", "timm:nothing"], "timm has no classifier 'nothing'"),
        (["--teacher", "/nowhere.pt"], "no checkpoint at /nowhere.pt"),
        (["--teacher", "a.pt", "--weights", "b.pt"], "leave out --weights"),
        (["--teacher", "other.safetensors"], "cow and hen"),
        (["--teacher", "other.safetensors", "--out", "other.safetensors"], "replace the input"),
    ],
)
def test_refused_teachers(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    more: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "other.safetensors" in more:
        _teacher_file(tmp_path / "other.safetensors", ["cow", "hen", "pig"])
        picture(root / "cow" / "0.png")
        text = "cat, dog are none of them" if text == "cow and hen" else text
    run = ["--data", str(root), "--smoke", "--run_dir", "run"]
    assert backbone.main([*run, *more]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("training.backbone: ")


def test_a_run_without_a_teacher_has_the_recipe_of_earlier_versions(
    root: Path, tmp_path: Path
) -> None:
    args = backbone._parser().parse_args(["--data", str(root)])
    backbone._settle(args)
    later = {"teacher", "weights", "teacher_size", "temperature", "mix", "label_part", "colour"}
    later |= {"frozen_start", "behind", "decoded"}
    assert not later & set(vars(args))
