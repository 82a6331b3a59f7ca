"""Time to encode one image, entropy coding included, beside the reference pipeline.

    python benchmarks/latency.py [--threads N] [--models MODEL...] [--json] [--keep]

The paper's measure is from a uint8 array of 224x224 to the bytes of a feature file. For each model, every
engine that is installed here runs in turn with the pipeline of the reference (torch encoder,
CompressAI's EntropyBottleneck.compress), unmodified, and with the same pipeline as fast as torch
allows (channels last, no gradients, bfloat16 where the processor has it); ratios are of the unmodified one. Besides, for each of them: a
1920x1080 JPEG, with what decoding and resizing take of it, and `edge-encode` of that as a fresh process; and the floor, which is the
encoder's multiply-adds over what this machine's matrix product does in float32.

Weights are trained ones where the project has them (ours_n0 and ours_n8 have their `_enc` form's), else random
and labelled so. Bundles that are missing are exported first. Files are plain; what coding them small takes stands
beside, where a bundle has context tables.

Always holds: every timed feature file is compared with the first of its run, and its symbols with torch's; a
benchmark whose output is wrong stops.
"""

import argparse
import copy
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import commit, cores, describe
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.codec import strict_json
from runtime.codec.bundle import MANIFEST, Bundle
from runtime.codec.feature_file import Profile
from runtime.codec.manifest import SCHEMA
from runtime.engine.base import Choice
from runtime.engine.registry import SAFE, candidates
from runtime.engine.tune import MAX_CHANGED
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import load_image, preprocess
from runtime.options import number

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
# Intel 10700K, 8 cores, torch and CompressAI: the authors' readme.
PUBLISHED_MS = {"ours_n0": 3.95, "ours_n4": 6.70, "ours_n8": 10.2, "matsubara2022wacv": None}
# Which checkpoint a row's weights come from.
CHECKPOINTS = {
    "ours_n0": "ours_n0_enc",
    "ours_n4": "ours_n4",
    "ours_n8": "ours_n8_enc",
    "matsubara2022wacv": "matsubara2022wacv",
}
WARM_UP = 20


class BenchmarkError(RuntimeError):
    """An output is wrong, or something that the benchmark needs is missing."""


def trained(model: str) -> bool:
    """Whether the checkpoint of the model's row is there."""
    return (PROJECT / "checkpoints" / CHECKPOINTS[model] / "lmb1.28.safetensors").is_file()


def bundle_of(model: str) -> Path:
    return (
        Path("bundles") / CHECKPOINTS[model]
        if trained(model)
        else Path("bundles") / "random" / model
    )


def load_torch_model(model: str) -> "FeatureCompressionModel":
    from export.checkpoint import find_checkpoint
    from training.checkpoint import load_model
    from training.models import build_random_model

    if not trained(model):
        return build_random_model(model)
    return load_model(find_checkpoint(CHECKPOINTS[model], "1.28"), CHECKPOINTS[model])[0]


def _is_current(folder: Path) -> bool:
    manifest = (
        strict_json.loads((folder / MANIFEST).read_text()) if (folder / MANIFEST).is_file() else {}
    )
    return manifest.get("schema") == SCHEMA


def make_bundle(model: str) -> Path:
    """The model's bundle, exported now if it is not there, or is an older release's."""
    folder = bundle_of(model)
    if not _is_current(folder):
        if not find_spec("torch"):
            raise BenchmarkError(
                f"no bundle in {folder} and no torch to export one: pip install '.[export]'"
            )
        print(f"exporting {folder}", file=sys.stderr)
        if trained(model):
            from export.cli import main as export_main

            if export_main([CHECKPOINTS[model], "--out", str(folder)]):
                raise BenchmarkError(f"{folder} could not be exported")
        else:
            from export.stages import write_bundle
            from export.states import Inputs

            torch_model = load_torch_model(model)
            labels = [f"class {index}" for index in range(torch_model.fc.out_features)]
            write_bundle(
                Inputs(
                    out=folder,
                    name=model,
                    model=torch_model,
                    lmb="none",
                    labels=labels,
                    weights="random",
                )
            )
    return folder


Pipeline = Callable[[NDArray[np.uint8]], tuple[bytes, Callable[[], NDArray[np.int32]]]]


def reference_pipelines(model: "FeatureCompressionModel", threads: int) -> dict[str, Pipeline]:
    """The reference's encoder, from the uint8 array by torch and CompressAI: "torch" as it is, "tuned" as fast as torch allows.

    Each gives the stream, and a way to have the symbols, which is not part of what is timed.
    """
    import torch

    from training.data import MEAN, STD

    torch.set_num_threads(threads)
    bfloat16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(describe(threads)["instructions"])  # type: ignore[arg-type]
    bottleneck = model.bottleneck_layer
    bottleneck.entropy_bottleneck.update(force=True)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))

    def pipeline(tuned: bool) -> Pipeline:
        encoder = (
            copy.deepcopy(bottleneck.encoder).to(memory_format=torch.channels_last)
            if tuned
            else bottleneck.encoder
        )

        @torch.inference_mode()
        def encode(pixels: NDArray[np.uint8]) -> tuple[bytes, Callable[[], NDArray[np.int32]]]:
            image = torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0).float().div(255)
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned and bfloat16):
                latent = encoder((image - mean) / std).float()
            payload = bottleneck.entropy_bottleneck.compress(latent)[0]
            return payload, lambda: (latent[0] - bottleneck.medians).round().to(torch.int32).numpy()

        return encode

    return {"torch": pipeline(False), "torch tuned": pipeline(True)}


def multiply_adds(model: "FeatureCompressionModel") -> int:
    """Of the encoder's convolutions, for one 224x224 image."""
    import torch

    counted: list[int] = []
    layers = [
        layer
        for layer in model.bottleneck_layer.encoder.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: counted.append(layer.weight.numel() * out.shape[2] * out.shape[3])
        )
        for layer in layers
    ]
    with torch.inference_mode():
        model.bottleneck_layer.encoder(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def peak_multiply_adds(threads: int) -> float:
    """Multiply-adds a second of a float32 matrix product of this machine, the best of some."""
    import torch

    torch.set_num_threads(threads)
    side, best = 1536, float("inf")
    a, b = torch.rand(side, side), torch.rand(side, side)
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return side**3 / best


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, 95th and 99th percentile, and the middle half."""
    milliseconds = sorted(1e3 * value for value in seconds)
    low, _, high = statistics.quantiles(milliseconds, n=4)
    hundredths = statistics.quantiles(milliseconds, n=100)
    return {
        "median": statistics.median(milliseconds),
        "p95": hundredths[94],
        "p99": hundredths[98],
        "quartile_low": low,
        "quartile_high": high,
    }


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Of times taken in turn."""
    low, middle, high = statistics.quantiles(
        sorted(a / b for a, b in zip(theirs, ours, strict=True)), n=4
    )
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def measure(
    model: str, pixels: NDArray[np.uint8], threads: int, runs: int, with_torch: bool
) -> list[dict[str, Any]]:
    """A row for each engine: all of them, and the reference pipelines, in turn, `runs` times after the warm-up."""
    folder = make_bundle(model)
    loaded = Bundle.load(folder)
    engines: dict[str, EdgeEncoder] = {}
    for choice in dict.fromkeys((SAFE, *candidates(loaded, "edge"))):
        engines[str(choice)] = EdgeEncoder(
            folder,
            threads,
            profile=Profile.STATIC,
            provider=choice.provider,
            precision=choice.precision,
        )
    torch_model = load_torch_model(model) if with_torch else None
    references = reference_pipelines(torch_model, threads) if torch_model else {}
    first = {name: encoder.encode(pixels, as_is=True) for name, encoder in engines.items()}
    expected = (
        references["torch"](pixels)[1]()
        if references
        else engines[str(SAFE)].symbols(pixels[None])[0]
    )
    decoder = CloudDecoder(folder, threads, provider="cpu", precision="fp32")
    changed = {
        name: float((decoder.symbols(data) != expected).mean()) for name, data in first.items()
    }
    for name, share in changed.items():
        # A latent on the border of two symbols may fall either way; fewer bits than float32's push more over it.
        if not share <= (1e-4 if name.endswith("fp32") else MAX_CHANGED):
            raise BenchmarkError(f"{model}: {share:.3%} of the symbols of {name} are not torch's")
    total: dict[str, list[float]] = {name: [] for name in (*engines, *references)}
    graph: dict[str, list[float]] = {name: [] for name in engines}
    coder: dict[str, list[float]] = {name: [] for name in engines}
    small: dict[str, list[float]] = {name: [] for name in engines}
    small_bytes = dict.fromkeys(engines, 0)
    for run in range(WARM_UP + runs):
        timed = run >= WARM_UP
        for name, encoder in engines.items():
            # What runs first finds caches that another engine has used: each way is first in every other run.
            for staged in (run % 2 == 0, run % 2 == 1):
                clock = [time.perf_counter()]
                if staged:
                    symbols = encoder.symbols(pixels[None])[0]
                    clock.append(time.perf_counter())
                    data = encoder.pack(symbols, *pixels.shape[:2])
                else:
                    data = encoder.encode(pixels, as_is=True)
                clock.append(time.perf_counter())
                if data != first[name]:
                    raise BenchmarkError(
                        f"{model}, {name}: run {run} gives another feature file than the first"
                    )
                if staged and loaded.tables.contexts:
                    small_bytes[name] = len(
                        loaded.encode(symbols, pixels.shape[0], pixels.shape[1], Profile.CONTEXT)
                    )
                    clock.append(time.perf_counter())
                if timed:
                    for times, (before, after) in zip(
                        (graph, coder, small) if staged else (total,),
                        itertools.pairwise(clock),
                        strict=False,
                    ):
                        times[name].append(after - before)
        for name, encode in references.items():
            start = time.perf_counter()
            encode(pixels)
            if timed:
                total[name].append(time.perf_counter() - start)
    rows = []
    for name in engines:
        row: dict[str, Any] = {
            "model": model,
            "engine": name,
            "weights": f"trained ({CHECKPOINTS[model]})" if trained(model) else "random",
            "bytes": len(first[name]),
            "symbols_changed": changed[name],
            "graph_ms": summary(graph[name]),
            "coder_ms": summary(coder[name]),
            "total_ms": summary(total[name]),
            "small": {"bytes": small_bytes[name], "coder_ms": summary(small[name])}
            if small[name]
            else None,
            "published_ms": PUBLISHED_MS[model],
            "multiply_adds": multiply_adds(torch_model) if torch_model else None,
        }
        if references:
            row |= {
                "torch_ms": summary(total["torch"]),
                "torch_tuned_ms": summary(total["torch tuned"]),
            }
            row |= {
                "ratio": ratio(total["torch"], total[name]),
                "ratio_to_tuned": ratio(total["torch tuned"], total[name]),
            }
        rows.append(row)
    return rows


def measure_file(model: str, threads: int, runs: int, choice: Choice) -> dict[str, Any]:
    """A 1920x1080 JPEG, the demo's picture enlarged: decoding, resizing, all of it; and `edge-encode` as a fresh process."""
    folder = make_bundle(model)
    encoder = EdgeEncoder(
        folder,
        threads,
        profile=Profile.STATIC,
        provider=choice.provider,
        precision=choice.precision,
    )
    file = io.BytesIO()
    Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg").resize((1920, 1080)).save(
        file, "JPEG", quality=90
    )
    times: dict[str, list[float]] = {"decode": [], "resize": [], "total": []}
    for run in range(5 + runs):
        clock = [time.perf_counter()]
        image = load_image(io.BytesIO(file.getvalue()))
        clock.append(time.perf_counter())
        preprocess(image)
        clock.append(time.perf_counter())
        encoder.encode(io.BytesIO(file.getvalue()))
        clock.append(time.perf_counter())
        if run >= 5:
            for name, before, after in zip(times, clock, clock[1:], strict=False):
                times[name].append(after - before)
    with tempfile.TemporaryDirectory() as place:
        photo, out = Path(place) / "photo.jpg", Path(place) / "feat.bin"
        photo.write_bytes(file.getvalue())
        command = [
            sys.executable,
            "-c",
            _COMMAND,
            str(photo),
            "-o",
            str(out),
            "--no-small",
            "--bundle",
            str(folder.resolve()),
        ]
        command += [
            "--provider",
            choice.provider,
            "--precision",
            choice.precision,
            "--threads",
            str(threads),
        ]
        cold, memory = [], 0
        for _ in range(8):
            start = time.perf_counter()
            done = subprocess.run(
                command,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                capture_output=True,
                text=True,
                check=False,
            )
            cold.append(time.perf_counter() - start)
            if done.returncode or out.read_bytes() != encoder.encode(io.BytesIO(file.getvalue())):
                raise BenchmarkError(
                    f"edge-encode does not write what the encoder gives: {done.stderr}"
                )
            memory = max(memory, int(done.stderr.split()[-1]))
    return {
        "jpeg_bytes": len(file.getvalue()),
        **{f"{name}_ms": summary(values) for name, values in times.items()},
        "process_ms": summary(cold[2:]),
        "peak_memory_mb": round(memory / 1024, 1),
    }


# What the command `edge-encode` does, and then the most memory that it held, in kilobytes.
_COMMAND = """
import sys
from runtime.cli.edge_encode import main
status = main()
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(status)
"""


def table(rows: list[dict[str, Any]], peak: float | None) -> str:
    """The rows as a Markdown table."""
    heads = [
        "model",
        "engine",
        "bytes",
        "graph ms",
        "coder ms",
        "total ms",
        "p95",
        "p99",
        "torch + CompressAI ms",
        "ratio (quartiles)",
    ]
    heads += ["tuned torch ms", "published ms", "floor ms", "small: bytes, coder ms"]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 2)}"]
    for row in rows:
        cells = [
            row["model"] + ("" if row["weights"].startswith("trained") else " (random)"),
            row["engine"],
            str(row["bytes"]),
        ]
        cells += [f"{row['graph_ms']['median']:.2f}", f"{row['coder_ms']['median']:.3f}"]
        cells += [f"{row['total_ms'][key]:.2f}" for key in ("median", "p95", "p99")]
        cells += [f"{row['torch_ms']['median']:.2f}" if "torch_ms" in row else "-"]
        cells += [
            "{median:.1f} ({quartile_low:.1f} to {quartile_high:.1f})".format(**row["ratio"])
            if "ratio" in row
            else "-"
        ]
        cells += [
            f"{row['torch_tuned_ms']['median']:.2f}" if "torch_tuned_ms" in row else "-",
            str(row["published_ms"] or "-"),
        ]
        cells += [
            f"{1e3 * row['multiply_adds'] / peak:.2f}" if peak and row["multiply_adds"] else "-"
        ]
        cells += [
            f"{row['small']['bytes']}, {row['small']['coder_ms']['median']:.3f}"
            if row["small"]
            else "-"
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def file_table(rows: list[dict[str, Any]]) -> str:
    """What a photograph and a process take, as a Markdown table."""
    lines = [
        f"one 1920x1080 JPEG of {rows[0]['file']['jpeg_bytes']:,} bytes, medians\n",
        "| model | engine | decode ms | resize ms | from JPEG to feature file ms | p95 | p99 | edge-encode as a process ms | MB |",
        f"|---|---|{'--:|' * 7}",
    ]
    for row in rows:
        file = row["file"]
        cells = [
            row["model"],
            row["engine"],
            f"{file['decode_ms']['median']:.1f}",
            f"{file['resize_ms']['median']:.1f}",
        ]
        cells += [f"{file['total_ms'][key]:.1f}" for key in ("median", "p95", "p99")]
        cells += [f"{file['process_ms']['median']:.0f}", f"{file['peak_memory_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """A bar for each engine and pipeline, by model, as a PNG."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    bars = dict.fromkeys(
        [
            *(row["engine"] for row in rows),
            "torch tuned + CompressAI",
            "torch + CompressAI",
            "published, 8 cores",
        ]
    )
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, bar in enumerate(bars):
        for place, model in enumerate(models):
            one = next(
                (row for row in rows if row["model"] == model and row["engine"] == bar), None
            )
            some = next(row for row in rows if row["model"] == model)
            value = {
                "torch + CompressAI": some.get("torch_ms", {}).get("median"),
                "torch tuned + CompressAI": some.get("torch_tuned_ms", {}).get("median"),
                "published, 8 cores": some["published_ms"],
            }.get(bar, one and one["total_ms"]["median"])
            if value:
                at = place + 0.85 * ((index + 0.5) / len(bars) - 0.5)
                axes.bar(
                    at,
                    value,
                    0.8 / len(bars),
                    color=f"C{index}",
                    label=bar if bar not in axes.get_legend_handles_labels()[1] else None,
                )
                axes.text(at, value, f"{value:.1f}", ha="center", va="bottom", fontsize=6)
    axes.set_xticks(range(len(models)), models)
    axes.set(ylabel="ms from a 224x224 array to a feature file", title=title)
    axes.legend(fontsize="small")
    figure.savefig(file, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help="of all pipelines (default: one a core)",
    )
    parser.add_argument(
        "--runs",
        type=number(int, 20, 1_000_000),
        default=200,
        metavar="N",
        help="timed runs of each model (default: 200)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(PUBLISHED_MS),
        choices=list(PUBLISHED_MS),
        metavar="MODEL",
    )
    parser.add_argument(
        "--keep", action="store_true", help="write benchmarks/results/latency.json and .png"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    with_torch = bool(find_spec("torch") and find_spec("compressai"))
    pixels = preprocess(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"))
    machine = describe(args.threads)
    try:
        rows: list[dict[str, Any]] = []
        for model in args.models:
            print(f"timing {model}", file=sys.stderr)
            rows += measure(model, pixels, args.threads, args.runs, with_torch)
        print("timing files and processes", file=sys.stderr)
        for row in rows:
            row["file"] = measure_file(
                row["model"], args.threads, max(20, args.runs // 5), Choice(*row["engine"].split())
            )
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    peak = peak_multiply_adds(args.threads) if with_torch else None
    result = {
        "benchmark": "latency",
        "machine": machine,
        "commit": commit(),
        "runs": args.runs,
        "peak_multiply_adds": peak,
    }
    result |= {"rows": rows}
    instructions = ", ".join(machine["instructions"])  # type: ignore[arg-type]
    where = f"{machine['processor']} ({instructions}), {args.threads} of {machine['cores']} cores"
    if args.keep:
        (RESULTS / "latency.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        draw(rows, RESULTS / "latency.png", where)
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return 0
    print(f"{where}\none 224x224 image, {args.runs} runs in turn, medians\n")
    print(table(rows, peak))
    print(f"\n{file_table(rows)}")
    if not with_torch:
        print("torch or CompressAI is not installed: nothing to compare with")
    return 0


if __name__ == "__main__":
    sys.exit(main())
