"""What this device's processor can do.

Always holds: a capability is reported only if Linux's /proc/cpuinfo names it; elsewhere none is.
"""

import os
import platform
from pathlib import Path

X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")


def flags() -> set[str]:
    """The processor's feature flags, as /proc/cpuinfo names them; empty where it cannot be read."""
    lines = (line for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return set(next(lines, "").split())


def has_vnni() -> bool:
    """Whether an x86 processor sums products of eight-bit integers without overflow."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags())


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16, which others emulate slowly."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags())


def name() -> str:
    """The processor's name for a person, or at least its architecture."""
    named = (
        line.split(":", 1)[1].strip()
        for line in _cpuinfo()
        if line.startswith(("model name", "Hardware"))
    )
    return next(named, "") or platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
