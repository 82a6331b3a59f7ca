"""Shares of correct answers, their differences and their intervals; means and percentiles."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # half the width of a 95 % interval, in standard deviations


def wilson(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, scale = correct / count, 1 + Z * Z / count
    middle = (share + Z * Z / (2 * count)) / scale
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / scale
    return middle - half, middle + half


def share_of(correct: Sequence[bool]) -> dict[str, float]:
    """The share of correct answers, and its 95 % interval."""
    low, high = wilson(sum(correct), len(correct))
    return {"share": sum(correct) / len(correct), "low": low, "high": high}


def paired(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, float]:
    """Difference of two shares on the same images, and its 95 % interval (normal approximation)."""
    difference: NDArray[np.float64] = ours.astype(float) - theirs
    half = Z * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, 5th and 95th percentile."""
    return {
        "mean": float(np.mean(values)),
        "p5": float(np.percentile(values, 5)),
        "p95": float(np.percentile(values, 95)),
    }
