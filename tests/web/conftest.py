"""What tests of the web package and the page share: both built by `make web`, once."""

import fcntl
from pathlib import Path
from subprocess import run

import pytest
from needed_tool import needed

PROJECT = Path(__file__).resolve().parent.parent.parent


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
