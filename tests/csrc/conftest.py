"""What tests of the C library share: the library, built once, and a bundle opened with it."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_library import CBundle, CLibrary

PROJECT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def csrc_build(bundle: Path) -> Path:
    """The folder in which CMake has built csrc/, with an optimising compiler.

    It is kept between runs, and several test processes share it.
    """
    if not shutil.which("cmake"):
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have cmake")
        pytest.skip("no cmake: apt-get install cmake")
    build = PROJECT / "build" / "csrc-tests"
    build.mkdir(parents=True, exist_ok=True)
    with open(build / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", "csrc", "-B", build, f"-DEDGECLOUD_BUNDLE={bundle}"],
            ["cmake", "--build", build],
        ):
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def c_library(csrc_build: Path) -> CLibrary:
    return CLibrary(csrc_build / "libedgecloud.so")


@pytest.fixture(scope="session")
def c_bundle(c_library: CLibrary, bundle: Path) -> Iterator[CBundle]:
    """The trained ours_n4, opened by the C library."""
    opened = c_library.open(bundle)
    yield opened
    opened.close()
