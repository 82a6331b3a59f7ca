"""What tests of the web package and the page share: both built by `make web`, once."""

import fcntl
import os
import shutil
from pathlib import Path
from subprocess import run

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent


def needed(tool: str, package: str) -> str:
    """Path of a program. Without it the test is skipped, except in CI, which must have it."""
    found = shutil.which(tool)
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have {tool}")
        pytest.skip(f"no {tool}: apt-get install {package}")
    return found


@pytest.fixture(scope="session")
def node() -> str:
    return needed("node", "nodejs")


@pytest.fixture(scope="session")
def web_build() -> Path:
    """The folder `web`, with what `make web` compiles. Several test processes share it."""
    needed("em++", "emscripten")
    build = PROJECT / "build"
    build.mkdir(exist_ok=True)
    with open(build / ".web-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(["make", "web"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return PROJECT / "web"
