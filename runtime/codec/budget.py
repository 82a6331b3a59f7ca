"""How large a variable-rate feature file becomes: what a caller asks for, and the search for it.

The edge graph runs once for an image. `LatentCoder` then scales, rounds and codes its latent as
often as a search needs, which takes about a tenth of a millisecond each time. Bytes grow nearly
exponentially with the step, so a search interpolates their logarithm; they jump a little where
other tables begin.

Always holds: a size is measured on the finished file, never estimated. A search tries at most
`_MAX_TRIES` steps, and then at most eight numbers of channels.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BudgetTooSmallError, RateError
from .bundle import Bundle
from .feature_file import MAX_LEVEL, MAX_STEP, Profile
from .rates import step_of

_GROWTH = 0.01  # of ln(bytes) in a step, until two steps have been tried
_FILLED = 0.98  # a file of at least this part of the allowed bytes is not searched any further
_MAX_TRIES = 6
_INTERPOLATED = 3  # tries, after which the steps in question are halved


@dataclass(frozen=True)
class Budget:
    """What a caller asks for of a variable-rate bundle; None where nothing is asked for.

    Attributes:
        rate: the level, 0 to 15; steps are sixteenths, and the nearest one is taken.
        max_bytes: the most bytes of each file. With `rate`, a file has a lower level only where
            this needs it. Without `rate` or `target_bytes`, the highest level that fits is taken.
        target_bytes: what a stream of files shall have on average.

    Raises RateError for values out of range, and for `rate` together with `target_bytes`.
    """

    rate: float | None = None
    max_bytes: int | None = None
    target_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 <= self.rate <= MAX_LEVEL:  # true of NaN
            raise RateError(f"a rate level of {self.rate}: levels are from 0 to {MAX_LEVEL}")
        for name in ("max_bytes", "target_bytes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise RateError(f"{name} is {value}: ask for 1 byte or more")
        if self.rate is not None and self.target_bytes is not None:
            raise RateError(
                "rate and target_bytes each choose the level: ask for one of both, "
                "with max_bytes or without"
            )

    @property
    def is_set(self) -> bool:
        """Whether anything is asked for."""
        return self != Budget()

    def allows(self, step: int, size: int, kept: int | None = None) -> bool:
        """Whether a file of a step and of `size` bytes, cut if `kept` is given, can be of it."""
        fits = self.max_bytes is None or size <= self.max_bytes
        if self.rate is None:
            return fits
        top = step_of(self.rate)
        lower = self.max_bytes is not None and (step < top or kept is not None)
        return fits and (lower or (step == top and kept is None))


class LatentCoder:
    """One image's latent, coded at any step.

    Args:
        bundle: a variable-rate bundle.
        latent: float32 [C, H', W'] of an image of height x width pixels.
        profile: of the feature files.
    """

    def __init__(
        self,
        bundle: Bundle,
        latent: NDArray[np.float32],
        height: int,
        width: int,
        profile: Profile,
    ):
        assert bundle.variable is not None
        self._bundle, self._latent, self._profile = bundle, latent, profile
        self._rates = bundle.variable.rates
        self._most_kept = bundle.variable.most_kept
        self._height, self._width = height, width

    def of_budget(self, budget: Budget) -> bytes:
        """The feature file of a budget without `target_bytes`.

        Raises NotANumberError, BudgetTooSmallError.
        """
        if budget.max_bytes is not None:
            top = MAX_STEP if budget.rate is None else step_of(budget.rate)
            return self.within(budget.max_bytes, top)
        return self.at(self._bundle.default_step if budget.rate is None else step_of(budget.rate))

    def at(self, step: int) -> bytes:
        """The feature file of a step, 0 to 240. Raises NotANumberError."""
        return self._file(self._rates.symbols(self._latent, step), step)

    def within(self, max_bytes: int, top: int = MAX_STEP) -> bytes:
        """A file of at most so many bytes, of a step as high as a short search finds.

        `top` is the highest step to take, 0 to 240. Where even step 0 has too many bytes, as many
        channels are kept as fit. Raises BudgetTooSmallError, NotANumberError.
        """
        return self._search(max_bytes, top)[0] or self._cut(max_bytes)

    def about(self, target: float) -> tuple[bytes, int]:
        """A whole file of at most so many bytes if there is one, else of step 0; and its step."""
        found, step = self._search(target, MAX_STEP)
        return (found, step) if found else (self.at(0), 0)

    def _search(self, max_bytes: float, top: int) -> tuple[bytes, int]:
        """The file of a high step that has at most so many bytes, and the step; b"" for none."""
        sizes: dict[int, int] = {}
        found, low, over = b"", -1, top + 1  # `low` fits; `over` does not, or is not allowed
        # A level that was asked for mostly fits.
        step = self._bundle.default_step if top == MAX_STEP else top
        for left in reversed(range(_MAX_TRIES)):
            data = self.at(step)
            sizes[step] = len(data)
            if len(data) <= max_bytes:
                found, low = data, step
            else:
                over = step
            if over - low <= 1 or len(found) >= _FILLED * max_bytes:
                break
            # The last try is the step that is most likely to fit, unless one does already.
            step = 0 if left == 1 and low < 0 else _next_step(sizes, max_bytes, low, over)
        return found, low

    def _cut(self, max_bytes: int) -> bytes:
        """A file of level 0 with as many channels as fit. Raises as `within`."""
        symbols = self._rates.symbols(self._latent, 0)
        found = self._file(symbols, 0, kept=0)
        if len(found) > max_bytes:
            raise BudgetTooSmallError(
                f"{max_bytes} bytes are too few: a feature file of {self._width}x{self._height} "
                f"pixels has at least {len(found)}, allow so many"
            )
        low, over = 0, self._most_kept + 1
        while over - low > 1:
            kept = (low + over) // 2
            data = self._file(symbols, 0, kept)
            if len(data) <= max_bytes:
                found, low = data, kept
            else:
                over = kept
        return found

    def _file(self, symbols: NDArray[np.int16], step: int, kept: int | None = None) -> bytes:
        return self._bundle.encode(symbols, self._height, self._width, self._profile, step, kept)


def _next_step(sizes: dict[int, int], max_bytes: float, low: int, over: int) -> int:
    """The step between `low` and `over`, both excluded, to try next.

    Args:
        sizes: bytes of the steps that were tried; at least one.
    """
    if low in sizes and over in sizes:
        if len(sizes) > _INTERPOLATED:  # bytes jump somewhere in between
            return (low + over) // 2
        best, other = low, over
    else:
        best, *others = sorted(sizes, key=lambda step: abs(math.log(sizes[step] / max_bytes)))
        other = others[0] if others else best
    growth = _GROWTH
    if other != best:
        slope = math.log(sizes[other] / sizes[best]) / (other - best)
        growth = min(max(slope, _GROWTH / 8), 8 * _GROWTH)
    guess = best + math.log(max_bytes / sizes[best]) / growth
    return min(max(math.floor(guess), low + 1), over - 1)
