"""Ways to run edge-encode and cloud-decode in processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"
Capture = pytest.CaptureFixture[str]


def command(name: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command by the name of its module."""
    return subprocess.run(
        [sys.executable, "-m", f"runtime.cli.{name}", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
    )


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in bash; $0 is this interpreter."""
    done = ["bash", "-c", line, sys.executable, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(done, capture_output=True, text=True, check=False, env=environment)
