"""The int8 gate: what quantising the edge graph costs, on images that it was not calibrated on.

A quantised encoder gives other symbols, and that is allowed; what must not change is what comes of them.

Always holds: an int8 graph that loses more than these bounds is never written into a bundle.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtime.engine import NO_VNNI, has_vnni
from runtime.errors import ImageError
from runtime.preprocess import preprocess

MAX_TOP1_LOSS = 0.003
MAX_MORE_BYTES = 0.02
MAX_CHANGED = 0.02  # of the symbols, where there are no images to judge by
Encode = Callable[[NDArray[np.int16], int, int], bytes]


class GateError(RuntimeError):
    """An int8 graph is not good enough."""


def open_session(graph: Path) -> ort.InferenceSession:
    """On the CPU, with one thread a core that sleeps when idle."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_vnni():
        options.add_session_config_entry(*NO_VNNI)
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def judge(
    fp32: Path, int8: Path, cloud: Path, encode: Encode, images: Iterable[tuple[Path, int | None]], as_is: bool, source: str
) -> dict[str, Any]:
    """Both edge graphs on the same images, as the manifest records it.

    Args:
        encode: symbols, height, width -> feature file.
        images: files, each with its class, or None for all; without classes a change of the first choice counts as a loss.

    Gives shares: "symbols_changed"; "more_bytes"; "lost" and "won", images whose answer int8 makes wrong
    and right; "top1_change" with its 95 % interval (paired, normal approximation). Files that are no images are passed over.
    """
    edges, tail = [open_session(fp32), open_session(int8)], open_session(cloud)
    changed = symbols_seen = count = lost = won = 0
    sizes = [0, 0]
    labelled = True
    for path, label in images:
        try:
            pixels = preprocess(path, as_is)
        except ImageError:
            continue
        symbols = [edge.run(None, {"pixels": pixels[None]})[0] for edge in edges]
        count += 1
        changed += int((symbols[0] != symbols[1]).sum())
        symbols_seen += symbols[0].size
        for index, one in enumerate(symbols):
            sizes[index] += len(encode(one[0], *pixels.shape[:2]))
        first, second = (int(row.argmax()) for row in tail.run(None, {"symbols": np.concatenate(symbols)})[0])
        labelled &= label is not None
        truth = first if label is None else label
        lost += first == truth != second
        won += second == truth != first
    if not count:
        raise GateError("no image could be read to judge int8 by: name a folder of JPEG or PNG files")
    mean = (won - lost) / count
    half = 1.959964 * math.sqrt(max(0.0, (won + lost) / count - mean**2) / count)
    return {
        "images": count,
        "source": source,
        "labelled": labelled,
        "symbols_changed": changed / symbols_seen,
        "more_bytes": sizes[1] / sizes[0] - 1,
        "lost": lost,
        "won": won,
        "top1_change": {"mean": mean, "low": mean - half, "high": mean + half},
    }


def reasons(record: dict[str, Any]) -> list[str]:
    """Why what `judge` found is not good enough; empty if it is."""
    top1, more = record["top1_change"]["mean"], record["more_bytes"]
    found = []
    if not top1 >= -MAX_TOP1_LOSS:
        found.append(f"top-1 changes by {top1:+.2%}, more than {MAX_TOP1_LOSS:.1%} down")
    if not more <= MAX_MORE_BYTES:
        found.append(f"files grow by {more:.1%}, more than {MAX_MORE_BYTES:.0%}")
    return found


def changed_share(fp32: Path, int8: Path, images: NDArray[np.uint8]) -> float:
    """The share of symbols that differ on uint8 [N, H, W, 3]; raises GateError over MAX_CHANGED."""
    symbols = [open_session(graph).run(None, {"pixels": images})[0] for graph in (fp32, int8)]
    share = float((symbols[0] != symbols[1]).mean())
    if share > MAX_CHANGED:
        raise GateError(f"{share:.2%} of the symbols are others in int8, more than {MAX_CHANGED:.0%}: export with --precision fp32")
    return share


def milliseconds(graphs: dict[str, Path], image: NDArray[np.uint8], runs: int = 30) -> dict[str, float]:
    """Each graph's median time for one image uint8 [1, H, W, 3], in turn."""
    sessions = {name: open_session(graph) for name, graph in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for index in range(5 + runs):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"pixels": image})
            if index >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}
