"""Time to encode one 224x224 RGB image, entropy coding included: the paper's measure.

    python benchmarks/latency.py [--threads N] [--json]

From a uint8 array to the bytes of a plain feature file, by stage. Where torch and CompressAI are
installed, the pipeline of the reference (torch encoder, CompressAI's EntropyBottleneck.compress)
runs from the same array in the same process, in turn with ours, and the ratio is printed. ours_n4
has trained weights; the others have random ones until they are trained, and are labelled so.
Bundles that are missing are exported first.

Always holds: every timed feature file is compared with the first of its run, and that one with
torch's symbols; a benchmark whose output is wrong stops.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cores, describe
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.bundle import MANIFEST, SCHEMA
from runtime.errors import EdgeCloudError

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

PROJECT = Path(__file__).resolve().parent.parent
# Intel 10700K, 8 cores, torch and CompressAI: the authors' readme.
PUBLISHED_MS = {"ours_n0": 3.95, "ours_n4": 6.70, "ours_n8": 10.2, "matsubara2022wacv": None}
TRAINED = ("ours_n4",)
WARM_UP = 20


class BenchmarkError(RuntimeError):
    """An output is wrong, or something that the benchmark needs is missing."""


def bundle_of(model: str) -> Path:
    return Path("bundles") / model if model in TRAINED else Path("bundles") / "random" / model


def load_torch_model(model: str) -> "FeatureCompressionModel":
    from export.__main__ import find_checkpoint
    from training.checkpoint import load_model
    from training.models import build_random_model

    return load_model(find_checkpoint(model, "1.28"), model)[0] if model in TRAINED else build_random_model(model)


def _is_current(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and json.loads((folder / MANIFEST).read_text()).get("schema") == SCHEMA


def make_bundle(model: str) -> Path:
    """The model's bundle, exported now if it is not there, or is an older release's."""
    folder = bundle_of(model)
    if not _is_current(folder):
        if not find_spec("torch"):
            raise BenchmarkError(f"no bundle in {folder} and no torch to export one: pip install '.[export]'")
        print(f"exporting {folder}", file=sys.stderr)
        if model in TRAINED:
            from export.__main__ import main as export_main

            if export_main([model, "--out", str(folder)]):
                raise BenchmarkError(f"{folder} could not be exported")
        else:
            from export.bundle import write_bundle
            from export.images import synthetic_images

            torch_model = load_torch_model(model)
            labels = [f"class {index}" for index in range(torch_model.fc.out_features)]
            write_bundle(folder, torch_model, model, "none", labels, synthetic_images(), "synthetic images", weights="random")
    return folder


def reference_pipeline(model: str, threads: int) -> Callable[[NDArray[np.uint8]], tuple[bytes, Callable[[], NDArray[np.int32]]]]:
    """The reference's encoder: torch from the uint8 array, then CompressAI's compress.

    Gives the stream, and a way to have the symbols, which is not part of what is timed.
    """
    import torch

    from training.data import MEAN, STD

    torch.set_num_threads(threads)
    bottleneck = load_torch_model(model).bottleneck_layer
    bottleneck.entropy_bottleneck.update(force=True)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def encode(pixels: NDArray[np.uint8]) -> tuple[bytes, Callable[[], NDArray[np.int32]]]:
        image = torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0).float().div(255)
        latent = bottleneck.encoder((image - mean) / std)
        payload = bottleneck.entropy_bottleneck.compress(latent)[0]
        return payload, lambda: (latent[0] - bottleneck.medians).round().to(torch.int32).numpy()

    return encode


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, 95th percentile, and the middle half."""
    milliseconds = sorted(1e3 * value for value in seconds)
    low, _, high = statistics.quantiles(milliseconds, n=4)
    return {
        "median": statistics.median(milliseconds),
        "p95": statistics.quantiles(milliseconds, n=20)[-1],
        "quartile_low": low,
        "quartile_high": high,
    }


def measure(model: str, pixels: NDArray[np.uint8], threads: int, runs: int, with_torch: bool) -> dict[str, Any]:
    """One row: ours and the reference pipeline in turn, `runs` times after the warm-up."""
    folder = make_bundle(model)
    encoder = EdgeEncoder(folder, threads, small=False)
    reference = reference_pipeline(model, threads) if with_torch else None
    first = encoder.encode(pixels, as_is=True)
    times: dict[str, list[float]] = {"graph": [], "coder": [], "total": [], "torch": []}
    if reference:
        expected = reference(pixels)[1]()
        symbols = CloudDecoder(folder, threads).symbols(first)
        # A latent on the border of two symbols may fall either way.
        if (symbols != expected).mean() > 1e-4:
            raise BenchmarkError(f"{model}: the feature file does not hold torch's symbols")
    for run in range(WARM_UP + runs):
        clock = [time.perf_counter()]
        graph_symbols = encoder.symbols(pixels[None])[0]
        clock.append(time.perf_counter())
        staged = encoder.pack(graph_symbols, *pixels.shape[:2])
        clock.append(time.perf_counter())
        whole = encoder.encode(pixels, as_is=True)
        clock.append(time.perf_counter())
        if reference:
            reference(pixels)
            clock.append(time.perf_counter())
        if staged != first or whole != first:
            raise BenchmarkError(f"{model}: run {run} gives another feature file than the first")
        if run >= WARM_UP:
            for name, before, after in zip(times, clock, clock[1:], strict=False):
                times[name].append(after - before)
    manifest = encoder.bundle.manifest
    row: dict[str, Any] = {
        "model": model,
        "weights": manifest["weights"],
        "bytes": len(first),
        "graph_ms": summary(times["graph"]),
        "coder_ms": summary(times["coder"]),
        "total_ms": summary(times["total"]),
        "published_ms": PUBLISHED_MS[model],
    }
    if reference:
        ratios = sorted(theirs / ours for theirs, ours in zip(times["torch"], times["total"], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        row["torch_ms"] = summary(times["torch"])
        row["ratio"] = {"median": middle, "quartile_low": low, "quartile_high": high}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | weights | bytes | graph ms | coder ms | total ms | p95 | published ms | torch + CompressAI ms | ratio (quartiles) |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        theirs = f"{row['torch_ms']['median']:.2f}" if "torch_ms" in row else "-"
        ratio = "{median:.1f} ({quartile_low:.1f} to {quartile_high:.1f})".format(**row["ratio"]) if "ratio" in row else "-"
        published = row["published_ms"] or "-"
        lines.append(
            f"| {row['model']} | {row['weights']} | {row['bytes']} | {row['graph_ms']['median']:.2f} | {row['coder_ms']['median']:.3f} "
            f"| {row['total_ms']['median']:.2f} | {row['total_ms']['p95']:.2f} | {published} | {theirs} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="of both pipelines (default: one a core)")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="timed runs of each model (default: 200)")
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED_MS), choices=list(PUBLISHED_MS), metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    args = parser.parse_args()
    if args.threads < 1 or args.runs < 20:
        parser.error("--threads begins at 1 and --runs at 20")
    with_torch = bool(find_spec("torch") and find_spec("compressai"))
    from PIL import Image

    from runtime.preprocess import preprocess

    pixels = preprocess(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"))
    machine = describe(args.threads)
    try:
        rows = []
        for model in args.models:
            print(f"timing {model}", file=sys.stderr)
            rows.append(measure(model, pixels, args.threads, args.runs, with_torch))
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"benchmark": "latency", "machine": machine, "runs": args.runs, "rows": rows}, indent=1))
        return 0
    instructions = ", ".join(machine["instructions"])  # type: ignore[arg-type]
    print(f"{machine['processor']} ({instructions}), {args.threads} of {machine['cores']} cores")
    print(f"one 224x224 image, {args.runs} runs in turn, medians\n")
    print(table(rows))
    if not with_torch:
        print("torch or CompressAI is not installed: nothing to compare with")
    return 0


if __name__ == "__main__":
    sys.exit(main())
