"""benchmarks/edges.py compares the edge's forms, and stops if they write different files."""

import json
from pathlib import Path

import numpy as np
import pytest
from needed_tool import needed
from numpy.typing import NDArray
from web_build import build_web

from benchmarks import edges, edges_elsewhere
from benchmarks.common import BenchmarkError


@pytest.mark.slow
def test_a_row_for_each_form(
    csrc_build: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = csrc_build / "edge-encode"
    if not program.is_file():
        pytest.skip("no libjpeg: apt-get install libjpeg62-turbo-dev")
    build_web()
    for tool, package in (
        ("node", "nodejs"),
        ("arm-none-eabi-g++", "gcc-arm-none-eabi"),
        ("qemu-system-arm", "qemu-system-arm"),
    ):
        needed(tool, package)
    assert edges.main(["--command", str(program), "--runs", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    python, native, cpp, browser, small_browser, cortex_m = rows
    assert python["program_bytes"] > native["program_bytes"] > 100 * cpp["program_bytes"]
    assert cpp["program_bytes"] + cpp["bundle_bytes"] < 1_500_000
    assert 0 < cpp["peak_memory_mb"] < native["peak_memory_mb"]
    assert cpp["process_ms"]["median"] < native["process_ms"]["median"]
    assert all(row["pixels_ms"]["median"] > 0 for row in rows)
    assert browser["program_bytes"] < 200_000
    assert small_browser["bundle_bytes"] == cortex_m["bundle_bytes"] < browser["bundle_bytes"]
    assert cortex_m["program_bytes"] + cortex_m["bundle_bytes"] <= 160 << 10
    assert cortex_m["peak_memory_mb"] <= 1 / 16
    text = edges.table(rows)
    assert text.count("\n") == 7
    assert "million instructions, one a cycle |" in text


def test_a_program_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert edges.main(["--command", "no/such/program"]) == 1
    assert "no program no/such/program: build it with cmake" in capsys.readouterr().err


def test_a_program_that_fails() -> None:
    with pytest.raises(BenchmarkError, match="false failed"):
        edges.measure(Path("/bin/false"), 1, 4)


def test_what_the_other_forms_need(
    bundle: Path, golf_ball: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges_elsewhere, "_DIST", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "node" else None)
    with pytest.raises(BenchmarkError, match="run make web"):
        edges_elsewhere.browser("ours_n4", bundle, golf_ball, 4)
    with pytest.raises(BenchmarkError, match=r"no arm-none-eabi-g\+\+: apt-get install"):
        edges_elsewhere.cortex_m("ours_n0", bundle)
