"""The int8 gate: what quantising a graph costs, on images that it was not calibrated on.

An int8 encoder may give other symbols. The gate bounds what follows from them: wrong answers and
larger files.

Always holds: an int8 graph beyond these bounds is never written into a bundle. Logits that are not
finite count as no answer, and so as a wrong one.
"""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
WAYS = {"edge": ("int8", "fp32"), "cloud": ("fp32", "int8"), "both": ("int8", "int8")}
_FP32 = ("fp32", "fp32")
_FIXED_RATE = Link()


class GateError(RuntimeError):
    """An int8 graph is not good enough."""


@dataclass(frozen=True)
class _Outcome:
    """What the graphs give for one image.

    Attributes:
        label: its class, if that is known.
        pixels, symbols: how many it has.
        changed: how many symbols int8 changes.
        sizes: bytes of its feature file, by precision of the edge graph.
        answers: its class by precisions of edge and cloud; None where logits are not finite.
    """

    label: int | None
    pixels: int
    symbols: int
    changed: int
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
        graphs: both ends in "fp32", and one or both in "int8".
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
        sizes = {
            precision: sum(one.sizes[precision] for one in outcomes) for precision in graphs["edge"]
        }
        pixels = sum(one.pixels for one in outcomes)
        symbols = sum(one.symbols for one in outcomes)
        record |= {
            "symbols_changed": sum(one.changed for one in outcomes) / symbols,
            "more_bytes": sizes["int8"] / sizes["fp32"] - 1,
            "bpp": {precision: 8 * size / pixels for precision, size in sizes.items()},
        }
    for name, way in WAYS.items():
        if way in outcomes[0].answers:
            record[name] = _compare(outcomes, way)
    return record


def _outcomes(
    graphs: Graphs, coder: Coder, images: Iterable[LabelledPath], reading: Reading
) -> Iterator[_Outcome]:
    """Run all graphs on each image that can be read. Raises as `judge` does."""
    sessions = {
        end: {precision: open_session(path) for precision, path in files.items()}
        for end, files in graphs.items()
    }
    link = coder.link
    for index, (path, label) in enumerate(images):
        if (pixels := reading.pixels(path)) is None:
            continue
        step = link.steps[index % len(link.steps)]
        symbols = {
            precision: link.symbols(session.run(None, {"pixels": pixels[None]})[0], step)
            for precision, session in sessions["edge"].items()
        }
        batch = np.concatenate(list(symbols.values()))
        height, width = pixels.shape[:2]
        answers = {
            (edge, cloud): _answer(row)
            for cloud, session in sessions["cloud"].items()
            for edge, row in zip(
                symbols, session.run(["logits"], link.feed(batch, step))[0], strict=True
            )
        }
        if answers[_FP32] is None:
            raise ParityError(
                f"float32's logits for {path} are not finite numbers: the checkpoint is broken"
            )
        yield _Outcome(
            label=label,
            pixels=height * width,
            symbols=batch[0].size,
            changed=int((batch[0] != batch[-1]).sum()),
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


def reasons(record: dict[str, Any], end: str) -> list[str]:
    """Why the int8 graph of an end, "edge" or "cloud", is not good enough; empty if it is.

    `record` is what `judge` gives.
    """
    top1 = record[end]["top1_change"]["mean"]
    found = []
    if not top1 >= -MAX_TOP1_LOSS:
        found.append(f"top-1 changes by {top1:+.2%}, more than {MAX_TOP1_LOSS:.1%} down")
    if end == "edge" and not record["more_bytes"] <= MAX_MORE_BYTES:
        found.append(f"files grow by {record['more_bytes']:.1%}, more than {MAX_MORE_BYTES:.0%}")
    return found


def deviation(
    graphs: Graphs, images: NDArray[np.uint8], link: Link = _FIXED_RATE
) -> dict[str, float]:
    """How far each int8 graph is from the float32 one on uint8 images [N, H, W, 3].

    It is checked even for graphs that passed on other images. Edge: the share of symbols that
    differ. Cloud: the largest difference of a logit, as a share of the widest gap between two
    logits of an image. Where the rate varies, the edge is compared at the level where most symbols
    differ, the highest, and the cloud in the middle. Raises GateError over MAX_CHANGED or
    MAX_MOVED.
    """
    found = {}
    outputs = {
        precision: open_session(path).run(None, {"pixels": images})[0]
        for precision, path in graphs["edge"].items()
    }
    if "int8" in outputs:
        symbols = {
            precision: link.symbols(output, link.steps[-1]) for precision, output in outputs.items()
        }
        found["edge"] = float((symbols["int8"] != symbols["fp32"]).mean())
        if not found["edge"] <= MAX_CHANGED:
            raise GateError(
                f"{found['edge']:.2%} of the symbols are others in int8, over {MAX_CHANGED:.0%}: "
                "export with --precision fp32"
            )
    middle = link.steps[len(link.steps) // 2]
    feed = link.feed(link.symbols(outputs["fp32"], middle), middle)
    logits = {
        precision: open_session(path).run(["logits"], feed)[0]
        for precision, path in graphs["cloud"].items()
    }
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
    sessions = {
        (end, precision): open_session(path)
        for end, files in graphs.items()
        for precision, path in files.items()
    }
    step = link.steps[-1]
    symbols = link.symbols(sessions["edge", "fp32"].run(None, {"pixels": image})[0], step)
    inputs = {"edge": {"pixels": image}, "cloud": link.feed(symbols, step)}
    times: dict[tuple[str, str], list[float]] = {which: [] for which in sessions}
    for index in range(5 + runs):
        for (end, precision), session in sessions.items():
            start = time.perf_counter()
            session.run(None, inputs[end])
            if index >= 5:  # after a warm-up
                times[end, precision].append(1e3 * (time.perf_counter() - start))
    medians = {which: round(statistics.median(values), 3) for which, values in times.items()}
    return {
        end: {precision: medians[end, precision] for precision in files}
        for end, files in graphs.items()
    }
