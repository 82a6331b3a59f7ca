"""What machine a figure was measured on."""

import argparse
import os
import platform
import re
import subprocess
from pathlib import Path


def image_size(text: str) -> str:
    """An argparse type: 640x480, up to 16384 a side."""
    if re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", text) and all(
        1 <= int(side) <= 16384 for side in text.split("x")
    ):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not like 640x480, from 1 to 16,384 a side")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """The project's commit, with a + if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return (
            subprocess.run(
                command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            ).stdout.strip()
            or None
        )
    except OSError:
        return None


def describe(threads: int) -> dict[str, object]:
    """Processor, cores, threads in use, system and Python, for a result's record."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    # Some virtual machines give a processor no better name than its maker's.
    flags = _flags()
    return {
        "processor": processor,
        "instructions": [
            name
            for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
            if name in flags
        ],
        "cores": cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    except OSError:
        pass
    return set()
