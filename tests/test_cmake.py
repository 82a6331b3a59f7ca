"""CMake builds the coder without Python, and the result passes its golden cases."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def test_cmake_builds_and_tests_the_coder(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have cmake")
        pytest.skip("no cmake: apt-get install cmake")
    for command in (["cmake", "-S", CSRC, "-B", tmp_path], ["cmake", "--build", tmp_path]):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout
