"""benchmarks/kernels.py has a row for each kernel, and stops if one gives other symbols."""

import json
from pathlib import Path

import pytest

from benchmarks import kernels
from runtime.engine import _encoder


def test_a_row_for_each_kernel(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "make_bundle", lambda _: bundle)
    assert kernels.main(["--models", "ours_n4", "--runs", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = {(row["kernel"], row["threads"]) for row in rows}
    assert names >= {(name, threads) for name in _encoder.KERNELS for threads in (1, 2)}
    assert ("onnxruntime int8", 2) in names
    assert all(row["graph_ms"]["median"] > 0 for row in rows)
    assert kernels.table(rows).count("\n") == len(rows) + 1


def test_other_symbols_stop_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "make_bundle", lambda _: bundle)
    count = iter(range(10_000))
    monkeypatch.setattr(kernels, "_native", lambda encoder, pixels: bytes([next(count) % 2]))
    assert kernels.main(["--models", "ours_n4", "--runs", "4"]) == 1
    assert "gives another output than the first" in capsys.readouterr().err
