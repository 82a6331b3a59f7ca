"""Rate levels: rates.json, and the scaling of latents and symbols that it says.

A variable-rate bundle has 16 whole levels, 0 (the fewest bytes) to 15, and everything between them
in steps of a sixteenth. At a step, the latent is scaled channel by channel by a gain before it is
rounded, and the symbols by an inverse gain before the cloud graph takes them:

    symbols = round_half_even(latent * gain)          values = symbols * inverse_gain

Between two whole levels, the logarithm of a gain is interpolated linearly. The `order` lists the
channels in the order in which a cut file keeps them.

Always holds: gains are positive and finite, symbols are in -32767..32767, and a latent that is not
finite becomes no symbol.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NotANumberError, RatesError
from . import _coder, strict_json
from .feature_file import MAX_LEVEL, MAX_STEP, STEPS_PER_LEVEL

LEVELS = MAX_LEVEL + 1  # whole levels
MAX_GAIN = 1e6

Floats = NDArray[np.float32]


def step_of(level: float) -> int:
    """The step, 0 to 240, that is nearest to a level from 0 to 15."""
    return min(max(round(level * STEPS_PER_LEVEL), 0), MAX_STEP)


def whole_level(step: int) -> int:
    """The whole level, 0 to 15, whose entropy tables code the symbols of a step."""
    return (step + STEPS_PER_LEVEL // 2) // STEPS_PER_LEVEL


class Rates:
    """Gains for every step, and the order of the channels. Does not change.

    Args:
        gains, inverse_gains: for each whole level, a number for each channel; over 0 and at most
            1e6 as float32.
        order: every channel's number, 0 to C-1, once.

    Attributes:
        gains, inverse_gains: float32 [16, C]. order: int32 [C]. All are read-only.

    Raises RatesError.
    """

    def __init__(self, gains: Any, inverse_gains: Any, order: Sequence[int]):
        self.order = _order(order)
        self.gains = _gains(gains, "gains", len(self.order))
        self.inverse_gains = _gains(inverse_gains, "inverse_gains", len(self.order))
        self._gains = _between(self.gains)
        self._inverse_gains = _between(self.inverse_gains)
        for array in (self.order, self.gains, self.inverse_gains):
            array.setflags(write=False)

    @property
    def channels(self) -> int:
        """How many channels the latent has."""
        return len(self.order)

    def gain(self, step: int) -> Floats:
        """What the latent is multiplied by at a step, 0 to 240: float32 [C, 1, 1]."""
        return self._gains[step][:, None, None]

    def inverse_gain(self, step: int) -> Floats:
        """What symbols are multiplied by at a step, 0 to 240: float32 [C, 1, 1]."""
        return self._inverse_gains[step][:, None, None]

    def symbols(self, latent: Floats, step: int) -> NDArray[np.int16]:
        """Scale and round a latent float32 [C, H', W'] at a step, 0 to 240.

        Returns int16 of the same shape, -32767 to 32767; larger values are clipped. Raises
        NotANumberError for a latent that is not finite.
        """
        symbols = np.empty(latent.shape, np.int16)
        if not _coder.quantise(np.ascontiguousarray(latent), self._gains[step], symbols):
            raise NotANumberError(
                "the edge graph computed a latent that is not a finite number: "
                "the checkpoint is broken, export another"
            )
        return symbols

    def values(self, symbols: NDArray[np.int16], step: int) -> Floats:
        """What the cloud graph takes: symbols int16 [C, H', W'] of a step -> float32, as large."""
        values: Floats = symbols * self.inverse_gain(step)
        return values

    def to_bytes(self) -> bytes:
        """The values in binary form, as edge.tables has them and the fingerprint covers."""
        return (
            self.gains.astype("<f4").tobytes()
            + self.inverse_gains.astype("<f4").tobytes()
            + self.order.astype("<i4").tobytes()
        )

    def to_json(self) -> bytes:
        """The contents of rates.json; `from_json` reads the same values back."""

        def rows(gains: Floats) -> str:
            # The shortest decimal that gives the same float32, as a double has more digits.
            lines = (", ".join(str(value) for value in row) for row in gains)
            return ",".join(f"\n  [{line}]" for line in lines)

        return (
            f'{{"levels": {LEVELS},\n "gains": [{rows(self.gains)}],\n'
            f' "inverse_gains": [{rows(self.inverse_gains)}],\n'
            f' "order": {json.dumps(self.order.tolist(), allow_nan=False)}}}\n'
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Rates":
        """Rates from the contents of rates.json. Raises RatesError."""
        try:
            content = strict_json.loads(text)
            levels = content["levels"]
            gains, inverse_gains, order = (
                content[name] for name in ("gains", "inverse_gains", "order")
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RatesError(
                f"rates.json is not understood ({error!r}): export the bundle again"
            ) from error
        if levels != LEVELS:
            raise RatesError(
                f"rates.json has {levels!r} levels, this release reads {LEVELS}: "
                "export the bundle again"
            )
        return cls(gains, inverse_gains, order)


def _order(order: Sequence[int]) -> NDArray[np.int32]:
    try:
        found = np.array(order)
        good = found.ndim == 1 and found.dtype.kind == "i" and found.size > 0
    except (ValueError, OverflowError):
        good = False
    if not good or not np.array_equal(np.sort(found), np.arange(found.size)):
        raise RatesError(
            f"rates.json has the order {str(order)[:40]}, which does not list every channel once: "
            "export the bundle again"
        )
    return found.astype(np.int32)


def _gains(rows: Any, name: str, channels: int) -> Floats:
    try:
        found = np.array(rows)
        good = found.shape == (LEVELS, channels) and found.dtype.kind in "fi"
    except (ValueError, OverflowError):
        good = False
    if not good:
        raise RatesError(
            f"rates.json has {name} that are not {LEVELS} rows of {channels} numbers: "
            "export the bundle again"
        )
    with np.errstate(over="ignore"):  # infinity is refused below
        gains = found.astype(np.float32)
    wrong = ~((gains > 0) & (gains <= MAX_GAIN))  # true of NaN
    if wrong.any():
        level, channel = np.argwhere(wrong)[0]
        raise RatesError(
            f"rates.json has {gains[level, channel]} among the {name}, channel {channel} of level "
            f"{level}: they are over 0 and at most {MAX_GAIN:g}; export the bundle again"
        )
    return gains


def _between(gains: Floats) -> Floats:
    """Gains of all steps, [241, C]; those of whole levels are as they were given."""
    steps = np.arange(MAX_STEP + 1)
    below = np.minimum(steps // STEPS_PER_LEVEL, MAX_LEVEL - 1)
    share = (steps / STEPS_PER_LEVEL - below)[:, None]
    logs = np.log(gains.astype(np.float64))
    found = np.exp(logs[below] * (1 - share) + logs[below + 1] * share).astype(np.float32)
    found[::STEPS_PER_LEVEL] = gains
    return found
