"""Training on a handful of made-up images: it learns, stops on bad input, and goes on after a kill."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from export.tables import bottleneck_sha256
from training import average, command, train
from training import backbone as backbone_command
from training import options as run_options
from training.checkpoint import (
    BackboneError,
    CheckpointError,
    load_model,
    save_model,
    save_state,
    start_from_checkpoint,
)
from training.data import Batches, SeededImages, evaluation_images, split_held_out, training_images
from training.folders import class_folder
from training.loss import distillation_loss
from training.teachers import Teacher, load_teacher, start_from_teacher
from training.models import build_model, build_random_model

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images each: light and dark noise."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for index in range(12):
            pixels = np.clip(rng.normal(level, 30, (72, 72, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with random weights and two classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(
        {
            "state_dict": resnet50(weights=None, num_classes=2).half().state_dict(),
            "classes": ["dark", "light"],
        },
        path,
    )
    return path


def options(data: Path, backbone: Path, run: Path, *more: str) -> list[str]:
    return [
        *(
            "--model",
            "ours_n0",
            "--model_args",
            "bpp_lmb=0.5",
            "--data",
            str(data),
            "--backbone",
            str(backbone),
            "--run_dir",
            str(run),
        ),
        *(
            "--train_size",
            "32:1,64:1",
            "--batch_size",
            "8",
            "--held_out",
            "4",
            "--workers",
            "0",
            "--val_crop_r",
            "1",
        ),
        *more,
    ]


def run_main(arguments: list[str]) -> int:
    return train.main(arguments)


def test_a_run_from_start_to_checkpoint(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(options(data, backbone, tmp_path / "run")) == 0
    out = tmp_path / "run" / "lmb0.5.safetensors"
    assert f"wrote {out}" in capsys.readouterr().out
    records = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert [record["size"] for record in records] == [32, 64]
    assert records[-1]["bpp"] < records[0]["bpp"]
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


def test_a_run_with_everything_that_may_be_asked_for(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run begins with the first one's weights, and goes on once it is whole."""
    assert (
        run_main(
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
    assert run_main(options(data, backbone, tmp_path / "second", *more)) == 0
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
    assert 0 < moved < 0.1, "few steps of a moving average stay near"
    again = ["--resume", str(tmp_path / "second"), *more]
    assert run_main(options(data, backbone, tmp_path / "elsewhere", *again)) == 0
    assert "resuming after epoch 2" in capsys.readouterr().err


def test_a_tail_is_trained_behind_a_frozen_bottleneck(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    """Edges go on as they are: not a bit of the bottleneck changes, quantiles (here such as no training leaves) included."""
    begin = build_random_model("ours_n0", 2)
    begin.bottleneck_layer.entropy_bottleneck.quantiles.data += 0.25
    save_model(tmp_path / "begin.safetensors", begin, {})
    more = ["--pretrain", str(tmp_path / "begin.safetensors"), "--frozen_bottleneck", "--no-amp"]
    assert (
        run_main(options(data, Path("/nowhere, for there is no teacher"), tmp_path / "run", *more))
        == 0
    )
    before = load_model(tmp_path / "begin.safetensors", "ours_n0")[0]
    after = load_model(tmp_path / "run" / "lmb0.5.safetensors", "ours_n0")[0]
    assert bottleneck_sha256(before) == bottleneck_sha256(after)
    assert not torch.equal(before.tail.layer2[0].conv1.weight, after.tail.layer2[0].conv1.weight)
    assert not torch.equal(before.tail.layer4[2].bn3.running_mean, after.tail.layer4[2].bn3.running_mean)


def test_a_frozen_bottleneck_that_cannot_be(
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
        assert run_main(options(data, backbone, tmp_path / "run", *more)) == 1
        assert text in capsys.readouterr().err


def run_average(arguments: list[str]) -> int:
    return average.main(arguments)


@pytest.fixture
def two_tails(tmp_path: Path) -> list[str]:
    """Checkpoints of one bottleneck and two random tails."""
    files = []
    for seed in (0, 1):
        model = build_random_model("ours_n0", 2)
        model.tail.layer4.load_state_dict(build_random_model("ours_n0", 2, seed).tail.layer4.state_dict())
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_model(
            files[-1], model, {"labels": '["dark", "light"]', "lmb": "0.5", "recipe": '{"lr": "1"}'}
        )
    return files


def test_tails_of_one_bottleneck_are_averaged(
    two_tails: list[str], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "average.safetensors"
    more = [
        "--data",
        str(data),
        "--out",
        str(out),
        "--train_size",
        "64",
        "--held_out",
        "4",
        "--workers",
        "0",
    ]
    assert run_average(["ours_n0", *two_tails, *more]) == 0
    first, second = (load_model(file, "ours_n0")[0] for file in two_tails)
    model, metadata = load_model(out, "ours_n0")
    assert bottleneck_sha256(model) == bottleneck_sha256(first)
    weight = (first.tail.layer4[0].conv1.weight + second.tail.layer4[0].conv1.weight) / 2
    assert torch.allclose(model.tail.layer4[0].conv1.weight, weight, atol=1e-4)
    # The statistics are those of the images, as the average sees them: its layer2 begins with what normalises to 0 and 1.
    images = training_images(class_folder(data).files, 64)
    with torch.no_grad():
        features = model.bottleneck_layer(torch.stack([images[index][0] for index in range(24)]))[0]
        normalised = model.tail.layer2[0].bn1(model.tail.layer2[0].conv1(features))
        before = first.tail.layer2[0].bn1(first.tail.layer2[0].conv1(features))
    assert (normalised.mean().abs(), normalised.std()) == (
        pytest.approx(0, abs=0.2),
        pytest.approx(1, abs=0.2),
    )
    assert (before.std() - 1).abs() > 0.3
    assert json.loads(metadata["labels"]) == ["dark", "light"]
    assert json.loads(metadata["recipe"]) == {
        "average_of": [{"lr": "1"}] * 2,
        "images": 20,
        "train_size": 64,
        "crop_area": 0.08,
    }


def test_what_has_no_average(
    two_tails: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, wide = tmp_path / "other.safetensors", tmp_path / "wide.safetensors"
    save_model(other, build_random_model("ours_n0", 2, seed=1), {})
    model = build_random_model("ours_n0", 2)
    model.tail.fc = torch.nn.Linear(2048, 3)
    save_model(wide, model, {})
    out = tmp_path / "average.safetensors"
    for more, text in (
        ([two_tails[0]], "two or more"),
        ([two_tails[0], str(other)], "another bottleneck"),
        ([two_tails[0], str(wide)], "has 3 classes"),
        ([*two_tails, "--held_out", "24"], "cannot hold out"),
        ([two_tails[0], "/nowhere.pt"], "/nowhere.pt"),
    ):
        assert run_average(["ours_n0", *more, "--data", str(data), "--out", str(out)]) == 1
        assert text in capsys.readouterr().err
    assert not out.exists()


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
    assert run_main(options(data, backbone, tmp_path / "run", *more)) == 0
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
    # A joint model keeps its own tail, so there is nothing to leave out.
    assert run_main(options(data, backbone, tmp_path / "joint", "--bottleneck_only")) == 1
    assert "frozen tail" in capsys.readouterr().err


def test_a_checkpoint_does_not_send_its_reader_through_the_disk(
    backbone: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "a.safetensors", build_model("ours_n0", 2), {}, "../../etc/passwd")
    with pytest.raises(BackboneError, match="any file"):
        load_model(tmp_path / "a.safetensors", "ours_n0")


def test_training_begins_with_a_checkpoint_of_another_depth(tmp_path: Path) -> None:
    """Further blocks change nothing at first; a frozen tail stays the teacher's; medians begin at 0."""
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


def test_a_backbone_of_ones_own_teaches_a_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(folder: str, *more: str) -> int:
        return backbone_command.main(
            ["--data", str(data), "--smoke", "--run_dir", str(tmp_path / folder), *more]
        )

    assert make("first") == 0
    out = tmp_path / "first" / "resnet50.safetensors"
    assert f"wrote {out}" in capsys.readouterr().out
    assert load_teacher(out).classes == 2
    assert (tmp_path / "first" / "log.png").read_bytes().startswith(b"\x89PNG")
    three = tmp_path / "three.safetensors"
    save_state(three, resnet50(weights=None, num_classes=3).state_dict(), {})
    assert make("fine_tuned", "--pretrain", str(three), "--lr", "0") == 0
    tuned, begin = (
        load_teacher(tmp_path / "fine_tuned" / "resnet50.safetensors").backbone,
        load_teacher(three).backbone,
    )
    assert torch.equal(tuned.conv1.weight, begin.conv1.weight)
    assert tuned.classes == 2
    assert make("none", "--pretrain", "/nowhere.pt") == 1
    assert "/nowhere.pt" in capsys.readouterr().err
    assert run_main(options(data, out, tmp_path / "model", "--smoke")) == 0
    (record,) = [
        json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()
    ]
    assert record["size"] == 64


@pytest.mark.parametrize(
    ("more", "lr"),
    [([], 2e-3), (["--pretrain", "FILE"], 2e-4), (["--lr", "3"], 3), (["--lr", "0"], 0)],
)
def test_a_backbones_optimizer_decays_its_weights_alone(more: list[str], lr: float) -> None:
    net = resnet50(num_classes=2)
    args = backbone_command._parser().parse_args(["--data", "x", "--wdecay", "0.01", *more])
    optimizer = backbone_command._optimizer(net, args)
    decayed, others = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"], others["lr"]) == (
        0.01,
        0,
        lr,
        lr,
    )
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))


def test_sgd_decays_the_tails_weights_alone() -> None:
    model = build_model("ours_n0", 2)
    model.bottleneck_layer.entropy_bottleneck.quantiles.requires_grad_(False)
    args = train._parser().parse_args(["--model", "ours_n0", "--data", "x"])
    decayed, others = train._optimizer(model, args).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].startswith(("layer", "fc")) and p.ndim > 1 for p in decayed["params"])
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"]) == (1e-4, 0, 0.01)
    assert {*map(id, decayed["params"]), *map(id, others["params"])} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_processes_share_batches_and_each_image_has_its_own_random_numbers(data: Path) -> None:
    whole = list(Batches(20, 6, seed=3))
    shares = [list(Batches(20, 3, 3, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
    assert len(whole) == 3
    assert whole != list(Batches(20, 6, seed=4))
    files = class_folder(data).files
    images = SeededImages(training_images(files, 32), 1)
    torch.manual_seed(0)
    first = images[5][0]
    torch.rand(9)
    assert torch.equal(first, images[5][0])
    assert not torch.equal(first, SeededImages(training_images(files, 32), 2)[5][0])


@pytest.mark.slow
def test_two_processes_and_two_batches_a_step_are_one_large_batch(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    """With the tail frozen, so that no batch norm sees half of a batch; without rate, whose noise each process draws for itself."""

    def run(name: str, launcher: list[str], *more: str) -> dict[str, torch.Tensor]:
        arguments = options(
            data,
            backbone,
            tmp_path / name,
            "--model",
            "ours_n0_enc",
            "--model_args",
            "bpp_lmb=0",
            "--no-amp",
            *more,
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [*launcher, "-m", "training.train", *arguments],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
        return torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]

    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    one = run("one", [sys.executable])
    two = run("two", torchrun, "--batch_size", "4", "--ddp_find")
    accumulated = run("accumulated", [sys.executable], "--batch_size", "4", "--accum_num", "2")
    for key, value in one.items():
        for other in (two, accumulated):
            assert torch.allclose(value.float(), other[key].float(), atol=1e-5, rtol=1e-3), key


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    data: Path, backbone: Path, tmp_path: Path, optimizer: str
) -> None:
    def command(run: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "training.train",
            *options(data, backbone, run, "--optimizer", optimizer),
        ]

    subprocess.run(command(tmp_path / "whole"), cwd=PROJECT, check=True, capture_output=True)
    log = tmp_path / "killed" / "log.jsonl"
    with subprocess.Popen(
        command(tmp_path / "killed"),
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not log.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    again = subprocess.run(
        command(tmp_path / "killed"), cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert "resuming after epoch" in again.stderr
    whole, killed = (
        load_model(tmp_path / name / "lmb0.5.safetensors", "ours_n0")[0].state_dict()
        for name in ("whole", "killed")
    )
    for key, value in whole.items():
        assert torch.allclose(value.float(), killed[key].float(), atol=1e-3, rtol=1e-2), key
    assert not list(tmp_path.glob("killed/.*")), "temporary files are left"


def test_another_runs_state_is_not_gone_on_with(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("last.pt").touch()
    torch.save({"recipe": {"model": "ours_n8"}}, tmp_path / "last.pt")
    assert run_main(options(data, backbone, tmp_path)) == 1
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
    assert run_main(options(data, backbone, tmp_path, *more)) == 1
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
        run_main(options(data, backbone, tmp_path, *more))
    assert exit_info.value.code == 2


@pytest.mark.parametrize("size", ["0", "30", "224:", "112:3,x", "112,224"])
def test_wrong_schedules(size: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=size.split(",")[0].rstrip(":")):
        run_options.parse_stages(size, 3)


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "-0.1", "most"])
def test_a_crop_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a part above 0, to 1"):
        command.part(text)


def test_crops_cover_what_they_are_asked_to(tmp_path: Path) -> None:
    """A ramp from left to right: what a crop's brightness spans is the part of the width that it covers."""
    (tmp_path / "ramp").mkdir()
    Image.fromarray(
        np.tile(np.linspace(0, 250, 126).astype(np.uint8)[None, :, None], (126, 1, 3))
    ).save(tmp_path / "ramp" / "0.png")

    def least_width(crop_area: float) -> float:
        images = training_images(class_folder(tmp_path).files, 64, crop_area)
        crops = [SeededImages(images, seed)[0][0][0] * 0.229 + 0.485 for seed in range(60)]
        return min(float(crop.max() - crop.min()) for crop in crops) * 255 / 250

    # Sides are in the ratio of 3 to 4 at most: the narrowest crop of 0.7 of the image is 0.72 of it wide, that of 0.08 is 0.24.
    assert least_width(0.7) > 0.69
    assert least_width(0.08) < 0.5


def test_schedules() -> None:
    assert run_options.parse_stages("224", 3) == [run_options.Stage(224, 3)]
    assert run_options.parse_stages("112:2,160:1", 3) == [
        run_options.Stage(112, 2),
        run_options.Stage(160, 1),
    ]


def test_a_loss_that_is_not_finite_stops_the_run(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_main(
            options(data, backbone, tmp_path, "--lr", "1e6", "--epochs", "9", "--train_size", "64")
        )
        == 1
    )
    assert "smaller --lr" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_teacher_stays_in_eval_mode(backbone: Path) -> None:
    teacher = load_teacher(backbone).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_whose_classifier_is_a_number(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.tensor(1.0)}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"misshaped: fc\.weight|missing"):
        load_teacher(tmp_path / "teacher.pt")


def test_a_teacher_that_is_none(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2048)}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"missing: conv1\.weight"):
        load_teacher(tmp_path / "teacher.pt")


def test_the_loss_is_the_sum_of_its_terms_as_the_paper_has_them(backbone: Path) -> None:
    teacher = load_teacher(backbone)
    model = build_model("ours_n0", 2)
    start_from_teacher(model, teacher)
    assert torch.equal(model.tail.layer3[0].conv1.weight, teacher.backbone.layer3[0].conv1.weight)
    image, label = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    with torch.no_grad():
        ours, theirs = model.eval()(image), teacher(image)
        terms = distillation_loss(ours, theirs, label, 2 * 64 * 64, 0.5)
        expected = (
            0.5 * torch.nn.functional.cross_entropy(ours.logits, label)
            + 0.5
            * (
                theirs.logits.softmax(1)
                * (theirs.logits.log_softmax(1) - ours.logits.log_softmax(1))
            )
            .sum(1)
            .mean()
            + sum(
                ((a - b) ** 2).mean() for a, b in zip(ours.features, theirs.features, strict=True)
            )
            + 0.5 * ours.bits / (2 * 64 * 64)
        )
        itself = distillation_loss(theirs, theirs, label, 1, 0.5)
    assert terms.loss == pytest.approx(float(expected), rel=1e-5)
    assert [tuple(feature.shape[1:]) for feature in ours.features] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    assert float(itself.distillation) == pytest.approx(0, abs=1e-6)
    assert float(itself.features) == 0


def test_the_decoder_is_trained_on_rounded_latents_and_gradients_reach_the_encoder() -> None:
    torch.manual_seed(0)
    bottleneck = build_model("ours_n0", 2).bottleneck_layer.train()
    image, seen = torch.randn(1, 3, 32, 32), []
    bottleneck.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, bits = bottleneck(image)
    assert torch.allclose(seen[0], seen[0].round(), atol=1e-5)
    features.sum().backward()
    assert bottleneck.encoder[0].weight.grad.abs().sum() > 0
    assert float(bits.detach()) > 0


def test_what_is_held_out_is_never_trained_on(data: Path) -> None:
    files = class_folder(data).files
    whole = evaluation_images(files)
    kept, rest = (
        split_held_out(images, 5, keep)
        for images, keep in ((whole, True), (training_images(files, 32), False))
    )
    assert len(kept) == 5
    assert len(rest) == 19
    assert not set(kept.indices) & set(rest.indices)
    assert {whole.targets[index] for index in kept.indices} == {0, 1}


def test_images_of_224_are_evaluated_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "a.png")
    image, _ = evaluation_images(class_folder(tmp_path).files)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(
        image, ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1), atol=1e-6
    )


def test_a_teacher_of_no_classes_named_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match="missing"):
        load_teacher(tmp_path / "teacher.pt")
    assert isinstance(Teacher(3).backbone.fc, torch.nn.Linear)
