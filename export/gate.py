"""The int8 gate: what quantising a graph costs, on images that it was not calibrated on.

A quantised encoder gives other symbols, and that is allowed; what must not change is what comes of them.

Always holds: an int8 graph that loses more than these bounds is never written into a bundle; logits that are not
finite are no answer, and all that int8 can do with them is lose.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.codec.manifest import STANDARD, Preprocessing
from runtime.engine.onnxruntime import open_session
from training.folders import Damage

from .images import pixels_of
from .parity import ParityError

MAX_TOP1_LOSS = 0.003
MAX_MORE_BYTES = 0.02
MAX_CHANGED, MAX_MOVED = 0.02, 0.25  # of the symbols, and of a logit, on whatever images export has
Encode = Callable[[NDArray[np.int16], int, int], bytes]


class GateError(RuntimeError):
    """An int8 graph is not good enough."""


Graphs = dict[
    str, dict[str, Path]
]  # end, precision -> file: {"edge": {"fp32": ..., "int8": ...}, "cloud": {"fp32": ...}}


def judge(
    graphs: Graphs,
    encode: Encode,
    images: Iterable[tuple[Path, int | None]],
    as_is: bool,
    source: str,
    damage: Damage | None = None,
    rule: Preprocessing = STANDARD,
) -> dict[str, Any]:
    """The float32 and the int8 graphs on the same images, as the manifest records it.

    Args:
        graphs: both ends in "fp32", and one or both in "int8".
        encode: symbols, height, width -> feature file.
        images: files, each with its class, or None for all; without classes a change of the first choice counts as a loss.

    Gives "symbols_changed" and "more_bytes", shares, and "bpp" of both precisions, where there is an int8 edge graph;
    for "edge" (in int8, the cloud in float32), "cloud" and "both": "lost" and "won", images whose answer int8 makes
    wrong and right, and "top1_change" with its 95 % interval (paired, normal approximation); "top1" of float32.
    `damage` is told of images that cannot be read, which are left out. Raises GateError where none is left,
    DamagedImageError where `damage` does, and ParityError where float32's logits are not finite.
    """
    damage = damage or Damage(skip=True)
    sessions = {
        end: {precision: open_session(path) for precision, path in files.items()}
        for end, files in graphs.items()
    }
    ways = {"edge": ("int8", "fp32"), "cloud": ("fp32", "int8"), "both": ("int8", "int8")}
    ways = {
        way: (edge, cloud)
        for way, (edge, cloud) in ways.items()
        if edge in graphs["edge"] and cloud in graphs["cloud"]
    }
    lost, won = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    count = right = changed = symbols_seen = pixels_seen = 0
    sizes = dict.fromkeys(graphs["edge"], 0)
    labelled = True
    for path, label in images:
        if (pixels := pixels_of(path, as_is, damage, rule)) is None:
            continue
        count += 1
        pixels_seen += pixels.shape[0] * pixels.shape[1]
        symbols = {
            precision: session.run(None, {"pixels": pixels[None]})[0]
            for precision, session in sessions["edge"].items()
        }
        both = np.concatenate(list(symbols.values()))
        changed += int((both[0] != both[-1]).sum())
        symbols_seen += both[0].size
        for precision, one in symbols.items():
            sizes[precision] += len(encode(one[0], *pixels.shape[:2]))
        chosen = {
            (edge, cloud): _choice(row)
            for cloud, session in sessions["cloud"].items()
            for edge, row in zip(symbols, session.run(None, {"symbols": both})[0], strict=True)
        }
        first = chosen["fp32", "fp32"]
        if first is None:
            raise ParityError(
                f"float32's logits for {path} are not finite numbers: the checkpoint is broken"
            )
        labelled &= label is not None
        truth = first if label is None else label
        right += first == truth
        for way, which in ways.items():
            lost[way] += first == truth != chosen[which]
            won[way] += chosen[which] == truth != first
    if not count:
        raise GateError(
            "no image could be read to judge int8 by: name a folder of JPEG or PNG files"
        )
    record: dict[str, Any] = {
        "images": count,
        "source": source,
        "labelled": labelled,
        "top1": right / count if labelled else None,
    }
    if "int8" in sizes:
        record |= {
            "symbols_changed": changed / symbols_seen,
            "more_bytes": sizes["int8"] / sizes["fp32"] - 1,
        }
        record |= {"bpp": {precision: 8 * size / pixels_seen for precision, size in sizes.items()}}
    for way in ways:
        mean = (won[way] - lost[way]) / count
        half = 1.959964 * math.sqrt(max(0.0, (won[way] + lost[way]) / count - mean**2) / count)
        record[way] = {
            "lost": lost[way],
            "won": won[way],
            "top1_change": {"mean": mean, "low": mean - half, "high": mean + half},
        }
    return record


def _choice(logits: NDArray[np.float32]) -> int | None:
    """The place of the largest, which argmax would take a NaN for; None where there is none."""
    return int(logits.argmax()) if np.isfinite(logits).all() else None


def reasons(record: dict[str, Any], end: str) -> list[str]:
    """Why what `judge` found of the int8 graph of an end, "edge" or "cloud", is not good enough; empty if it is."""
    top1 = record[end]["top1_change"]["mean"]
    found = []
    if not top1 >= -MAX_TOP1_LOSS:
        found.append(f"top-1 changes by {top1:+.2%}, more than {MAX_TOP1_LOSS:.1%} down")
    if end == "edge" and not record["more_bytes"] <= MAX_MORE_BYTES:
        found.append(f"files grow by {record['more_bytes']:.1%}, more than {MAX_MORE_BYTES:.0%}")
    return found


def strays(graphs: Graphs, images: NDArray[np.uint8]) -> dict[str, float]:
    """How far each int8 graph is from float32's on uint8 [N, H, W, 3], whoever has judged it elsewhere.

    Edge: the share of symbols that differ; cloud: the largest difference of a logit, as a share of the
    widest gap between two logits. Raises GateError over MAX_CHANGED and MAX_MOVED.
    """
    found = {}
    symbols = {
        precision: open_session(path).run(None, {"pixels": images})[0]
        for precision, path in graphs["edge"].items()
    }
    if "int8" in symbols:
        found["edge"] = float((symbols["int8"] != symbols["fp32"]).mean())
        if not found["edge"] <= MAX_CHANGED:
            raise GateError(
                f"{found['edge']:.2%} of the symbols are others in int8, over {MAX_CHANGED:.0%}: export with --precision fp32"
            )
    logits = {
        precision: open_session(path).run(None, {"symbols": symbols["fp32"]})[0]
        for precision, path in graphs["cloud"].items()
    }
    if "int8" in logits:
        if not np.isfinite([logits["int8"], logits["fp32"]]).all():
            raise GateError(
                "the int8 cloud graph gives logits that are not finite numbers: export with --precision fp32"
            )
        found["cloud"] = float(
            np.abs(logits["int8"] - logits["fp32"]).max() / np.ptp(logits["fp32"], 1).max()
        )
        if not found["cloud"] <= MAX_MOVED:
            raise GateError(
                f"a logit moves by {found['cloud']:.1%} in int8, over {MAX_MOVED:.0%}: export with --precision fp32"
            )
    return found


def milliseconds(
    graphs: Graphs, image: NDArray[np.uint8], runs: int = 30
) -> dict[str, dict[str, float]]:
    """Each graph's median time for one image uint8 [1, H, W, 3], in turn; end, precision -> milliseconds."""
    sessions = {
        (end, precision): open_session(path)
        for end, files in graphs.items()
        for precision, path in files.items()
    }
    inputs = {
        "edge": {"pixels": image},
        "cloud": {"symbols": sessions["edge", "fp32"].run(None, {"pixels": image})[0]},
    }
    times: dict[tuple[str, str], list[float]] = {which: [] for which in sessions}
    for index in range(5 + runs):
        for (end, precision), session in sessions.items():
            start = time.perf_counter()
            session.run(None, inputs[end])
            if index >= 5:
                times[end, precision].append(1e3 * (time.perf_counter() - start))
    medians = {which: round(statistics.median(values), 3) for which, values in times.items()}
    return {
        end: {precision: medians[end, precision] for precision in files}
        for end, files in graphs.items()
    }
