"""benchmarks/edges.py compares the edge's forms, and stops if they write different files."""

import json
from pathlib import Path

import pytest

from benchmarks import edges
from benchmarks.common import BenchmarkError


@pytest.mark.slow
def test_a_row_for_each_form(
    csrc_build: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = csrc_build / "edge-encode"
    if not program.is_file():
        pytest.skip("no libjpeg: apt-get install libjpeg62-turbo-dev")
    assert edges.main(["--command", str(program), "--runs", "4", "--json"]) == 0
    python, native, cpp = json.loads(capsys.readouterr().out)["rows"]
    assert python["program_bytes"] > native["program_bytes"] > 100 * cpp["program_bytes"]
    assert cpp["program_bytes"] + cpp["bundle_bytes"] < 1_500_000
    assert 0 < cpp["peak_memory_mb"] < native["peak_memory_mb"]
    assert cpp["process_ms"]["median"] < native["process_ms"]["median"]


def test_a_program_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert edges.main(["--command", "no/such/program"]) == 1
    assert "no program no/such/program: build it with cmake" in capsys.readouterr().err


def test_a_program_that_fails() -> None:
    with pytest.raises(BenchmarkError, match="false failed"):
        edges.measure(Path("/bin/false"), 1, 4)
