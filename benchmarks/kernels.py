"""The integer encoder's kernels that this processor runs, beside other int8 engines.

    python benchmarks/kernels.py [--keep] [--json]

What is timed is an array of 224x224 pixels to symbols, without the coder. Every kernel, on one
thread and on two, takes turns with the int8 graph in onnxruntime and in OpenVINO, on two threads.

Always holds: all kernels give the same symbols, and each engine what it gave first; otherwise the
benchmark stops.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.models import make_bundle
from benchmarks.timing import in_turn, milliseconds
from runtime.codec.bundle import EDGE_WEIGHTS, Bundle
from runtime.engine import _encoder
from runtime.engine.base import Choice
from runtime.engine.registry import engine_of, open_choice
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess

MODELS = ("ours_n0", "ours_n4", "ours_n8")
THREADS, WARM_UP = (1, 2), 5
_OTHERS = {"onnxruntime int8": Choice("cpu", "int8"), "OpenVINO int8": Choice("openvino", "int8")}


def measure(model: str, runs: int) -> list[dict[str, Any]]:
    """A row for each kernel and number of threads, and for each other engine that is installed.

    Raises BenchmarkError and EdgeCloudErrors.
    """
    bundle = Bundle.load(make_bundle(model))
    pixels = np.ascontiguousarray(preprocess(Image.open(PICTURE))[None])
    weights = bundle.read(EDGE_WEIGHTS)
    parts: dict[str, Callable[[], bytes]] = {}
    for kernel in _encoder.KERNELS:
        for threads in THREADS:
            encoder = _encoder.Encoder(weights, threads, kernel)
            parts[f"{kernel}, {threads}"] = partial(_native, encoder, pixels)
    expected = dict.fromkeys(parts, parts[f"{_encoder.KERNELS[-1]}, 1"]())
    for name, choice in _OTHERS.items():
        if engine_of(choice.provider).lacks(choice):
            continue
        run = open_choice(bundle, "edge", THREADS[-1], choice).run
        parts[f"{name}, {THREADS[-1]}"] = partial(_graph, run, pixels)
    expected |= {name: part() for name, part in parts.items() if name not in expected}
    seconds = in_turn(parts, runs, WARM_UP, expected)
    return [
        {
            "model": model,
            "kernel": name.rsplit(", ", 1)[0],
            "threads": int(name.rsplit(", ", 1)[1]),
            "graph_ms": milliseconds(times),
        }
        for name, times in seconds.items()
    ]


def _native(encoder: _encoder.Encoder, pixels: NDArray[np.uint8]) -> bytes:
    return encoder.encode(pixels).tobytes()


def _graph(
    run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]], pixels: NDArray[np.uint8]
) -> bytes:
    return run(pixels)["symbols"].tobytes()


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds as a Markdown table: a line for each kernel, a column for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    ms = {(row["kernel"], row["threads"], row["model"]): row["graph_ms"]["median"] for row in rows}
    kinds = dict.fromkeys((kernel, threads) for kernel, threads, _ in ms)
    cells = [
        [kernel, str(threads), *(f"{ms[kernel, threads, model]:.2f}" for model in models)]
        for kernel, threads in kinds
    ]
    return markdown(["kernel or engine", "threads", *(f"{m}, ms" for m in models)], cells)


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    parser = new_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    add_runs_option(parser, "kernel", default=60, least=4)
    add_output_options(parser, "kernels.json")
    args = parser.parse_args(argv)
    try:
        rows = [row for model in args.models for row in measure(model, args.runs)]
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    record = {**header("kernels", THREADS[-1]), "runs": args.runs, "rows": rows}
    if args.keep:
        write_record(RESULTS / "kernels.json", record)
    print(as_json(record) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
