"""What a photograph and a fresh process take, for latency.py.

The photograph is the demo's picture, enlarged to a 1920x1080 JPEG. Always holds: `edge-encode` as a
process writes the same bytes as the encoder in this one.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import PICTURE, PROJECT, BenchmarkError, markdown
from benchmarks.models import make_bundle
from benchmarks.timing import in_turn, milliseconds
from runtime import EdgeEncoder
from runtime.codec.feature_file import Profile
from runtime.engine.base import Choice
from runtime.images.preprocess import load_image, preprocess

SIZE = (1920, 1080)
WARM_UP = 5
PROCESSES, PROCESSES_WARM_UP = 6, 2
# Runs `edge-encode`, and then prints the most memory that it held, in kilobytes.
_COMMAND = """
import sys
from runtime.cli.edge_encode import main
status = main()
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(status)
"""


def measure_files(model: str, threads: int, runs: int, choice: Choice) -> dict[str, Any]:
    """Milliseconds to decode, to resize, and for all of it; of a process, and its peak memory.

    Raises BenchmarkError and EdgeCloudErrors.
    """
    folder = make_bundle(model)
    encoder = EdgeEncoder(
        folder,
        threads,
        profile=Profile.STATIC,
        provider=choice.provider,
        precision=choice.precision,
    )
    file = io.BytesIO()
    Image.open(PICTURE).resize(SIZE).save(file, "JPEG", quality=90)
    jpeg = file.getvalue()
    image = load_image(io.BytesIO(jpeg))
    times = in_turn(
        {
            "decode": lambda: load_image(io.BytesIO(jpeg)),
            "resize": lambda: preprocess(image),
            "total": lambda: encoder.encode(io.BytesIO(jpeg)),
        },
        runs,
        WARM_UP,
    )
    options = ["--bundle", str(folder.resolve()), "--threads", str(threads)]
    options += ["--provider", choice.provider, "--precision", choice.precision]
    seconds, memory = _time_process(jpeg, options, encoder.encode(io.BytesIO(jpeg)))
    return {
        "jpeg_bytes": len(jpeg),
        **{f"{name}_ms": milliseconds(values) for name, values in times.items()},
        "process_ms": milliseconds(seconds),
        "peak_memory_mb": round(memory / 1024, 1),
    }


def _time_process(jpeg: bytes, options: list[str], expected: bytes) -> tuple[list[float], int]:
    """Seconds of each process, and the most kilobytes that one held. Raises BenchmarkError."""
    seconds, memory = [], 0
    with tempfile.TemporaryDirectory() as place:
        photo, out = Path(place) / "photo.jpg", Path(place) / "feat.bin"
        photo.write_bytes(jpeg)
        command = [sys.executable, "-c", _COMMAND, str(photo), "-o", str(out), "--no-small"]
        for _ in range(PROCESSES_WARM_UP + PROCESSES):
            start = time.perf_counter()
            done = subprocess.run(
                [*command, *options],
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                capture_output=True,
                text=True,
                check=False,
            )
            seconds.append(time.perf_counter() - start)
            if done.returncode or out.read_bytes() != expected:
                raise BenchmarkError(
                    f"edge-encode does not write what the encoder gives: {done.stderr}"
                )
            memory = max(memory, int(done.stderr.split()[-1]))
    return seconds[PROCESSES_WARM_UP:], memory


def file_table(rows: list[dict[str, Any]]) -> str:
    """The rows of latency.py as a Markdown table of what a photograph and a process take."""
    heads = ["model", "engine", "decode ms", "resize ms", "from JPEG to feature file ms"]
    heads += ["p95", "p99", "edge-encode as a process ms", "MB"]
    cells = [
        [
            row["model"],
            row["engine"],
            f"{row['file']['decode_ms']['median']:.1f}",
            f"{row['file']['resize_ms']['median']:.1f}",
            *(f"{row['file']['total_ms'][key]:.1f}" for key in ("median", "p95", "p99")),
            f"{row['file']['process_ms']['median']:.0f}",
            f"{row['file']['peak_memory_mb']:.0f}",
        ]
        for row in rows
    ]
    return markdown(heads, cells, align="ll")
