"""Calibration: the ranges of both graphs of a checkpoint, taken on real images.

A range is wider than that of the average image, by a margin. At the edge it is fixed. In the cloud
it is chosen for each checkpoint, as the one with which int8 moves the logits least: around a GELU
values are rounded to two grids, and the ratio of their steps decides whether the errors cancel or
add up. The margin changes that ratio in no regular way: for ours_n4 the worst of these margins
moves the logits 3.5 times as much as the best, in mean square. --calibrate prints such figures.

Always holds: the images that the margin is chosen on are among those that the ranges are of.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from runtime.engine.onnxruntime import open_session
from training.command import progress, say

from ..images import Reading
from ..link import Link
from .quantise import NothingToQuantiseError, quantise
from .ranges import CALIBRATION_IMAGES, MARGIN, Calibration, Ranges, take_ranges

_CLOUD_MARGINS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4)
# Every seventh image has a part in the choice: 7 and the number of levels have no common factor.
_CHOICE_STRIDE = 7


def calibrate(
    graphs: dict[str, Path],
    sha256: dict[str, str],
    paths: Sequence[Path],
    reading: Reading,
    source: str,
    link: Link,
) -> Calibration:
    """Take the ranges of both graphs on up to CALIBRATION_IMAGES of the images.

    Args:
        graphs, sha256: the float32 graph and the hash of its weights, for "edge" and "cloud".
        source: says in the manifest which images these are.
        link: what lies between the graphs; the cloud is fed at its steps in turn.

    Raises RangesError, and DamagedImageError as `reading` does.
    """
    if len(paths) > CALIBRATION_IMAGES:
        paths = [
            paths[index * len(paths) // CALIBRATION_IMAGES] for index in range(CALIBRATION_IMAGES)
        ]
    pixels = _read(progress(paths, "calibrating the edge"), reading)
    edge, images = take_ranges(graphs["edge"], pixels, sha256["edge"], MARGIN)
    encoder = open_session(graphs["edge"])
    choice = []

    def inputs() -> Iterator[NDArray[np.generic]]:
        for index, one in enumerate(_read(progress(paths, "calibrating the cloud"), reading)):
            step = link.steps[index % len(link.steps)]
            symbols = link.symbols(encoder.run(None, {"pixels": one})[0], step)
            batch = link.graph_input(symbols, step)
            if index % _CHOICE_STRIDE == 0:
                choice.append(batch)
            yield batch

    narrow, _ = take_ranges(graphs["cloud"], inputs(), sha256["cloud"], 1)
    return Calibration(images, source, edge, widened(graphs["cloud"], narrow, choice))


def _read(paths: Iterable[Path], reading: Reading) -> Iterator[NDArray[np.uint8]]:
    """Batches of one image, uint8 [1, H, W, 3]."""
    for path in paths:
        if (pixels := reading.pixels(path)) is not None:
            yield pixels[None]


def widened(graph: Path, narrow: Ranges, inputs: Sequence[NDArray[np.generic]]) -> Ranges:
    """A cloud graph's ranges with the margin that moves the logits least in int8.

    Args:
        graph: the float32 graph.
        narrow: its ranges without a margin.
        inputs: batches of its input.

    How far the logits move is the mean square of their changes, as a share of the variance of the
    image's logits, averaged over images. Logits that are not finite count as infinitely far.
    """
    float_logits = _logits(graph, inputs)
    scale = [float(np.var(rows)) or 1.0 for rows in float_logits]
    moved = {}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        for margin in progress(_CLOUD_MARGINS, "choosing the cloud's margin"):
            try:
                quantise(graph, narrow.times(margin), narrow.sha256, out)
            except NothingToQuantiseError:
                return narrow.times(MARGIN)
            changes = zip(_logits(out, inputs), float_logits, scale, strict=True)
            mean = np.mean([np.square(new - old).mean() / by for new, old, by in changes])
            moved[margin] = float(mean) if np.isfinite(mean) else math.inf
    best = min(moved, key=lambda margin: moved[margin])
    say(
        f"export: the cloud's ranges are {best - 1:.0%} wider than the average image's: int8 moves "
        f"the logits by {moved[best]:.2e} of their variance ({max(moved.values()):.2e} with the "
        f"worst of {len(moved)} margins)",
        sys.stderr,
    )
    return narrow.times(best)


def _logits(graph: Path, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.float64]]:
    """A cloud graph's logits float64 [N, K] for each batch of its input."""
    session = open_session(graph)
    name = session.get_inputs()[0].name
    return [session.run(["logits"], {name: batch})[0].astype(np.float64) for batch in inputs]
