"""A run's state after its last whole epoch, `last.pt`: writing it, and resuming from it.

The state holds the identity of the run (its recipe, and what data and weights it started from), the
number of epochs behind it, their log, the model, the optimizer, and the moving average with --ema.

Always holds: a state is resumed only by a run of the same identity. Data and weights are identified
by content, so a run may be moved, and they may be too. A state that is refused is left as it is.
"""

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .command import TrainingError
from .files import atomic_file
from .options import INPUTS, recipe
from .weights import CheckpointError, load_plain

_REMEDY = "give another --run_dir, or remove the file to start over"


class StateError(TrainingError):
    """`last.pt` is not a state that this run can resume from."""


@dataclass(frozen=True)
class Learner:
    """What training changes: the model, its optimizer and, with --ema, its moving average."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None

    @property
    def result(self) -> nn.Module:
        """What is measured and kept: the moving average if there is one, otherwise the model."""
        return self.average.module if self.average else self.model


def summarise_files(root: Path, files: Sequence[Path], classes: int) -> str:
    """Images as a run's identity records them: their number, and a hash of the names in `root`."""
    names = sorted(os.path.relpath(file, root) for file in files)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(names)} files of {classes} classes, names {digest[:16]}"


def identity_of(args: argparse.Namespace, processes: int, data: str) -> dict[str, str]:
    """What makes two runs the same: recipe, data (as `summarise_files` says) and weights.

    Raises OSError if a file of weights cannot be read.
    """
    found = recipe(args, processes) | {"data": data}
    for key in INPUTS[1:]:
        given = getattr(args, key, None)
        if isinstance(given, list):
            found[key] = ", ".join(map(_by_content, given))
        elif hasattr(args, key):
            found[key] = _by_content(given)
    return found


def _by_content(given: str | Path | None) -> str:
    """A file as its hash, anything else as its text."""
    if given is None or not Path(given).is_file():
        return str(given)
    with open(given, "rb") as opened:
        return f"sha256 {hashlib.file_digest(opened, 'sha256').hexdigest()}"


def save(file: Path, identity: dict[str, str], log: list[dict[str, Any]], learner: Learner) -> None:
    """Replace `last.pt` by the state after the last epoch of `log`. Raises WriteError."""
    state = {"recipe": identity, "epoch": len(log), "log": log}
    state |= {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}
    if learner.average:
        state["average"] = learner.average.state_dict()
    with atomic_file(file) as opened:
        torch.save(state, opened)


def resume(
    file: Path, identity: dict[str, str], args: argparse.Namespace, epochs: int, learner: Learner
) -> list[dict[str, Any]]:
    """Load a state into `learner`; returns the log, which has a record for each epoch behind it.

    `epochs` is the number that the whole run has. Raises StateError, OSError.
    """
    try:
        state = load_plain(file)
    except CheckpointError as error:
        raise StateError(f"{error}; or {_REMEDY}") from error
    recorded = state.get("recipe") if isinstance(state, dict) else None
    if not isinstance(recorded, dict):
        raise _refusal(file, "is not a state of training.train or training.backbone")
    _refuse_other_run(file, recorded, identity, args)
    epoch, log = state.get("epoch"), state.get("log")
    has_log = isinstance(log, list) and all(
        isinstance(record, dict) and "epoch" in record for record in log
    )
    if not isinstance(epoch, int) or not has_log or not 0 < epoch == len(log) <= epochs:
        raise _refusal(file, "has no log of its epochs")
    try:
        _load(state, learner)
    # torch and Python raise different errors for what is missing, is not a dict, or does not fit.
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise _refusal(file, f"is of another model or version ({what[:200]})") from error
    return log


def _refusal(file: Path, why: str) -> StateError:
    return StateError(f"{file} {why}: {_REMEDY}")


def _refuse_other_run(
    file: Path, recorded: Mapping[Any, Any], identity: dict[str, str], args: argparse.Namespace
) -> None:
    """Raise StateError if the state's identity is not this run's."""
    # States of earlier versions record inputs by path.
    paths = {
        key: (str(value), str(Path(value).resolve()))
        for key in INPUTS
        if isinstance(value := getattr(args, key, None), str | Path)
    }
    other = [
        f"{key} {recorded.get(key)} and not {identity.get(key)}"
        for key in sorted({*map(str, recorded), *identity})
        if recorded.get(key) != identity.get(key) and recorded.get(key) not in paths.get(key, ())
    ]
    if other:
        raise StateError(
            f"{file} is of a run with other options ({', '.join(other)}): "
            f"give those again, {_REMEDY}"
        )


def _load(state: dict[str, Any], learner: Learner) -> None:
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    if learner.average:
        learner.average.load_state_dict(state["average"])
    for parameter, slots in learner.optimizer.state.items():
        if any(
            isinstance(slot, Tensor) and slot.ndim and slot.shape != parameter.shape
            for slot in slots.values()
        ):
            raise ValueError("the optimizer's state is of other shapes")
