"""What this device's processor can do, as far as that can be seen (Linux; elsewhere nothing is claimed)."""

import os
import platform
from pathlib import Path

X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")


def flags() -> set[str]:
    """What the processor says that it can; nothing where that cannot be seen."""
    lines = (line for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return set(next(lines, "").split())


def has_vnni() -> bool:
    """Whether an x86 processor multiplies eight-bit integers without overflow; False where that cannot be seen."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags())


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16, which others emulate slowly; False where that cannot be seen."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags())


def name() -> str:
    """The processor's name."""
    named = (
        line.split(":", 1)[1].strip()
        for line in _cpuinfo()
        if line.startswith(("model name", "Hardware"))
    )
    return next(named, "") or platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
