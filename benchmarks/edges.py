"""What the edge takes in each of its forms: Python with two engines, and the command in C++.

    cmake -S csrc -B build/csrc && cmake --build build/csrc
    python benchmarks/edges.py [--command build/csrc/edge-encode] [--keep] [--json]

Each form encodes a 1920x1080 JPEG as a fresh process, in turn. Beside its time stand its peak
memory, and the bytes on disk of the program with the packages that it imports (not of Python and
the system's libraries) and of the files of the bundle that it needs.

Always holds: the two forms that run the integer encoder write the same bytes, and each process
writes what its form wrote first. Otherwise the benchmark stops.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import files
from pathlib import Path
from typing import Any

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
from benchmarks.latency_files import SIZE
from benchmarks.models import make_bundle
from benchmarks.timing import milliseconds
from runtime.codec.bundle import EDGE_GRAPH_INT8, EDGE_TABLES, EDGE_WEIGHTS, MANIFEST, TABLES
from runtime.errors import EdgeCloudError

MODEL = "ours_n4"
COMMAND = PROJECT / "build" / "csrc" / "edge-encode"
WARM_UP = 2
_NATIVE, _CPP = "Python, native", "C++"
# What each form imports, and the files of the bundle that it reads.
_PACKAGES = {
    "Python, onnxruntime int8": ("numpy", "Pillow", "onnxruntime"),
    _NATIVE: ("numpy", "Pillow"),
}
_BUNDLE = {
    "Python, onnxruntime int8": (MANIFEST, TABLES, EDGE_GRAPH_INT8),
    _NATIVE: (MANIFEST, TABLES, EDGE_WEIGHTS),
    _CPP: (EDGE_TABLES, EDGE_WEIGHTS),
}


def measure(command: Path, threads: int, runs: int) -> list[dict[str, Any]]:
    """A row for each form.

    Args:
        command: the C++ program.

    Raises BenchmarkError and EdgeCloudErrors.
    """
    if not command.is_file():
        raise BenchmarkError(
            f"no program {command}: build it with cmake, or name it with --command"
        )
    bundle = make_bundle(MODEL).resolve()
    options = ["--bundle", str(bundle), "--threads", str(threads)]
    python = [sys.executable, "-m", "runtime.cli.edge_encode"]
    forms = {
        "Python, onnxruntime int8": [*python, "--provider", "cpu", "--precision", "int8"],
        _NATIVE: [*python, "--provider", "native"],
        _CPP: [str(command.resolve())],
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    memory: dict[str, float] = {}
    written: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        photo, out = Path(place) / "photo.jpg", Path(place) / "feat.bin"
        Image.open(PICTURE).resize(SIZE).save(photo, "JPEG", quality=90)
        for _ in range(WARM_UP + runs):
            for name, form in forms.items():
                seconds[name].append(_seconds([*form, str(photo), "-o", str(out), *options]))
                if written.setdefault(name, out.read_bytes()) != out.read_bytes():
                    raise BenchmarkError(f"{name} writes other bytes than at first")
        for name, form in forms.items():
            memory[name] = _peak_memory([*form, str(photo), "-o", str(out), *options])
    if written[_NATIVE] != written[_CPP]:
        raise BenchmarkError("Python and C++ write different feature files")
    return [
        {
            "edge": name,
            "program_bytes": command.stat().st_size if name == _CPP else _installed(name),
            "bundle_bytes": sum((bundle / file).stat().st_size for file in _BUNDLE[name]),
            "peak_memory_mb": round(memory[name], 1),
            "process_ms": milliseconds(seconds[name][WARM_UP:]),
        }
        for name in forms
    ]


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
    heads = ["edge", "program and packages, MB", "bundle, MB", "memory, MB"]
    heads += ["1920x1080 JPEG to feature file as a process, ms (p95)"]
    cells = [
        [
            row["edge"],
            f"{row['program_bytes'] / 1e6:.1f}",
            f"{row['bundle_bytes'] / 1e6:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['process_ms']['median']:.0f} ({row['process_ms']['p95']:.0f})",
        ]
        for row in rows
    ]
    return markdown(heads, cells)


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
