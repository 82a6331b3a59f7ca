"""`make web`, for several test processes at once."""

import fcntl
from pathlib import Path
from subprocess import run

from needed_tool import needed

PROJECT = Path(__file__).resolve().parent.parent.parent


def build_web() -> Path:
    """The folder `web`, with what `make web` compiles. Skips the test without emscripten."""
    needed("em++", "emscripten")
    build = PROJECT / "build"
    build.mkdir(exist_ok=True)
    with open(build / ".web-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(["make", "web"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return PROJECT / "web"
