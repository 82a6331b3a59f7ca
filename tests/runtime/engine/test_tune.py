"""`--tune`: it measures, saves a choice that auto follows, and never chooses a wrong engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import cloud_decode as cloud_cli
from runtime.cli import edge_encode as edge_cli
from runtime.codec.bundle import Bundle
from runtime.engine import registry
from runtime.engine import tune as tuning
from runtime.engine.base import Choice
from runtime.engine.registry import SAFE, TUNED
from runtime.errors import TuneError

Capture = pytest.CaptureFixture[str]
Copy = Callable[[Path], Path]
GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


def test_tune_keeps_a_choice_that_auto_follows(
    bundle: Path, copy_of: Copy, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WARM_UP", 1)
    monkeypatch.setattr(tuning, "ROUNDS", 3)
    folder = str(copy_of(bundle))
    assert (
        edge_cli.main(
            ["--tune", "--json", "--bundle", folder, str(GOLF_BALL), "-o", str(tmp_path / "f.bin")]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[0])
    assert {(row["provider"], row["precision"]) for row in result["candidates"]} >= {
        ("cpu", "fp32"),
        ("cpu", "int8"),
    }
    chosen = Choice(result["provider"], result["precision"])
    assert EdgeEncoder(folder, 1).engine.choice == chosen
    assert EdgeEncoder(folder, 1, provider="cpu", precision="fp32").engine.choice == SAFE
    assert CloudDecoder(folder, 1).engine.choice == SAFE, "the cloud has not been tuned"
    assert cloud_cli.main(["--tune", "--bundle", folder, str(tmp_path / "f.bin")]) == 0
    out = capsys.readouterr().out
    assert "<- chosen" in out
    assert "golf ball" in out
    tuned = json.loads((Path(folder) / TUNED).read_text())
    assert tuned["edge"] == result, "tuning the cloud leaves the edge's choice alone"
    assert CloudDecoder(folder, 1).engine.choice == Choice(
        tuned["cloud"]["provider"], tuned["cloud"]["precision"]
    )


def test_a_choice_of_another_device_is_not_used(
    bundle: Path, copy_of: Copy, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(bundle)
    head = {
        "device": registry.describe_device(),
        "fingerprint": Bundle.load(folder).fingerprint.hex(),
    }
    (folder / TUNED).write_text(
        json.dumps(head | {"edge": {"provider": "cpu", "precision": "int8"}})
    )
    assert EdgeEncoder(folder, 1).engine.choice == Choice("cpu", "int8")
    for content in (
        json.dumps(head | {"device": {}, "edge": {"provider": "cpu", "precision": "int8"}}),
        json.dumps(head | {"edge": {"provider": "cpu"}}),
        "[]",
        "no JSON",
        "[" * 10000,
    ):
        (folder / TUNED).write_text(content)
        caplog.clear()
        assert EdgeEncoder(folder, 1).engine.choice == SAFE
        assert "tune again" in caplog.text
    (folder / TUNED).write_text(
        json.dumps(head | {"edge": {"provider": "sun", "precision": "fp32"}})
    )
    assert EdgeEncoder(folder, 1).engine.choice == SAFE


class _Altered:
    """An engine with a share of wrong symbols, and faster than any other."""

    def __init__(self, real: Any, share: float):
        self.real, self.share, self.output = real, share, None

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self.output is None:
            self.output = self.real.run(batch)["symbols"].copy()
            flat = self.output.reshape(-1)
            flat[: int(len(flat) * self.share)] += 1
        return {"symbols": self.output}


@pytest.mark.parametrize(("share", "accepted"), [(0.5, False), (0.0, True)])
def test_an_engine_that_deviates_is_never_chosen(
    bundle: Path,
    copy_of: Copy,
    pixels: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    accepted: bool,
) -> None:
    loaded = Bundle.load(copy_of(bundle))
    real = tuning.open_choice
    other = Choice("cpu", "int8")
    monkeypatch.setattr(tuning, "candidates", lambda bundle, end: [SAFE, other])
    monkeypatch.setattr(
        tuning,
        "open_choice",
        lambda b, e, t, choice: (
            _Altered(real(b, e, t, SAFE), share) if choice == other else real(b, e, t, choice)
        ),
    )
    result = tuning.tune(loaded, "edge", [pixels], tuning.changed_symbols, 1)
    assert result["candidates"][1]["accepted"] is accepted
    assert result["candidates"][1]["deviation"] == share
    assert Choice(result["provider"], result["precision"]) == (other if accepted else SAFE)
    assert ("too far from float32" in tuning.table(result)) is not accepted


def test_an_engine_that_fails_is_passed_over(
    bundle: Path, copy_of: Copy, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tuning.open_choice

    def broken(b: Bundle, e: str, t: int | None, choice: Choice) -> Any:
        if choice != SAFE:
            raise RuntimeError("illegal instruction\nand more")
        return real(b, e, t, choice)

    monkeypatch.setattr(tuning, "open_choice", broken)
    result = tuning.tune(Bundle.load(copy_of(bundle)), "edge", [pixels], tuning.changed_symbols, 1)
    assert (result["provider"], result["precision"]) == ("cpu", "fp32")
    assert "illegal instruction" in tuning.table(result)


def test_what_tune_cannot_do(
    bundle: Path,
    copy_of: Copy,
    pixels: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    loaded = Bundle.load(copy_of(bundle))
    with pytest.raises(TuneError, match="nothing to measure with"):
        tuning.tune(loaded, "edge", [], tuning.changed_symbols, 1)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tuning, "write_atomically", full)
    monkeypatch.setattr(tuning, "ROUNDS", 2)
    with pytest.raises(TuneError, match="cannot be saved"):
        tuning.tune(loaded, "edge", [pixels], tuning.changed_symbols, 1)
    assert edge_cli.main(["--tune", "--bundle", str(loaded.folder), "missing.jpg"]) == 1
    assert "no such file: missing.jpg" in capsys.readouterr().err
