"""How times are taken and summed up: in turn, and as medians with their spread.

On a shared machine the speed changes from one second to the next. So whatever is compared runs in
turn, and ratios are of times that were taken in the same turn.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import BenchmarkError


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and middle half of two or more values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times `ours` goes into `theirs`: quartiles of the ratios, pair by pair."""
    return quartiles([a / b for a, b in zip(theirs, ours, strict=True)])


def show(entry: Mapping[str, float], form: str = ".1f") -> str:
    """Quartiles as text: `2.0 (1.9 to 2.2)`."""
    low, high = format(entry["quartile_low"], form), format(entry["quartile_high"], form)
    return f"{entry['median']:{form}} ({low} to {high})"


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile and quartiles of two or more times, in milliseconds."""
    values = sorted(1e3 * value for value in seconds)
    hundredths = statistics.quantiles(values, n=100)
    return {"p95": hundredths[94], "p99": hundredths[98], **quartiles(values)}


def in_turn(
    parts: Mapping[str, Callable[[], Any]],
    runs: int,
    warm_up: int,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each part in each of `runs` turns, after `warm_up` turns that do not count.

    Raises BenchmarkError if a part gives another output than `expected` has for it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(warm_up + runs):
        for name, part in parts.items():
            start = time.perf_counter()
            output = part()
            seconds[name].append(time.perf_counter() - start)
            if expected is not None and output != expected[name]:
                raise BenchmarkError(f"{name}: run {turn} gives another output than the first")
    return {name: values[warm_up:] for name, values in seconds.items()}
