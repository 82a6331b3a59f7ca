"""Rate-accuracy curves: operating points, Pareto fronts, and what is read off them.

Always holds: nothing is extrapolated. A reading is None where the curve does not reach the
value, or two curves do not overlap. Readings are rounded, to hundredths of a byte and millionths
of a share, so that they are the same on every processor: logarithms differ in their last bits.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np

CODECS = ("JPEG", "WEBP", "AVIF")  # curves of image codecs; all others are of models


@dataclass(frozen=True)
class Point:
    """An operating point; `name` is what sets the rate: a model's lmb, or a codec's quality."""

    name: str
    bpp: float
    bytes: float
    top1: float


@dataclass(frozen=True)
class Curves:
    """Points by curve, in order of rate; the teacher's top-1 and name; how many images.

    `own_teachers` has the top-1 of the teachers of curves that have another one.
    """

    points: dict[str, list[Point]]
    teacher: float
    teacher_name: str
    images: int
    own_teachers: dict[str, float] = field(default_factory=dict)


def pareto(points: list[Point]) -> list[Point]:
    """The Pareto front: points with a higher top-1 than all cheaper ones, in order of rate."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bpp, -point.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


def bytes_at(points: list[Point], top1: float) -> float | None:
    """Bytes an image that a curve needs for a top-1; None if all points lie below or above."""
    front = pareto(points)
    if not front or not front[0].top1 <= top1 <= front[-1].top1:
        return None
    sizes = np.log([point.bytes for point in front])
    return round(float(np.exp(np.interp(top1, [point.top1 for point in front], sizes))), 2)


def bytes_enough(points: list[Point], top1: float) -> float | None:
    """Bytes of the cheapest point that reaches a top-1: an upper bound; None if no point does."""
    return min((point.bytes for point in points if point.top1 >= top1), default=None)


def top1_at(points: list[Point], bpp: float) -> float | None:
    """A curve's top-1 at a rate; None beyond its ends."""
    front = pareto(points)
    if not front or not front[0].bpp <= bpp <= front[-1].bpp:
        return None
    rates = np.log([point.bpp for point in front])
    return round(float(np.interp(np.log(bpp), rates, [point.top1 for point in front])), 6)


def bd_rate(points: list[Point], anchor: list[Point]) -> float | None:
    """Mean change of the rate against the anchor at equal top-1, as a share.

    None for a curve of one point, and for curves that share no top-1.
    """
    import bjontegaard

    ours, theirs = pareto(points), pareto(anchor)
    if min(len(ours), len(theirs)) < 2:
        return None
    if min(ours[-1].top1, theirs[-1].top1) <= max(ours[0].top1, theirs[0].top1):
        return None
    with warnings.catch_warnings():
        # It warns of a small overlap, which docs/benchmarks.md states.
        warnings.simplefilter("ignore")
        percent = bjontegaard.bd_rate(
            [point.bpp for point in theirs],
            [point.top1 for point in theirs],
            [point.bpp for point in ours],
            [point.top1 for point in ours],
            method="pchip",
            require_matching_points=False,
        )
    return round(float(percent) / 100, 6) if np.isfinite(percent) else None
