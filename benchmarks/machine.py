"""What machine and which commit a figure was measured on."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """The project's commit, with a + if tracked files differ from it; None outside a checkout.

    What benchmarks write themselves, benchmarks/results/, does not count: else only the first of
    several benchmarks would run from a clean tree.
    """
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(top,exclude)benchmarks/results",
    )
    return f"{found}+" if found and changed else found or None


def _git(*arguments: str) -> str:
    """What git prints; nothing where there is no git, or no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()


def describe(threads: int) -> dict[str, Any]:
    """Processor, cores, threads in use, system and Python, for a record."""
    # Some virtual machines name a processor by its maker alone, hence the instructions.
    flags = _cpuinfo("flags").split()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def title(machine: dict[str, Any]) -> str:
    """Processor and instructions of a record's machine."""
    return f"{machine['processor']} ({', '.join(machine['instructions'])})"


def processor_seconds(pid: int | str = "self") -> float:
    """Processor time that a process has used so far, user and system, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpuinfo(key: str) -> str:
    """The first entry of that name in /proc/cpuinfo, or nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""
