"""The int8 gate: what quantising a graph costs, on images that it was not calibrated on.

An int8 encoder may give other symbols. The gate bounds what follows from them: wrong answers and
larger files. The native encoder is judged like the int8 edge graph.

Always holds: an int8 graph or a native encoder beyond these bounds is never written into a bundle.
Logits that are not finite count as no answer, and so as a wrong one.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.base import Choice
from runtime.engine.native import Native
from runtime.engine.onnxruntime import open_session

from ..graphs import Graphs
from ..images import LabelledPath, Reading
from ..link import Link
from ..parity import ParityError
from ..tables import Coder

MAX_TOP1_LOSS = 0.003
MAX_MORE_BYTES = 0.02
# Shares: of symbols that differ, and of a logit's change (see `deviation`), on any images.
MAX_CHANGED, MAX_MOVED = 0.02, 0.25
# What runs int8: the precision of the edge graph, and that of the cloud graph.
WAYS = {
    "edge": ("int8", "fp32"),
    "cloud": ("fp32", "int8"),
    "both": ("int8", "int8"),
    "native": ("native", "fp32"),
}
_FP32 = ("fp32", "fp32")
_FIXED_RATE = Link()

# From pixels to the edge graph's output, or from the cloud graph's input to logits.
Run = Callable[[NDArray[Any]], NDArray[Any]]


class GateError(RuntimeError):
    """An int8 graph is not good enough."""


@dataclass(frozen=True)
class _Outcome:
    """What the graphs give for one image.

    Attributes:
        label: its class, if that is known.
        pixels, symbols: how many it has.
        changed: how many symbols differ from those of float32, by precision of the edge graph.
        sizes: bytes of its feature file, by precision of the edge graph.
        answers: its class by precisions of edge and cloud; None where logits are not finite.
    """

    label: int | None
    pixels: int
    symbols: int
    changed: Mapping[str, int]
    sizes: Mapping[str, int]
    answers: Mapping[tuple[str, str], int | None]

    @property
    def truth(self) -> int | None:
        """The class that counts as right: without a label, that of the float32 graphs."""
        return self.answers[_FP32] if self.label is None else self.label

    def is_right(self, way: tuple[str, str]) -> bool:
        """Whether the graphs of these precisions, edge and cloud, give the right class."""
        return self.answers[way] == self.truth


def judge(
    graphs: Graphs,
    coder: Coder,
    images: Iterable[LabelledPath],
    source: str,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Compare the int8 graphs with the float32 ones on images.

    Images of a variable-rate bundle are at its checked levels in turn.

    Args:
        graphs: both ends in "fp32", one or both in "int8", and perhaps the edge in "native".
        coder: makes the feature files whose sizes are compared.
        images: files with their classes. Without classes, a change of the answer counts as a loss.
        source: says in the manifest which images these are.
        reading: by default as edge-encode reads them, without damaged ones.

    Gives what the manifest has as `int8.gate` (docs/BUNDLE.md, section 2.3).
    Raises GateError where no image can be read, DamagedImageError as `reading` does, and
    ParityError where the logits of the float32 graphs are not finite.
    """
    outcomes = list(_outcomes(graphs, coder, images, reading or Reading()))
    if not outcomes:
        raise GateError(
            "no image could be read to judge int8 by: name a folder of JPEG or PNG files"
        )
    count, labelled = len(outcomes), all(one.label is not None for one in outcomes)
    record: dict[str, Any] = {
        "images": count,
        "source": source,
        "labelled": labelled,
        "top1": sum(one.is_right(_FP32) for one in outcomes) / count if labelled else None,
    }
    if "int8" in graphs["edge"]:
        record |= _compare_symbols(outcomes, "int8")
        pixels = sum(one.pixels for one in outcomes)
        record["bpp"] = {
            precision: 8 * sum(one.sizes[precision] for one in outcomes) / pixels
            for precision in ("fp32", "int8")
        }
    for name, way in WAYS.items():
        if way in outcomes[0].answers:
            record[name] = _compare(outcomes, way)
    if "native" in record:
        record["native"] |= _compare_symbols(outcomes, "native")
    return record


def open_graph(end: str, precision: str, file: Path) -> Run:
    """Load a graph, or with "native" an edge.weights; gives what runs it on one batch."""
    if precision == "native":
        native = Native(file.read_bytes(), Choice("native", "int8"), None, 1)
        return lambda batch: next(iter(native.run(batch).values()))
    session = open_session(file)
    source = session.get_inputs()[0].name
    output = session.get_outputs()[0].name if end == "edge" else "logits"

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = session.run([output], {source: batch})[0]
        return result

    return run


def _open_all(graphs: Graphs) -> dict[str, dict[str, Run]]:
    """Every graph: end, precision -> what runs it."""
    return {
        end: {precision: open_graph(end, precision, file) for precision, file in files.items()}
        for end, files in graphs.items()
    }


def _outcomes(
    graphs: Graphs, coder: Coder, images: Iterable[LabelledPath], reading: Reading
) -> Iterator[_Outcome]:
    """Run all graphs on each image that can be read. Raises as `judge` does."""
    runs, link = _open_all(graphs), coder.link
    ways = [_FP32, *WAYS.values()]
    for index, (path, label) in enumerate(images):
        if (pixels := reading.pixels(path)) is None:
            continue
        step, (height, width) = link.steps[index % len(link.steps)], pixels.shape[:2]
        symbols = {
            precision: link.symbols(run(pixels[None]), step)
            for precision, run in runs["edge"].items()
        }
        answers: dict[tuple[str, str], int | None] = {}
        for cloud, run in runs["cloud"].items():
            edges = [edge for edge in symbols if (edge, cloud) in ways]
            batch = np.concatenate([symbols[edge] for edge in edges])
            logits = run(link.graph_input(batch, step))
            answers |= {
                (edge, cloud): _answer(row) for edge, row in zip(edges, logits, strict=True)
            }
        if answers[_FP32] is None:
            raise ParityError(
                f"float32's logits for {path} are not finite numbers: the checkpoint is broken"
            )
        yield _Outcome(
            label=label,
            pixels=height * width,
            symbols=symbols["fp32"].size,
            changed={
                precision: int((found != symbols["fp32"]).sum())
                for precision, found in symbols.items()
            },
            sizes={
                precision: len(coder.encode(one[0], height, width, step))
                for precision, one in symbols.items()
            },
            answers=answers,
        )


def _answer(logits: NDArray[np.float32]) -> int | None:
    """The class with the largest logit; None if they are not finite (argmax would take a NaN)."""
    return int(logits.argmax()) if np.isfinite(logits).all() else None


def _compare(outcomes: list[_Outcome], way: tuple[str, str]) -> dict[str, Any]:
    """How many answers int8 makes wrong and right, and the change of top-1.

    The change has a 95 % interval: paired images, normal approximation.
    """
    count = len(outcomes)
    lost = sum(one.is_right(_FP32) and not one.is_right(way) for one in outcomes)
    won = sum(one.is_right(way) and not one.is_right(_FP32) for one in outcomes)
    mean = (won - lost) / count
    half = 1.959964 * math.sqrt(max(0.0, (won + lost) / count - mean**2) / count)
    return {
        "lost": lost,
        "won": won,
        "top1_change": {"mean": mean, "low": mean - half, "high": mean + half},
    }


def _compare_symbols(outcomes: list[_Outcome], precision: str) -> dict[str, float]:
    """The share of symbols that a precision of the edge graph changes, and how files grow."""
    sizes, fp32 = (sum(one.sizes[name] for one in outcomes) for name in (precision, "fp32"))
    return {
        "symbols_changed": sum(one.changed[precision] for one in outcomes)
        / sum(one.symbols for one in outcomes),
        "more_bytes": sizes / fp32 - 1,
    }


def reasons(record: dict[str, Any], what: str) -> list[str]:
    """Why "edge" or "cloud", an int8 graph, or "native" is not good enough; empty if it is.

    `record` is what `judge` gives.
    """
    top1 = record[what]["top1_change"]["mean"]
    found = []
    if not top1 >= -MAX_TOP1_LOSS:
        found.append(f"top-1 changes by {top1:+.2%}, more than {MAX_TOP1_LOSS:.1%} down")
    if what == "cloud":
        return found
    more = (record if what == "edge" else record[what])["more_bytes"]
    if not more <= MAX_MORE_BYTES:
        found.append(f"files grow by {more:.1%}, more than {MAX_MORE_BYTES:.0%}")
    return found


def deviation(
    graphs: Graphs, images: NDArray[np.uint8], link: Link = _FIXED_RATE
) -> dict[str, float]:
    """How far each int8 graph is from the float32 one on uint8 images [N, H, W, 3].

    It is checked even for graphs that passed on other images. Edge, and native: the share of
    symbols that differ. Cloud: the largest difference of a logit, as a share of the widest gap
    between two logits of an image. Where the rate varies, the edge is compared at the level where
    most symbols differ, the highest, and the cloud in the middle. Raises GateError over MAX_CHANGED
    or MAX_MOVED.
    """
    found = {}
    runs = _open_all(graphs)
    outputs = {precision: run(images) for precision, run in runs["edge"].items()}
    symbols = {
        precision: link.symbols(output, link.steps[-1]) for precision, output in outputs.items()
    }
    for precision, name in (("int8", "edge"), ("native", "native")):
        if precision not in symbols:
            continue
        found[name] = float((symbols[precision] != symbols["fp32"]).mean())
        if not found[name] <= MAX_CHANGED:
            raise GateError(
                f"{found[name]:.2%} of the symbols are others in {precision}, over "
                f"{MAX_CHANGED:.0%}: export with --precision fp32"
            )
    middle = link.steps[len(link.steps) // 2]
    batch = link.graph_input(link.symbols(outputs["fp32"], middle), middle)
    logits = {precision: run(batch) for precision, run in runs["cloud"].items()}
    if "int8" in logits:
        if not np.isfinite([logits["int8"], logits["fp32"]]).all():
            raise GateError(
                "the int8 cloud graph gives logits that are not finite numbers: "
                "export with --precision fp32"
            )
        found["cloud"] = float(
            np.abs(logits["int8"] - logits["fp32"]).max() / np.ptp(logits["fp32"], 1).max()
        )
        if not found["cloud"] <= MAX_MOVED:
            raise GateError(
                f"a logit moves by {found['cloud']:.1%} in int8, over {MAX_MOVED:.0%}: "
                "export with --precision fp32"
            )
    return found


def milliseconds(
    graphs: Graphs, image: NDArray[np.uint8], link: Link = _FIXED_RATE, runs: int = 30
) -> dict[str, dict[str, float]]:
    """Each graph's median time for one image uint8 [1, H, W, 3]: end, precision -> milliseconds."""
    opened, step = _open_all(graphs), link.steps[-1]
    symbols = link.symbols(opened["edge"]["fp32"](image), step)
    inputs = {"edge": image, "cloud": link.graph_input(symbols, step)}
    turns = {(end, name): run for end, found in opened.items() for name, run in found.items()}
    times: dict[tuple[str, str], list[float]] = {which: [] for which in turns}
    for index in range(5 + runs):
        for (end, precision), run in turns.items():
            start = time.perf_counter()
            run(inputs[end])
            if index >= 5:  # after a warm-up
                times[end, precision].append(1e3 * (time.perf_counter() - start))
    medians = {which: round(statistics.median(values), 3) for which, values in times.items()}
    return {
        end: {precision: medians[end, precision] for precision in files}
        for end, files in graphs.items()
    }
