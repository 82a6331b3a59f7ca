"""Each program in examples/ runs and prints the expected result."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PRINTS = {
    "encode_and_decode": "golf ball",
    "a_folder": "golf_ball.jpg: golf ball",
    "serve_and_send": "golf_ball.jpg: delivered, golf ball",
    "custom_engine": "reference fp32: 0.0",
    "convert_from_compressai": "the same string again: True",
}
INPUTS = {"a_folder": ["docs/demo"], "custom_engine": []}


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in (PROJECT / "examples").glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_an_example(name: str, bundle: Path) -> None:
    inputs = INPUTS.get(name, ["docs/demo/golf_ball.jpg"])
    command = [sys.executable, f"examples/{name}.py", *inputs, str(bundle)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert PRINTS[name] in done.stdout
