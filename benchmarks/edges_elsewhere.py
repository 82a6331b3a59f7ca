"""The encoder where there is no process to time: in a JavaScript engine, and on a microcontroller.

`browser` runs the npm package in Node, which has the JavaScript engine of Chromium. `cortex_m` runs
the firmware of examples/cortex-m under qemu, which counts instructions; its milliseconds are those
instructions at one a cycle and 480 MHz, and no measurement.

Always holds: both give the bytes of Python's engine `native` for the same pixels, or raise
BenchmarkError.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import PICTURE, PROJECT, BenchmarkError
from benchmarks.timing import milliseconds
from runtime import EdgeEncoder

_DIST = PROJECT / "web" / "dist"
_FIRMWARE = PROJECT / "examples" / "cortex-m" / "run.py"
_BROWSER_TOOLS = {"node": "install Node 18 or later"}
_CORTEX_TOOLS = {
    "arm-none-eabi-g++": "apt-get install gcc-arm-none-eabi libstdc++-arm-none-eabi-newlib",
    "qemu-system-arm": "apt-get install qemu-system-arm",
}


def browser(model: str, bundle: Path, pixels: NDArray[np.uint8], runs: int) -> dict[str, Any]:
    """A row for the npm package, on one thread.

    Args:
        pixels: uint8 [H, W, RGB], sides multiples of 8.

    Raises BenchmarkError and EdgeCloudErrors.
    """
    _need(_BROWSER_TOOLS)
    if not (_DIST / "edgecloud.wasm").is_file():
        raise BenchmarkError("no web/dist/edgecloud.wasm: run make web")
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "pixels.rgb"
        source.write_bytes(pixels.tobytes())
        shape = [str(side) for side in pixels.shape[:2]]
        command = ["node", "web/test/speed.js", str(source), *shape, str(runs), str(bundle)]
        found = json.loads(_output(command))
    if bytes.fromhex(found["file"]) != _python(bundle, pixels):
        raise BenchmarkError(f"the npm package writes other bytes than Python for {model}")
    return {
        "edge": "browser (Node, WebAssembly)",
        "model": model,
        "program_bytes": sum(
            path.stat().st_size for path in _DIST.iterdir() if path.suffix in (".js", ".wasm")
        ),
        "bundle_bytes": _edge_half(bundle),
        "peak_memory_mb": round(found["memory_bytes"] / 2**20, 1),
        "pixels_ms": milliseconds([ms / 1e3 for ms in found["milliseconds"]]),
        "process_ms": None,
    }


def cortex_m(model: str, bundle: Path) -> dict[str, Any]:
    """A row for the firmware, which itself compares its bytes with Python's.

    Raises BenchmarkError.
    """
    _need(_CORTEX_TOOLS)
    command = [sys.executable, str(_FIRMWARE), str(PICTURE), "--bundle", str(bundle), "--json"]
    found = json.loads(_output(command))
    (picture,) = found["pictures"]
    return {
        "edge": f"{found['cpu']} at {found['megahertz']} MHz",
        "model": model,
        "program_bytes": found["flash_bytes"] - _edge_half(bundle),
        "bundle_bytes": _edge_half(bundle),
        "peak_memory_mb": found["ram_bytes"] / 2**20,
        "instructions": picture["instructions"],
        "pixels_ms": {"median": picture["instructions"] / found["megahertz"] / 1e3},
        "process_ms": None,
    }


def _python(bundle: Path, pixels: NDArray[np.uint8]) -> bytes:
    return EdgeEncoder(bundle, threads=1, provider="native").encode(pixels, as_is=True)


def _edge_half(bundle: Path) -> int:
    return sum((bundle / name).stat().st_size for name in ("edge.tables", "edge.weights"))


def _need(tools: dict[str, str]) -> None:
    for tool, remedy in tools.items():
        if not shutil.which(tool):
            raise BenchmarkError(f"no {tool}: {remedy}")


def _output(command: list[str]) -> str:
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout
