"""A run's state: the same run resumes it, also after a move; any other refuses it in one line, and
it is never lost."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet50

from training import average, backbone, evaluate, state, train
from training.checkpoint import save_model
from training.files import WriteError
from training.models import build_random_model

Capture = pytest.CaptureFixture[str]


def state_of(net: nn.Module, steps: torch.optim.Optimizer, **changes: Any) -> dict[str, Any]:
    state = {
        "recipe": {"lr": "1", "data": "3 files"},
        "epoch": 1,
        "log": [{"epoch": 1, "loss": 2.0}],
    }
    return state | {"model": net.state_dict(), "optimizer": steps.state_dict()} | changes


def tiny(width: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    return model, optimizer


def resume(file: Path, **args: Any) -> list[dict[str, Any]]:
    model, optimizer = tiny()
    average = AveragedModel(model) if args.pop("ema", False) else None
    identity = {"lr": "1", "data": "3 files"}
    learner = state.Learner(model, optimizer, average)
    return state.resume(file, identity, argparse.Namespace(**args), 3, learner)


def test_a_state_is_resumed(tmp_path: Path) -> None:
    torch.save(state_of(*tiny()), tmp_path / "last.pt")
    assert resume(tmp_path / "last.pt") == [{"epoch": 1, "loss": 2.0}]


def test_a_state_of_an_earlier_version_has_paths_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "data"), "data"):
        torch.save(state_of(*tiny(), recipe={"lr": "1", "data": path}), "last.pt")
        assert len(resume(Path("last.pt"), data=Path("data"))) == 1
    with pytest.raises(state.StateError, match="data data and not 3 files"):
        resume(Path("last.pt"), data=Path("other"))


def write(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def write_half(path: Path) -> None:
    torch.save(state_of(*tiny()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WIDE = tiny(3)
RECIPE = {"recipe": {"lr": "1", "data": "3 files"}}


@pytest.mark.parametrize(
    ("put", "text"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (write_half, "damaged file of torch.save, or was cut off"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "is a safetensors file"),
        (write(nn.Linear(1, 1)), "holds a torch.nn.modules.linear.Linear"),
        (write([1]), "is not a state of training.train or training.backbone"),
        (
            write({"model": {}, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=1)}),
            "is not a state of",
        ),
        (write({"recipe": {"lr": "2", "data": "3 files"}}), r"other options \(lr 2 and not 1\)"),
        (write({"recipe": {"data": "3 files", 7: 7}}), "lr None and not 1"),
        (write(state_of(*tiny(), log=[])), "no log of its epochs"),
        (write(state_of(*tiny(), log=[1])), "no log of its epochs"),
        (write(state_of(*tiny(), epoch=4, log=[{"epoch": 1}] * 4)), "no log of its epochs"),
        (
            write(RECIPE | {"epoch": 1, "log": [{"epoch": 1}]}),
            r"another model or version \('model'\)",
        ),
        (write(state_of(*WIDE)), r"another model or version \(.*size mismatch for weight"),
        (write(state_of(*tiny(), model=[1])), "another model or version"),
        (write(state_of(tiny()[0], WIDE[1])), "the optimizer's state is of other shapes"),
        (write(state_of(*tiny(), optimizer={})), "another model or version"),
        (
            write(state_of(tiny()[0], torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))),
            "another model or version",
        ),
    ],
)
def test_a_state_that_cannot_be_resumed(
    tmp_path: Path, put: Callable[[Path], None], text: str
) -> None:
    file = tmp_path / "last.pt"
    put(file)
    before = file.read_bytes()
    with pytest.raises(state.StateError, match=text) as caught:
        resume(file)
    message = str(caught.value)
    assert str(file) in message
    assert "give another --run_dir, or remove the file to start over" in message
    assert not {"\n", "\x1b"} & {*message}
    assert "weights_only=False" not in message
    assert file.read_bytes() == before


def test_a_state_without_the_average_that_is_needed(tmp_path: Path) -> None:
    torch.save(state_of(*tiny()), tmp_path / "last.pt")
    with pytest.raises(state.StateError, match=r"\('average'\)"):
        resume(tmp_path / "last.pt", ema=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noise images of two classes, and a random teacher of them."""
    root = tmp_path_factory.mktemp("place")
    for index in range(6):
        (root / "data" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "data" / "ab"[index % 2] / f"{index}.png")
    torch.manual_seed(0)
    torch.save(resnet50(num_classes=2).state_dict(), root / "teacher.pt")
    return root


def start(place: Path, *more: str) -> int:
    options = [
        "--model",
        "ours_n0",
        "--data",
        str(place / "data"),
        "--backbone",
        str(place / "teacher.pt"),
        "--smoke",
    ]
    return train.main([*options, "--run_dir", str(place / "run"), *more])


def test_a_run_moves_with_its_data_and_its_teacher(
    place: Path, tmp_path: Path, capsys: Capture
) -> None:
    first = tmp_path / "first"
    shutil.copytree(place, first)
    assert start(first) == 0
    moved = first.rename(tmp_path / "moved")
    capsys.readouterr()
    assert start(moved) == 0
    assert "resuming after epoch 1" in capsys.readouterr().err
    # Neither a class that was added nor another teacher of the same name is the same run.
    before = (moved / "run" / "last.pt").read_bytes()
    (moved / "data" / "c").mkdir()
    shutil.copy(moved / "data" / "a" / "0.png", moved / "data" / "c")
    torch.save(resnet50(num_classes=3).state_dict(), moved / "teacher.pt")
    assert start(moved) == 1
    error = capsys.readouterr().err
    assert "data 6 files of 2 classes" in error
    assert "and not 7 files of 3 classes" in error
    assert "backbone sha256" in error
    assert error.count("\n") == 1
    assert (moved / "run" / "last.pt").read_bytes() == before
    (moved / "run" / "last.pt").write_bytes(before[:1000])
    assert start(moved) == 1
    assert "or remove the file to start over" in capsys.readouterr().err


def test_a_disk_that_gets_full_is_one_line_and_the_last_state_stays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """/dev/full stands for the disk."""
    save = torch.save

    def save_on_a_full_disk(content: object, file: Any) -> None:
        with open("/dev/full", "r+b", buffering=0) as full:
            save(content, full)

    monkeypatch.setattr(torch, "save", save_on_a_full_disk)
    (tmp_path / "run").mkdir()
    assert start(place, "--run_dir", str(tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert error == (
        f"training.train: {tmp_path}/run/last.pt cannot be written: No space left on device. "
        "Free space or mend permissions there, or name another place\n"
    )
    assert list((tmp_path / "run").iterdir()) == []


def test_a_finished_checkpoint_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "full.safetensors").symlink_to("/dev/full")
    with pytest.raises(
        WriteError, match=r"full\.safetensors cannot be written: No space left on device"
    ):
        save_model(tmp_path / "full.safetensors", build_random_model("ours_n0", 2), {})


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train, backbone):
        monkeypatch.setattr(module, "read_data", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(average, "load_model", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(evaluate, "operating_points", lambda *_: pytest.fail("work was done"))


@pytest.mark.usefixtures("no_work")
def test_outputs_are_refused_before_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    Path("in.safetensors").write_bytes(b"1")
    Path("link.safetensors").symlink_to("in.safetensors")
    data = ["--data", str(place / "data")]
    teacher = ["--model", "ours_n0", "--backbone", "in.safetensors", *data]
    common: list[tuple[list[str], str]] = [
        (
            ["--out", "x.pt"],
            r"x.pt: checkpoints are written as safetensors: name a file that ends in .safetensors",
        ),
        (["--out", "folder.safetensors"], "is a folder: name a file in it"),
        (["--out", "in.safetensors/x.safetensors"], "in.safetensors is not a folder"),
    ]
    same = (
        ["--out", "link.safetensors"],
        "would replace the input in.safetensors, which is link.safetensors",
    )
    runs = [*common, (["--run_dir", "in.safetensors"], "in.safetensors is not a folder")]
    for main, options, cases in (
        (train.main, teacher, [*runs, same, ([*same[0], "--pretrain", "in.safetensors"], same[1])]),
        (train.main, ["--model", "ours_n0", *data, "--labels", "in.safetensors"], [same]),
        (backbone.main, [*data, "--pretrain", "in.safetensors"], [*runs, same]),
        (average.main, ["ours_n0", "other", "in.safetensors", *data], [*common, same]),
        (
            average.main,
            ["ours_n0", "other", "another", "--backbone", "in.safetensors", *data],
            [same],
        ),
        (
            evaluate.main,
            ["-d", "x", "-m", "ours_n0"],
            [
                (["--out", "in.safetensors"], "is not a folder"),
                (["--predictions", "in.safetensors/x"], "is not a folder"),
            ],
        ),
    ):
        for more, text in cases:
            assert main([*options, *more]) == 1, (options, more)
            assert text in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "folder.safetensors",
        "in.safetensors",
        "link.safetensors",
    ]


def test_too_little_space_for_a_state_is_refused_before_the_first_epoch(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    assert start(place, "--run_dir", str(tmp_path / "run")) == 1
    assert "run has 0 bytes free" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
