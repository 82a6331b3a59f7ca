"""What tests of the C library and its command share: both built once, a bundle, and pictures."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_library import CBundle, CLibrary
from cpp_command import JPEGS, PNMS, Run

from runtime import EdgeEncoder

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


@pytest.fixture(scope="session")
def c_variable(c_library: CLibrary, variable_bundle: Path) -> Iterator[CBundle]:
    """A variable-rate bundle with made-up rates, opened by the C library."""
    opened = c_library.open(variable_bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def program(csrc_build: Path) -> Path:
    built = csrc_build / "edge-encode"
    if not built.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have libjpeg")
        pytest.skip("no libjpeg: apt-get install libjpeg62-turbo-dev")
    return built


@pytest.fixture
def run(program: Path, bundle: Path, tmp_path: Path) -> Run:
    """Runs the command in a folder of its own, with the trained ours_n4."""

    def start(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "EDGECLOUD_BUNDLE": str(bundle)},
            check=False,
            timeout=60,
        )

    return start


@pytest.fixture(scope="session")
def native(bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(bundle, threads=1, provider="native")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images, files that are none, hidden ones, and links."""
    root = tmp_path / "photos"
    (root / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.JPG", "a.jpeg", "sub/c.d.jpg", ".no.jpg", "sub/.hidden/no.jpg"):
        (root / name).write_bytes(JPEGS["17x8"])
    (root / "sub" / "e.ppm").write_bytes(PNMS["P6"])
    (root / "notes.txt").touch()
    (root / "none").touch()
    (root / "gone.jpg").symlink_to("nothing")
    (root / "linked").symlink_to("sub")
    return root
