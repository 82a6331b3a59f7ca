"""Time to encode one image, entropy coding included, beside the reference pipeline.

    python benchmarks/latency.py [--threads N] [--models MODEL...] [--json] [--keep]
    python benchmarks/latency.py --draw        # the figure again, from the kept record

What is timed is the paper's measure: from a uint8 array of 224x224 to the bytes of a feature
file. For each model, every engine that is installed here takes turns with the reference pipeline
(torch's encoder, CompressAI's EntropyBottleneck.compress), unmodified and as fast as torch
allows (reference.py). Ratios are to the unmodified one. Three more figures put these in context:
a 1920x1080 JPEG and `edge-encode` as a fresh process (latency_files.py), and the floor: the
encoder's multiply-adds over this machine's float32 matrix product.

Feature files are plain. Coding the same symbols small is timed too where a bundle has context
tables.

Always holds: every timed feature file equals the first one of its engine, whose symbols are
compared with torch's; a wrong output stops the benchmark.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine
from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    add_threads_option,
    as_json,
    header,
    markdown,
    new_parser,
    progress,
    read_record,
    write_record,
)
from benchmarks.latency_files import file_table, measure_files
from benchmarks.models import CHECKPOINTS, load_torch_model, make_bundle, weights_of
from benchmarks.reference import multiply_adds, peak_multiply_adds, reference_pipelines
from benchmarks.timing import milliseconds, ratios, show
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.codec.feature_file import Profile
from runtime.engine.base import Choice
from runtime.engine.registry import SAFE, candidates
from runtime.engine.tune import MAX_CHANGED
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

# Intel 10700K, 8 cores, torch and CompressAI: from the authors' readme.
PUBLISHED_MS = {"ours_n0": 3.95, "ours_n4": 6.70, "ours_n8": 10.2, "matsubara2022wacv": None}
WARM_UP = 20
# In float32 too, a latent halfway between two symbols may be rounded either way.
MAX_CHANGED_FP32 = 1e-4
# Of the figure: Okabe and Ito's for engines, which colour-blind readers can tell apart, and greys.
ENGINE_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")
GREYS = ("#999999", "#555555", "#cccccc")


@dataclass
class _Engine:
    """One engine: its encoder, the file that every run must give, and the seconds of every run."""

    name: str
    encoder: EdgeEncoder
    expected: bytes
    total: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)
    coder: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    small_bytes: int = 0

    def encode(self, pixels: NDArray[np.uint8]) -> None:
        """Time one call that does everything."""
        start = time.perf_counter()
        data = self.encoder.encode(pixels, as_is=True)
        self.total.append(time.perf_counter() - start)
        self._check(data)

    def encode_in_stages(self, pixels: NDArray[np.uint8]) -> None:
        """Time graph and coder one after the other, and coding the same symbols small."""
        height, width = pixels.shape[:2]
        start = time.perf_counter()
        symbols = self.encoder.symbols(pixels[None])[0]
        graph_end = time.perf_counter()
        data = self.encoder.encode_symbols(symbols, height, width)
        coder_end = time.perf_counter()
        self.graph.append(graph_end - start)
        self.coder.append(coder_end - graph_end)
        self._check(data)
        bundle = self.encoder.bundle
        if bundle.tables.contexts:
            start = time.perf_counter()
            small = bundle.encode(symbols, height, width, Profile.CONTEXT)
            self.small.append(time.perf_counter() - start)
            self.small_bytes = len(small)

    def _check(self, data: bytes) -> None:
        if data != self.expected:
            raise BenchmarkError(f"{self.name} gives another feature file than in its first run")


def measure(
    model: str, pixels: NDArray[np.uint8], threads: int, runs: int, with_torch: bool
) -> list[dict[str, Any]]:
    """A row for each engine of a model; pixels are uint8 [224, 224, 3].

    All engines and the reference pipelines take turns, `runs` times after the warm-up. Raises
    BenchmarkError and EdgeCloudErrors.
    """
    folder = make_bundle(model)
    engines = _engines(folder, pixels, threads)
    torch_model = load_torch_model(model) if with_torch else None
    pipelines = reference_pipelines(torch_model, threads) if torch_model else {}
    if pipelines:
        expected = pipelines["torch"](pixels)[1]()
    else:
        expected = engines[0].encoder.symbols(pixels[None])[0]
    changed = _symbols_changed(model, folder, engines, expected)
    reference: dict[str, list[float]] = {name: [] for name in pipelines}
    for run in range(WARM_UP + runs):
        for engine in engines:
            # The first of the two calls finds the caches full of another engine's data: they
            # take turns at being first.
            calls = (engine.encode_in_stages, engine.encode)
            for call in calls if run % 2 == 0 else reversed(calls):
                call(pixels)
        for name, encode in pipelines.items():
            start = time.perf_counter()
            encode(pixels)
            reference[name].append(time.perf_counter() - start)
    return [_row(model, engine, changed[engine.name], reference, torch_model) for engine in engines]


def _engines(folder: Path, pixels: NDArray[np.uint8], threads: int) -> list[_Engine]:
    """Every engine that is installed here and in the bundle, the safe one first."""
    engines = []
    for choice in dict.fromkeys((SAFE, *candidates(Bundle.load(folder), "edge"))):
        encoder = EdgeEncoder(
            folder,
            threads,
            profile=Profile.STATIC,
            provider=choice.provider,
            precision=choice.precision,
        )
        engines.append(_Engine(str(choice), encoder, encoder.encode(pixels, as_is=True)))
    return engines


def _symbols_changed(
    model: str, folder: Path, engines: list[_Engine], expected: NDArray[np.int32]
) -> dict[str, float]:
    """The share of symbols that differ from the expected ones, by engine. Raises BenchmarkError."""
    decoder = CloudDecoder(folder, provider="cpu", precision="fp32")
    changed = {}
    for engine in engines:
        share = float((decoder.symbols(engine.expected) != expected).mean())
        if not share <= (MAX_CHANGED_FP32 if engine.name.endswith("fp32") else MAX_CHANGED):
            raise BenchmarkError(
                f"{model}: {share:.3%} of the symbols of {engine.name} are not torch's"
            )
        changed[engine.name] = share
    return changed


def _row(
    model: str,
    engine: _Engine,
    changed: float,
    reference: dict[str, list[float]],
    torch_model: "FeatureCompressionModel | None",
) -> dict[str, Any]:
    total = engine.total[WARM_UP:]
    small = engine.small[WARM_UP:]
    row: dict[str, Any] = {
        "model": model,
        "engine": engine.name,
        "weights": weights_of(model),
        "bytes": len(engine.expected),
        "symbols_changed": changed,
        "graph_ms": milliseconds(engine.graph[WARM_UP:]),
        "coder_ms": milliseconds(engine.coder[WARM_UP:]),
        "total_ms": milliseconds(total),
        "small": {"bytes": engine.small_bytes, "coder_ms": milliseconds(small)} if small else None,
        "published_ms": PUBLISHED_MS.get(model),
        "multiply_adds": multiply_adds(torch_model) if torch_model else None,
    }
    if reference:
        plain, tuned = reference["torch"][WARM_UP:], reference["torch tuned"][WARM_UP:]
        row |= {
            "torch_ms": milliseconds(plain),
            "torch_tuned_ms": milliseconds(tuned),
            "ratio": ratios(plain, total),
            "ratio_to_tuned": ratios(tuned, total),
        }
    return row


def table(rows: list[dict[str, Any]], peak: float | None) -> str:
    """The rows as a Markdown table; `peak` is the machine's multiply-adds a second."""
    heads = ["model", "engine", "bytes", "graph ms", "coder ms", "total ms", "p95", "p99"]
    heads += ["torch + CompressAI ms", "ratio (quartiles)", "tuned torch ms", "published ms"]
    heads += ["floor ms", "small: bytes, coder ms"]
    return markdown(heads, [_cells(row, peak) for row in rows], align="ll")


def _cells(row: dict[str, Any], peak: float | None) -> list[str]:
    with_torch, small = "torch_ms" in row, row["small"]
    floor = 1e3 * row["multiply_adds"] / peak if peak and row["multiply_adds"] else None
    return [
        row["model"] + ("" if row["weights"].startswith("trained") else " (random)"),
        row["engine"],
        str(row["bytes"]),
        f"{row['graph_ms']['median']:.2f}",
        f"{row['coder_ms']['median']:.3f}",
        *(f"{row['total_ms'][key]:.2f}" for key in ("median", "p95", "p99")),
        f"{row['torch_ms']['median']:.2f}" if with_torch else "-",
        show(row["ratio"]) if with_torch else "-",
        f"{row['torch_tuned_ms']['median']:.2f}" if with_torch else "-",
        str(row["published_ms"] or "-"),
        "-" if floor is None else f"{floor:.2f}",
        f"{small['bytes']}, {small['coder_ms']['median']:.3f}" if small else "-",
    ]


def draw(record: dict[str, Any], file: Path) -> None:
    """Bars for each model: its engines, the reference, and what is published; as a PNG."""
    from matplotlib.figure import Figure

    rows = record["rows"]
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    series: dict[str, dict[str, float | None]] = {name: {} for name in engines}
    for row in rows:
        series[row["engine"]][row["model"]] = row["total_ms"]["median"]
    first = {row["model"]: row for row in reversed(rows)}
    for name, key in (("torch tuned", "torch_tuned_ms"), ("torch", "torch_ms")):
        series[f"{name} + CompressAI"] = {
            model: row[key]["median"] for model, row in first.items() if key in row
        }
    series["published, 8 cores"] = {model: row["published_ms"] for model, row in first.items()}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = [*(ENGINE_COLOURS * len(engines))[: len(engines)], *GREYS]
    for index, (name, values) in enumerate(series.items()):
        offset = 0.85 * ((index + 0.5) / len(series) - 0.5)
        found = [(models.index(model) + offset, ms) for model, ms in values.items() if ms]
        if not found:
            continue
        at, heights = zip(*found, strict=True)
        bars = axes.bar(at, heights, width=0.8 / len(series), color=colours[index], label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(models)), models)
    axes.set_ylabel("ms from a 224x224 array to a feature file")
    axes.set_title(_where(record), fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(file, format="png", dpi=110)


def _where(record: dict[str, Any]) -> str:
    found = record["machine"]
    return f"{machine.title(found)}, {found['threads']} of {found['cores']} cores"


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    add_threads_option(parser, "all pipelines")
    add_runs_option(parser, "model", default=200, least=20)
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(CHECKPOINTS),
        choices=list(CHECKPOINTS),
        metavar="MODEL",
        help="default: all",
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw latency.png again, from latency.json"
    )
    add_output_options(parser, keep="latency.json and .png")
    return parser


def _measure_all(args: argparse.Namespace, with_torch: bool) -> dict[str, Any]:
    record = {**header("latency", args.threads), "runs": args.runs}
    pixels = preprocess(Image.open(PICTURE))
    rows: list[dict[str, Any]] = []
    for model in args.models:
        progress(f"timing {model}")
        rows += measure(model, pixels, args.threads, args.runs, with_torch)
    progress("timing files and processes")
    for row in rows:
        choice = Choice(*row["engine"].split())
        row["file"] = measure_files(row["model"], args.threads, max(20, args.runs // 5), choice)
    peak = peak_multiply_adds(args.threads) if with_torch else None
    return {**record, "peak_multiply_adds": peak, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    with_torch = bool(find_spec("torch") and find_spec("compressai"))
    try:
        record = read_record("latency") if args.draw else _measure_all(args, with_torch)
        if args.keep:
            write_record(RESULTS / "latency.json", record)
        if args.keep or args.draw:
            draw(record, RESULTS / "latency.png")
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(as_json(record))
        return 0
    print(f"{_where(record)}\none 224x224 image, {record['runs']} runs in turn, medians\n")
    print(table(record["rows"], record["peak_multiply_adds"]))
    size = record["rows"][0]["file"]["jpeg_bytes"]
    print(f"\none 1920x1080 JPEG of {size:,} bytes, medians\n\n{file_table(record['rows'])}")
    if not with_torch:
        print("torch or CompressAI is not installed: nothing to compare with")
    return 0


if __name__ == "__main__":
    sys.exit(main())
