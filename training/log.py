"""The log of a run: a record per epoch, as lines of JSON, as curves, and sent to a tracker.

A record has the epoch, the means of the loss terms, the held-out measures (`held_out_...`), how
many images were left out, and the seconds that it took.

Always holds: log.jsonl and log.png show the records of the run's state, no more and no fewer.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .command import TrainingError
from .files import atomic_file, write_atomically

HELD_OUT = "held_out_"
_NO_CURVES = {"epoch", "of", "size", "left_out", "seconds"}

Record = dict[str, Any]


def to_line(record: Record) -> str:
    """A record as JSON, with null for NaN and the infinities, which JSON does not have."""
    return json.dumps(
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
    )


def write_log(run: Path, log: list[Record]) -> None:
    """Write `log.jsonl` and `log.png` into the folder `run`. Raises WriteError."""
    write_atomically(run / "log.jsonl", "".join(to_line(record) + "\n" for record in log).encode())
    from matplotlib.figure import Figure

    shown = panels(log)
    figure = Figure(figsize=(4.5 * len(shown), 3.5), layout="constrained")
    all_axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, keys) in zip(all_axes, shown.items(), strict=True):
        for key in keys:
            points = [(record["epoch"], record[key]) for record in log if key in record]
            axes.plot(*zip(*points, strict=True), marker=".", label=key)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_file(run / "log.png") as file:
        figure.savefig(file, format="png", dpi=110)


def panels(log: list[Record]) -> dict[str, list[str]]:
    """The panels of log.png: title -> keys of the records, one curve each.

    Loss terms share a panel, and each held-out measure has its own, with a curve for each rate
    level (`..._level5`). Rates, whose names end in "bpp", share one, so that training and held-out
    images can be compared.
    """
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for record in log for key in record if key not in _NO_CURVES):
        measure = re.sub(r"_level\d+", "", key)
        if measure.endswith("bpp"):
            title = "estimated bpp"
        elif key.startswith(HELD_OUT):
            title = f"held-out {measure.removeprefix(HELD_OUT).replace('_', ' ')}"
        else:
            title = "loss"
        found.setdefault(title, []).append(key)
    return found


def tracker(args: argparse.Namespace) -> Callable[[Record], object]:
    """A function that sends a record to Weights & Biases, or does nothing if that is disabled.

    Raises TrainingError if the package is missing.
    """
    if args.wbmode == "disabled":
        return lambda record: None
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise TrainingError(
            f"--wbmode {args.wbmode} needs Weights & Biases: pip install wandb"
        ) from error
    settings = {key: str(value) for key, value in vars(args).items()}
    return wandb.init(
        project=args.wbproject, group=args.wbgroup, mode=args.wbmode, config=settings
    ).log
