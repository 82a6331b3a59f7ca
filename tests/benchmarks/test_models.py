"""benchmarks/models.py exports the bundles that are missing, and keeps stdout for results."""

from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.common import BenchmarkError

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("trained", [True, False])
def test_what_the_export_prints_is_not_a_result(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """With --json, stdout held the export's report before the JSON when a bundle was missing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_trained", lambda _: trained)
    monkeypatch.setattr("export.cli.main", lambda argv: print("exported to", argv[-1]))
    monkeypatch.setattr(models, "_export_random", lambda _, folder: print("exported to", folder))
    folder = models.make_bundle("ours_n0")
    assert folder == Path("bundles/ours_n0_enc" if trained else "bundles/random/ours_n0")
    out, err = capsys.readouterr()
    assert out == ""
    assert f"exported to {folder}" in err


def test_a_bundle_that_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.cli.main", lambda _: 1)
    with pytest.raises(BenchmarkError, match="bundles/ours_n0_enc could not be exported"):
        models.make_bundle("ours_n0")
    assert "exporting bundles/ours_n0_enc" in capsys.readouterr().err
