"""What the edge takes in each of its forms: Python, C++, a browser's engine, a microcontroller.

    cmake -S csrc -B build/csrc && cmake --build build/csrc && make web
    python benchmarks/edges.py [--command build/csrc/edge-encode] [--keep] [--json]

Each form encodes 224x224 pixels, without loading anything. Python and C++ also encode a 1920x1080
JPEG as fresh processes, in turn. Beside these times stand the peak memory, and the bytes on disk of
the program with the packages that it imports (not of Python, Node and the system's libraries) and
of the files of the bundle that it needs. edges_elsewhere.py has the browser and the
microcontroller.

Always holds: all forms that run the integer encoder write the same bytes, and each process writes
what its form wrote first. Otherwise the benchmark stops.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    PICTURE,
    PROJECT,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    add_threads_option,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.edges_elsewhere import browser, cortex_m
from benchmarks.latency_files import SIZE
from benchmarks.models import make_bundle
from benchmarks.timing import in_turn, milliseconds
from runtime import EdgeEncoder
from runtime.codec.bundle import EDGE_GRAPH_INT8, EDGE_TABLES, EDGE_WEIGHTS, MANIFEST, TABLES
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess

MODEL, SMALLEST = "ours_n4", "ours_n0"
COMMAND = PROJECT / "build" / "csrc" / "edge-encode"
WARM_UP = 2
_ORT, _NATIVE, _CPP = "Python, onnxruntime int8", "Python, native", "C++"
# How a Python form is made to run its engine.
_ENGINE = {_ORT: ("cpu", "int8"), _NATIVE: ("native", "int8")}
# What each form imports, and the files of the bundle that it reads.
_PACKAGES = {
    _ORT: ("numpy", "Pillow", "onnxruntime"),
    _NATIVE: ("numpy", "Pillow"),
}
_BUNDLE = {
    _ORT: (MANIFEST, TABLES, EDGE_GRAPH_INT8),
    _NATIVE: (MANIFEST, TABLES, EDGE_WEIGHTS),
    _CPP: (EDGE_TABLES, EDGE_WEIGHTS),
}


def measure(command: Path, threads: int, runs: int) -> list[dict[str, Any]]:
    """A row for each form.

    Args:
        command: the C++ program.
        runs: processes of each form. Pixels are encoded ten times as often.

    Raises BenchmarkError and EdgeCloudErrors.
    """
    if not command.is_file():
        raise BenchmarkError(
            f"no program {command}: build it with cmake, or name it with --command"
        )
    bundle = make_bundle(MODEL).resolve()
    pixels = np.ascontiguousarray(preprocess(Image.open(PICTURE)))
    of_pixels = _pixel_seconds(command.resolve(), bundle, pixels, threads, 10 * runs)
    options = ["--bundle", str(bundle), "--threads", str(threads)]
    python = [sys.executable, "-m", "runtime.cli.edge_encode"]
    forms = {
        name: [*python, "--provider", provider, "--precision", precision]
        for name, (provider, precision) in _ENGINE.items()
    } | {_CPP: [str(command.resolve())]}
    seconds, memory = _processes({name: [*form, *options] for name, form in forms.items()}, runs)
    rows: list[dict[str, Any]] = [
        {
            "edge": name,
            "model": MODEL,
            "program_bytes": command.stat().st_size if name == _CPP else _installed(name),
            "bundle_bytes": sum((bundle / file).stat().st_size for file in _BUNDLE[name]),
            "peak_memory_mb": round(memory[name], 1),
            "pixels_ms": milliseconds(of_pixels[name]),
            "process_ms": milliseconds(seconds[name]),
        }
        for name in forms
    ]
    rows.append(browser(MODEL, bundle, pixels, 10 * runs))
    smallest = make_bundle(SMALLEST).resolve()
    rows.append(browser(SMALLEST, smallest, pixels, 10 * runs))
    rows.append(cortex_m(SMALLEST, smallest))
    return rows


def _pixel_seconds(
    command: Path, bundle: Path, pixels: NDArray[np.uint8], threads: int, runs: int
) -> dict[str, list[float]]:
    """What encoding pixels uint8 [H, W, RGB] takes. Raises BenchmarkError."""
    encoders = {
        name: EdgeEncoder(bundle, threads, provider=provider, precision=precision)
        for name, (provider, precision) in _ENGINE.items()
    }
    expected = {name: encoder.encode(pixels, as_is=True) for name, encoder in encoders.items()}
    parts = {
        name: lambda encoder=encoder: encoder.encode(pixels, as_is=True)
        for name, encoder in encoders.items()
    }
    seconds = in_turn(parts, runs, WARM_UP, expected)
    with tempfile.TemporaryDirectory() as place:
        pictures, out = Path(place) / "pictures", Path(place) / "out"
        pictures.mkdir()
        for number in range(WARM_UP + runs):
            Image.fromarray(pixels).save(pictures / f"{number:05}.ppm")
        options = ["--as-is", "--json", "--bundle", str(bundle), "--threads", str(threads)]
        done = subprocess.run(
            [command, pictures, "-o", out, *options], capture_output=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(f"{command} failed: {done.stderr.decode()}")
        if any(file.read_bytes() != expected[_NATIVE] for file in out.iterdir()):
            raise BenchmarkError("Python and C++ write different feature files")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
    taken = [line["milliseconds"]["encode"] / 1e3 for line in lines if "milliseconds" in line]
    return {**seconds, _CPP: taken[WARM_UP:]}


def _processes(
    forms: dict[str, list[str]], runs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds and peak MB of processes that encode a JPEG. Raises BenchmarkError."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    memory: dict[str, float] = {}
    written: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        photo, out = Path(place) / "photo.jpg", Path(place) / "feat.bin"
        Image.open(PICTURE).resize(SIZE).save(photo, "JPEG", quality=90)
        for _ in range(WARM_UP + runs):
            for name, form in forms.items():
                seconds[name].append(_seconds([*form, str(photo), "-o", str(out)]))
                if written.setdefault(name, out.read_bytes()) != out.read_bytes():
                    raise BenchmarkError(f"{name} writes other bytes than at first")
        for name, form in forms.items():
            memory[name] = _peak_memory([*form, str(photo), "-o", str(out)])
    if written[_NATIVE] != written[_CPP]:
        raise BenchmarkError("Python and C++ write different feature files")
    return {name: values[WARM_UP:] for name, values in seconds.items()}, memory


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _seconds(command: list[str]) -> float:
    """What a process takes. Raises BenchmarkError."""
    start = time.perf_counter()
    process = _start(command)
    errors = process.communicate()[1]
    seconds = time.perf_counter() - start
    if process.returncode:
        raise BenchmarkError(f"{command[0]} failed: {errors.decode()}")
    return seconds


def _peak_memory(command: list[str]) -> float:
    """The most MB that a process holds. It is read while the process runs, so it is not timed.

    The system's own count at the end would include this process, of which it is a copy at first.
    """
    process, peak = _start(command), 0
    while process.poll() is None:
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if f"Name:\t{Path(command[0]).name[:15]}" in status:
                peak = max(peak, int(status.split("VmHWM:")[1].split()[0]))
    process.communicate()
    return peak / 1024


def _installed(form: str) -> int:
    """Bytes on disk of the packages that a Python form imports, and of this project's."""
    paths = [Path(str(file.locate())) for name in _PACKAGES[form] for file in files(name) or ()]
    paths += (PROJECT / "runtime").rglob("*")
    return sum(path.stat().st_size for path in paths if path.is_file())


def table(rows: list[dict[str, Any]]) -> str:
    """The forms as a Markdown table."""
    heads = ["edge", "model", "program, MB", "bundle, MB", "memory, MB"]
    heads += ["224x224 pixels to feature file, ms", "1920x1080 JPEG, a whole process, ms (p95)"]
    cells = [
        [
            row["edge"],
            row["model"],
            f"{row['program_bytes'] / 1e6:.2f}",
            f"{row['bundle_bytes'] / 1e6:.2f}",
            f"{row['peak_memory_mb']:.{0 if row['peak_memory_mb'] >= 1 else 2}f}",
            _of_pixels(row),
            f"{row['process_ms']['median']:.0f} ({row['process_ms']['p95']:.0f})"
            if row["process_ms"]
            else "-",
        ]
        for row in rows
    ]
    return markdown(heads, cells, align="llrrrrr")


def _of_pixels(row: dict[str, Any]) -> str:
    ms: float = row["pixels_ms"]["median"]
    if "instructions" not in row:
        return f"{ms:.1f}"
    return f"{ms:.0f}: {row['instructions'] / 1e6:.1f} million instructions, one a cycle"


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--command", type=Path, default=COMMAND, metavar="FILE", help="the C++ edge-encode"
    )
    add_threads_option(parser, "the encoder")
    add_runs_option(parser, "process", default=30, least=4)
    add_output_options(parser, "edges.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        rows = measure(args.command, args.threads, args.runs)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"edges: {error}", file=sys.stderr)
        return 1
    record = {**header("edges", args.threads), "runs": args.runs, "rows": rows}
    if args.keep:
        write_record(RESULTS / "edges.json", record)
    print(as_json(record) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
