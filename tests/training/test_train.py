"""training.train: it learns, starts from what it is given, and refuses what it cannot train."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50
from training_runs import options

from export.tables import bottleneck_sha256
from training import command, train
from training.checkpoint import (
    BackboneError,
    CheckpointError,
    load_model,
    save_model,
    save_state,
    start_from_checkpoint,
)
from training.models import build_model, build_random_model
from training.options import Stage, parse_stages
from training.teachers import load_teacher

PROJECT = Path(__file__).resolve().parents[2]


def test_a_run_from_start_to_checkpoint(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Steps so large that the rate falls whatever the processor rounds.
    fast = ["--optimizer", "adamw", "--lr", "1e-2"]
    assert train.main(options(data, backbone, tmp_path / "run", *fast)) == 0
    out = tmp_path / "run" / "lmb0.5.safetensors"
    assert f"wrote {out}" in capsys.readouterr().out
    records = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert [record["size"] for record in records] == [32, 64]
    assert records[-1]["bpp"] < 0.95 * records[0]["bpp"]
    assert 0 <= records[-1]["held_out_top1"] <= 1
    model, metadata = load_model(out, "ours_n0")
    assert json.loads(metadata["labels"]) == ["dark", "light"]
    assert (metadata["model"], metadata["lmb"]) == ("ours_n0", "0.5")
    assert str(tmp_path) not in metadata["recipe"]
    assert str(data) not in metadata["recipe"]
    quantiles = model.bottleneck_layer.entropy_bottleneck.quantiles
    assert (quantiles[:, 0, 1] == 0).all()
    assert (quantiles[:, 0, 0] <= -1).all()
    assert (quantiles[:, 0, 2] >= 1).all()


@pytest.mark.slow
def test_a_run_with_many_options(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run starts from the first one's weights, and is resumed when it is complete."""
    assert (
        train.main(
            options(data, backbone, tmp_path / "first", "--optimizer", "adamw", "--lr", "1e-3")
        )
        == 0
    )
    begin = str(tmp_path / "first" / "lmb0.5.safetensors")
    more = [
        "--pretrain",
        begin,
        "--ema",
        "--accum_num",
        "2",
        "--batch_size",
        "4",
        "--eval_first",
        "--eval_per",
        "2",
        "--no-amp",
    ]
    assert train.main(options(data, backbone, tmp_path / "second", *more)) == 0
    records = [
        json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()
    ]
    assert ["held_out_top1" in record for record in records] == [False, True]
    assert '"epoch": 0' in capsys.readouterr().out
    first, second = (
        load_model(tmp_path / name / "lmb0.5.safetensors", "ours_n0")[0].state_dict()
        for name in ("first", "second")
    )
    moved = (first["fc.weight"] - second["fc.weight"]).abs().max()
    assert 0 < moved < 0.1, "a moving average changes little in a few steps"
    again = ["--resume", str(tmp_path / "second"), *more]
    assert train.main(options(data, backbone, tmp_path / "elsewhere", *again)) == 0
    assert "resuming after epoch 2" in capsys.readouterr().err


def test_a_tail_is_trained_behind_a_frozen_bottleneck(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    """Not a bit of the bottleneck changes, so edge devices stay as they are.

    That includes the quantiles, which are set to values here that training would not leave.
    """
    begin = build_random_model("ours_n0", 2)
    begin.bottleneck_layer.entropy_bottleneck.quantiles.data += 0.25
    save_model(tmp_path / "begin.safetensors", begin, {})
    more = ["--pretrain", str(tmp_path / "begin.safetensors"), "--frozen_bottleneck", "--no-amp"]
    assert train.main(options(data, Path("/no teacher"), tmp_path / "run", *more)) == 0
    before = load_model(tmp_path / "begin.safetensors", "ours_n0")[0]
    after = load_model(tmp_path / "run" / "lmb0.5.safetensors", "ours_n0")[0]
    assert bottleneck_sha256(before) == bottleneck_sha256(after)
    assert not torch.equal(before.tail.layer2[0].conv1.weight, after.tail.layer2[0].conv1.weight)
    assert not torch.equal(
        before.tail.layer4[2].bn3.running_mean, after.tail.layer4[2].bn3.running_mean
    )


def test_wrong_uses_of_a_frozen_bottleneck_are_refused(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, classes in (("ours_n0", 3), ("ours_n0_enc", 2)):
        save_model(tmp_path / f"{name}.safetensors", build_random_model(name, classes), {})
    save_model(tmp_path / "other.safetensors", build_random_model("ours_n0", 2), {"lmb": "0.64"})
    for more, text in (
        (
            ["--frozen_bottleneck", "--pretrain", str(tmp_path / "other.safetensors")],
            "say --model_args bpp_lmb=0.64",
        ),
        (["--frozen_bottleneck"], "--pretrain FILE"),
        (
            ["--frozen_bottleneck", "--pretrain", str(tmp_path / "ours_n0.safetensors")],
            "has 2 classes",
        ),
        (
            [
                "--frozen_bottleneck",
                "--pretrain",
                str(tmp_path / "ours_n0_enc.safetensors"),
                "--model",
                "ours_n0_enc",
            ],
            "nothing to train",
        ),
        (
            [
                "--frozen_bottleneck",
                "--pretrain",
                str(tmp_path / "ours_n0_enc.safetensors"),
                "--frozen_tail",
            ],
            "nothing to train",
        ),
    ):
        assert train.main(options(data, backbone, tmp_path / "run", *more)) == 1
        assert text in capsys.readouterr().err


def test_a_bottleneck_alone_is_loaded_with_its_backbone_and_no_other(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "checkpoints" / "matsubara2022wacv" / "lmb0.5.safetensors"
    more = [
        "--model",
        "matsubara2022wacv",
        "--frozen_tail",
        "--bottleneck_only",
        "--smoke",
        "--out",
        str(alone),
    ]
    assert train.main(options(data, backbone, tmp_path / "run", *more)) == 0
    assert alone.stat().st_size < 4e6
    with pytest.raises(BackboneError, match="--backbone FILE"):
        load_model(alone, "matsubara2022wacv")
    teacher = load_teacher(backbone).backbone.state_dict()
    for place in (alone.parent / "teacher.pt", alone.parent.parent / "teacher.pt"):
        place.write_bytes(backbone.read_bytes())
        model, metadata = load_model(alone, "matsubara2022wacv")
        assert all(
            torch.equal(model.state_dict()[key], value)
            for key, value in teacher.items()
            if key.startswith(("layer4", "fc"))
        )
        assert metadata["backbone"] == "teacher.pt"
        place.unlink()
    other = tmp_path / "other.safetensors"
    save_state(other, resnet50(weights=None, num_classes=2).state_dict(), {})
    with pytest.raises(BackboneError, match="another backbone"):
        load_model(alone, "matsubara2022wacv", other)
    load_model(alone, "matsubara2022wacv", backbone)
    # A joint model has a tail of its own, which cannot be left out.
    assert train.main(options(data, backbone, tmp_path / "joint", "--bottleneck_only")) == 1
    assert "frozen tail" in capsys.readouterr().err


def test_a_checkpoint_cannot_name_a_backbone_in_another_folder(
    backbone: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "a.safetensors", build_model("ours_n0", 2), {}, "../../etc/passwd")
    with pytest.raises(BackboneError, match="any file"):
        load_model(tmp_path / "a.safetensors", "ours_n0")


def test_training_starts_from_a_checkpoint_of_another_depth(tmp_path: Path) -> None:
    """Added blocks change nothing at first, a frozen tail is kept, and medians start at 0."""
    small = build_random_model("ours_n4", 2)
    small.bottleneck_layer.entropy_bottleneck.quantiles.data[:, :, 1] = 0.25
    save_model(tmp_path / "n4.safetensors", small, {})
    rounded = load_model(tmp_path / "n4.safetensors", "ours_n4")[0]
    image = torch.randn(1, 3, 64, 64)
    grown = build_model("ours_n8_enc", 2)
    tail = grown.tail.layer4[0].conv1.weight.clone()
    start_from_checkpoint(grown, tmp_path / "n4.safetensors")
    with torch.no_grad():
        assert torch.allclose(
            grown.bottleneck_layer.encoder(image),
            rounded.bottleneck_layer.encoder(image),
            atol=1e-5,
        )
    assert torch.equal(grown.tail.layer4[0].conv1.weight, tail)
    assert not grown.bottleneck_layer.medians.any()
    for name in ("ours_n0", "ours_n4"):
        model = build_model(name, 2)
        start_from_checkpoint(model, tmp_path / "n4.safetensors")
        assert torch.equal(model.tail.layer4[0].conv1.weight, rounded.tail.layer4[0].conv1.weight)
        assert torch.equal(
            model.bottleneck_layer.encoder[-1].weight, rounded.bottleneck_layer.encoder[-1].weight
        )
    with pytest.raises(CheckpointError, match="does not fit"):
        start_from_checkpoint(build_model("matsubara2022wacv", 2), tmp_path / "n4.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        start_from_checkpoint(build_model("ours_n4", 3), tmp_path / "n4.safetensors")


def test_sgd_decays_the_tails_weights_alone() -> None:
    model = build_model("ours_n0", 2)
    model.bottleneck_layer.entropy_bottleneck.quantiles.requires_grad_(False)
    args = train._parser().parse_args(["--model", "ours_n0", "--data", "x"])
    decayed, others = train._optimizer(model, args).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].startswith("tail.") and p.ndim > 1 for p in decayed["params"])
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"]) == (1e-4, 0, 0.01)
    assert {*map(id, decayed["params"]), *map(id, others["params"])} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_the_state_of_another_run_is_refused(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("last.pt").touch()
    torch.save({"recipe": {"model": "ours_n8"}}, tmp_path / "last.pt")
    assert train.main(options(data, backbone, tmp_path)) == 1
    assert "other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--backbone", "/nowhere.pt"], "/nowhere.pt"),
        (["--held_out", "24"], "cannot hold out 24 of 24"),
        (["--batch_size", "100"], "do not fill one batch of 100"),
        (["--accum_num", "9"], "do not fill one batch of 72"),
        (["--device", "cuda:7"], "choose cpu or cuda"),
        (["--resume", "/nowhere/run"], "leave out --resume"),
        (["--pretrain", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--wbmode", "online"], "pip install wandb"),
        (["--labels", str(PROJECT / "training" / "imagenette_labels.txt")], "has 10 labels"),
    ],
)
def test_what_cannot_be_trained(
    data: Path,
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    text: str,
) -> None:
    assert train.main(options(data, backbone, tmp_path, *more)) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--model_args", "bpp_lmb=-1"],
        ["--model_args", "__import__('os')"],
        ["--model", "vgg"],
        ["--train_size", "big"],
    ],
)
def test_wrong_usage_is_status_2(
    data: Path, backbone: Path, tmp_path: Path, more: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        train.main(options(data, backbone, tmp_path, *more))
    assert exit_info.value.code == 2


def test_schedules() -> None:
    assert parse_stages("224", 3) == [Stage(224, 3)]
    assert parse_stages("112:2,160:1", 3) == [
        Stage(112, 2),
        Stage(160, 1),
    ]


@pytest.mark.parametrize("size", ["0", "30", "224:", "112:3,x", "112,224"])
def test_wrong_schedules(size: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=size.split(",")[0].rstrip(":")):
        parse_stages(size, 3)


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "-0.1", "most"])
def test_wrong_crop_areas(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a part above 0, to 1"):
        command.part(text)


def test_a_loss_that_is_not_finite_stops_the_run(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train.main(
            options(data, backbone, tmp_path, "--lr", "1e6", "--epochs", "9", "--train_size", "64")
        )
        == 1
    )
    assert "smaller --lr" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))
