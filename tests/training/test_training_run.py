"""The training loop as another kind of training uses it: images of several sources, no labels."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from training.command import TrainingError
from training.folders import Damage
from training.log import panels
from training.options import add_run_options
from training.run import Training, run_epochs
from training.team import Team


class Noise(Dataset):
    """`count` random images of `side` pixels, of a class that means nothing."""

    def __init__(self, count: int, side: int):
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, self.side, self.side), 0


def options(run: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_run_options(parser, 1, 2, "32:2,64:2", 0.0, 0.08)
    return parser.parse_args(
        ["--data", "x", "--run_dir", str(run), "--workers", "0", "--no-amp", *more]
    )


def start(run: Path, *more: str, seen: list[float] | None = None) -> nn.Module:
    """Train a convolution to give its input: 6 images, from two datasets, for four epochs."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor, done: float) -> dict[str, Tensor]:
        if seen is not None:
            seen.append(done)
        difference = ((model(images) - images) ** 2).mean()
        return {"loss": difference * (1 - done), "difference": difference}

    training = Training(
        data="6 images of noise",
        images=lambda side: ConcatDataset([Noise(4, side), Noise(2, side)]),
        loss=loss,
        judge=lambda model: {"cosine": 0.5, "estimated_bpp": 1.5},
    )
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    team = Team(0, 1, torch.device("cpu"))
    return run_epochs(options(run, *more), team, run, training, model, optimizer, Damage(False))


def test_a_run_without_labels_on_several_datasets(tmp_path: Path) -> None:
    seen: list[float] = []
    start(tmp_path, seen=seen)
    assert seen == pytest.approx([step / 12 for step in range(12)])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["size"] for record in log] == [32, 32, 64, 64]
    assert log[-1]["difference"] < log[0]["difference"]
    assert log[-1]["held_out_cosine"] == 0.5
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["recipe"]["data"] == "6 images of noise"
    assert sorted(state) == ["epoch", "log", "model", "optimizer", "recipe"]


def test_a_resumed_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(tmp_path / "whole")
    saves: list[int] = []

    def interrupt(*_: object) -> None:
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("training.run.write_log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped")
    monkeypatch.undo()
    seen: list[float] = []
    resumed = start(tmp_path / "stopped", seen=seen)
    assert seen == pytest.approx([step / 12 for step in range(6, 12)])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_too_few_images_are_counted_from_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="6 images do not fill one batch of 7"):
        start(tmp_path, "--batch_size", "7")
    with pytest.raises(TrainingError, match="leave out --resume to start"):
        start(tmp_path, "--resume", "x")


def test_the_plot_shows_whatever_the_records_hold() -> None:
    first = {"epoch": 1, "of": 2, "size": 64, "loss": 2.0, "bpp": 1.0, "seconds": 1.0}
    second = first | {"cosine": 0.5, "left_out": 1, "held_out_top1": 0.5}
    assert panels(
        [first, second | {"held_out_estimated_bpp": 1, "held_out_feature_cosine": 0}]
    ) == {
        "loss": ["loss", "cosine"],
        "estimated bpp": ["bpp", "held_out_estimated_bpp"],
        "held-out top1": ["held_out_top1"],
        "held-out feature cosine": ["held_out_feature_cosine"],
    }
