"""Builds examples/cortex-m and runs it under qemu, for tests."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "cortex-m"
# qemu's machine for each processor that is run; memory.ld has their addresses.
MACHINES = {"cortex-m7": "mps2-an500", "cortex-m4": "mps2-an386"}
TOOLS = {
    "arm-none-eabi-g++": "gcc-arm-none-eabi libstdc++-arm-none-eabi-newlib",
    "qemu-system-arm": "qemu-system-arm",
    "make": "make",
}


def require_tools() -> None:
    """Skips the test where a tool is missing. In CI that is a failure."""
    for tool, packages in TOOLS.items():
        if not shutil.which(tool):
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI must have {tool}")
            pytest.skip(f"no {tool}: apt-get install {packages}")


def build(
    bundle: Path, folder: Path, cpu: str = "cortex-m7", memory: Path = EXAMPLE / "memory.ld"
) -> Path:
    """The program for a processor, with a bundle's edge.tables and edge.weights inside."""
    command = ["make", "-C", EXAMPLE, f"BUNDLE={bundle}", f"CPU={cpu}", f"BUILD={folder}"]
    command += [f"MEMORY={memory}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "encoder.elf"


def run(
    program: Path, arguments: list[object], cpu: str = "cortex-m7"
) -> subprocess.CompletedProcess[str]:
    """Runs the program with these arguments. Its report is on standard error.

    One tick of SysTick is 40 instructions: `-icount shift=0` lets each instruction take 1 ns, and
    the machine's clock has 25 MHz.
    """
    words = ",".join(f"arg={argument}" for argument in arguments)
    command = ["qemu-system-arm", "-M", MACHINES[cpu], "-kernel", program]
    command += ["-icount", "shift=0,sleep=off", "-display", "none", "-monitor", "none"]
    command += ["-serial", "null", "-semihosting-config", f"enable=on,target=native,{words}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def encode(
    program: Path, pixels: NDArray[np.uint8], folder: Path, cpu: str = "cortex-m7"
) -> tuple[bytes, dict[str, int]]:
    """The feature file of pixels uint8 [height, width, RGB], and the program's report."""
    source, target = folder / "pixels.rgb", folder / "feat.bin"
    source.write_bytes(pixels.tobytes())
    target.unlink(missing_ok=True)
    done = run(program, [*pixels.shape[:2], source, target], cpu)
    assert done.returncode == 0, done.stderr
    report = {name: int(number) for name, number in map(str.split, done.stderr.splitlines())}
    return target.read_bytes(), report
