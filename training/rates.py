"""Rate levels and rate weights: what a variable-rate model is trained for.

A fixed-rate model is trained for one rate weight, lmb. A variable-rate model is trained for a range
of them, one for each rate level from 0 (the fewest bytes) to 15, in a geometric series. The text of
a range is "0.16-20.48"; checkpoints and bundles carry it as their lmb.

Always holds: a larger level has a smaller weight. Commands read this before torch is imported.
"""

import argparse
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from .command import TrainingError, number

LEVELS = 16
TOP_LEVEL = LEVELS - 1
MEASURED_LEVELS = (0, 5, 10, 15)  # at which held-out images are measured
MOST_LMB = 1_000_000
_LEAST_LMB = 0.0001  # of a range
_ONE = number(float, 0, MOST_LMB)
_END = number(float, _LEAST_LMB, MOST_LMB)

F = TypeVar("F")  # a float, or a tensor of them


@dataclass(frozen=True)
class LmbRange:
    """The rate weights of a variable-rate model, from `least` at level 15 to `most` at level 0."""

    least: float = 0.16
    most: float = 20.48

    def at(self, level: F) -> F:
        """The rate weight of a level, or of a tensor of levels, from 0 to 15."""
        return self.most * (self.least / self.most) ** (level / TOP_LEVEL)  # type: ignore

    def level_of(self, lmb: float) -> float:
        """The level of a rate weight, within 15 levels below 0 or above 15.

        Raises ValueError for a weight that is not above 0.
        """
        if not lmb > 0:
            raise ValueError(f"{lmb:g} is the weight of no level")
        level = TOP_LEVEL * math.log(lmb / self.most) / math.log(self.least / self.most)
        return min(max(round(level, 6), -TOP_LEVEL), 2 * TOP_LEVEL)

    def __str__(self) -> str:
        return f"{self.least:g}-{self.most:g}"


Lmb = float | LmbRange


def parse_lmb(text: str) -> Lmb:
    """'1.28' -> 1.28, '0.16-20.48' -> LmbRange(0.16, 20.48). Raises argparse.ArgumentTypeError."""
    with suppress(argparse.ArgumentTypeError):
        if "-" not in text[1:]:
            return _ONE(text)
        least, _, most = text.partition("-")
        if _END(least) < _END(most):
            return LmbRange(_END(least), _END(most))
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a number from 0 to {MOST_LMB:,} "
        f"nor a range LEAST-MOST of numbers from {_LEAST_LMB} on"
    )


def lmb_text(lmb: Lmb) -> str:
    """A rate weight or a range of them, as checkpoints and file names have it."""
    return str(lmb) if isinstance(lmb, LmbRange) else f"{lmb:g}"


def settle_lmb(lmb: Lmb | None, variable_rate: bool, usual: float) -> Lmb:
    """The rate weight of a run, from what its options say (None: nothing).

    Without an option a fixed-rate model has the `usual` weight. Raises TrainingError for a range
    where one weight is needed, and the other way round.
    """
    if lmb is None:
        return LmbRange() if variable_rate else usual
    if isinstance(lmb, LmbRange) == variable_rate:
        return lmb
    raise TrainingError(
        f"a variable-rate model has a range of rate weights, such as {LmbRange()}, not {lmb:g}"
        if not isinstance(lmb, LmbRange)
        else f"{lmb} is a range of rate weights, for variable-rate models: give one number"
    )
