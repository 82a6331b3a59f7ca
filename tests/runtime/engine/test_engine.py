"""Engines: what is asked for, what runs, what tune chooses; OpenVINO and int8 give what onnxruntime gives, or nearly."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import cloud_decode as cloud_cli
from runtime.cli import edge_encode as edge_cli
from runtime.codec.bundle import Bundle
from runtime.engine import processor, registry
from runtime.engine import tune as tuning
from runtime.engine.base import Choice
from runtime.engine.onnxruntime import OnnxRuntime
from runtime.engine.openvino import OpenVino
from runtime.engine.registry import SAFE, TUNED
from runtime.errors import EngineChoiceError, InconsistentBundleError, TuneError
from runtime.images.preprocess import preprocess
from runtime.tasks.classification import Classification

Capture = pytest.CaptureFixture[str]
Copy = Callable[[Path], Path]
INT8_LAST = (("cpu", "fp32"), ("openvino", "int8"), ("cpu", "int8"))
EDGE = ("symbols", tuning.changed_symbols)
OPENVINO_INT8 = Choice("openvino", "int8")
GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return preprocess(GOLF_BALL)[None]


def test_what_is_not_asked_for_is_the_cpu_in_float32(bundle: Path) -> None:
    assert EdgeEncoder(bundle, 1).engine.choice == CloudDecoder(bundle, 1).engine.choice == SAFE
    assert str(SAFE) == "cpu fp32"


@pytest.mark.parametrize(
    ("provider", "precision", "text"),
    [
        ("tpu", "auto", "no engine tpu auto: providers are auto, cpu"),
        ("cpu", "fp8", "precisions auto, fp32, bf16, int8"),
        ("cpu", "bf16", "cpu has no bf16: choose --provider openvino"),
        (
            "cpu",
            "int8",
            "has no int8 graph for the edge: leave out --precision, or export with --calibrate",
        ),
    ],
)
def test_what_cannot_be_asked_for(
    random_bundle: Path, provider: str, precision: str, text: str
) -> None:
    with pytest.raises(EngineChoiceError, match=text):
        EdgeEncoder(random_bundle, 1, provider=provider, precision=precision)


def test_int8_is_refused_where_the_bundle_has_none(random_bundle: Path) -> None:
    with pytest.raises(EngineChoiceError, match="no int8 graph for the cloud"):
        CloudDecoder(random_bundle, 1, precision="int8")


def test_the_cloud_in_int8_gives_the_same_class(
    bundle: Path, decoder: CloudDecoder, feature_bytes: bytes
) -> None:
    (first,), (second,) = (
        one.classify(feature_bytes, 1)
        for one in (decoder, CloudDecoder(bundle, 1, precision="int8"))
    )
    assert first.label == second.label
    assert first.probability == pytest.approx(second.probability, abs=0.1)


@pytest.mark.parametrize(
    ("provider", "precision", "runs", "needs"),
    [
        ("cuda", "auto", SAFE, "CUDAExecutionProvider"),
        ("openvino", "bf16", SAFE, "the package openvino"),
        ("auto", "bf16", SAFE, "the package openvino"),
        ("xnnpack", "int8", Choice("cpu", "int8"), "XnnpackExecutionProvider"),
    ],
)
def test_a_device_that_lacks_something_says_so_in_one_line(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    provider: str,
    precision: str,
    runs: Choice,
    needs: str,
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("runtime.engine.openvino.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert EdgeEncoder(bundle, 1, provider=provider, precision=precision).engine.choice == runs
    assert len(caplog.messages) == 1
    assert needs in caplog.text
    assert f"{runs} runs instead" in caplog.text


@pytest.mark.parametrize(
    ("provider", "precision", "share"),
    [
        ("openvino", "fp32", 1e-4),
        ("openvino", "bf16", 2e-3),
        ("openvino", "int8", 0.01),
        ("cpu", "int8", 0.01),
    ],
)
def test_every_engine_computes_nearly_the_same_symbols(
    bundle: Path, pixels: NDArray[np.uint8], provider: str, precision: str, share: float
) -> None:
    if provider == "openvino":
        pytest.importorskip(
            "openvino", reason="OpenVINO is not installed: pip install '.[openvino]'"
        )
    asked = Choice(provider, precision)
    ours, safe = (
        EdgeEncoder(bundle, 2, provider=provider, precision=precision),
        EdgeEncoder(bundle, 2),
    )
    assert ours.engine.choice == (
        Choice("cpu", "int8") if OpenVino.lacks(asked) and provider == "openvino" else asked
    )
    expected, found = safe.symbols(pixels), ours.symbols(pixels)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found != expected).mean() <= share
    assert ours.symbols(np.repeat(pixels[:, :64, :80], 3, 0)).shape == (3, 64, 8, 10)
    data = ours.encode(pixels[0], as_is=True)
    decoder = CloudDecoder(bundle, 2)
    assert np.array_equal(decoder.symbols(data), found[0]), (
        "whatever was computed is what is decoded"
    )
    assert decoder.classify(data)[0].label == "golf ball"


def test_openvino_in_the_cloud_and_from_several_threads(bundle: Path, feature_bytes: bytes) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    decoder = CloudDecoder(bundle, 1, provider="openvino")
    expected = CloudDecoder(bundle, 1).logits([feature_bytes])
    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(decoder.logits, [[feature_bytes]] * 8):
            assert np.allclose(logits, expected, atol=1e-3)


def test_openvino_rounds_less_in_int8_than_onnxruntime(
    bundle: Path, pixels: NDArray[np.uint8], feature_bytes: bytes
) -> None:
    """Eight bits only where a convolution reads them: nearer to float32, at both ends."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    if OpenVino.lacks(OPENVINO_INT8):
        pytest.skip(
            "this processor has no VNNI: onnxruntime runs in OpenVINO's place, whose sums would overflow"
        )
    float32, *int8 = (
        EdgeEncoder(bundle, 2, provider=provider, precision=precision).symbols(pixels)
        for provider, precision in INT8_LAST
    )
    openvino, onnxruntime = ((found != float32).sum() for found in int8)
    assert 0 < openvino < onnxruntime
    float32, *int8 = (
        CloudDecoder(bundle, 2, provider, precision).logits([feature_bytes])
        for provider, precision in INT8_LAST
    )
    openvino, onnxruntime = (np.abs(found - float32).max() for found in int8)
    assert 0 < openvino < onnxruntime


@pytest.mark.parametrize(
    ("flags", "there"),
    [(set(), False), ({"avx512_vnni"}, False), ({"amx_bf16"}, True), ({"bf16"}, True)],
)
def test_bf16_is_tried_only_where_the_processor_has_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], there: bool
) -> None:
    monkeypatch.setattr("runtime.engine.openvino.find_spec", lambda name: True)
    monkeypatch.setattr(processor, "flags", lambda: flags)
    found = registry.candidates(Bundle.load(bundle), "edge")
    assert found[0] == SAFE
    assert (Choice("openvino", "bf16") in found) == there
    assert Choice("cpu", "bf16") not in found


@pytest.mark.parametrize(
    ("x86", "flags", "runs"),
    [
        (True, {"avx2"}, Choice("cpu", "int8")),
        (True, set(), Choice("cpu", "int8")),
        (True, {"avx2", "avx_vnni"}, OPENVINO_INT8),
        (True, {"avx512_vnni"}, OPENVINO_INT8),
        (False, {"asimddp"}, OPENVINO_INT8),
    ],
)
def test_openvino_is_for_int8_only_where_its_sums_do_not_overflow(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    x86: bool,
    flags: set[str],
    runs: Choice,
) -> None:
    monkeypatch.setattr("runtime.engine.openvino.find_spec", lambda name: True)
    monkeypatch.setattr(processor, "flags", lambda: flags)
    monkeypatch.setattr(processor, "X86", x86)
    loaded = Bundle.load(bundle)
    with caplog.at_level(logging.WARNING):
        assert (
            registry.choose(loaded, "edge", "openvino", "int8")
            == registry.choose(loaded, "cloud", "openvino", "int8")
            == runs
        )
    fits = runs == OPENVINO_INT8
    assert caplog.messages == ([] if fits else [caplog.messages[0]] * 2)
    assert fits or "openvino int8 needs a processor with VNNI" in caplog.text
    assert (OPENVINO_INT8 in registry.candidates(loaded, "edge")) == fits
    assert Choice("openvino", "fp32") in registry.candidates(loaded, "edge")


def test_a_graph_that_openvino_cannot_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    monkeypatch.setattr(Bundle, "read", lambda self, name: b"no graph")
    with pytest.raises(InconsistentBundleError, match="openvino cannot load"):
        EdgeEncoder(bundle, 1, provider="openvino")


def test_tune_keeps_a_choice_that_auto_follows(
    bundle: Path, copy_of: Copy, capsys: Capture, tmp_path: Path
) -> None:
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
    """An engine that is right except in a share of its outputs, and faster than any."""

    def __init__(self, real: Any, share: float):
        self.real, self.share, self.output = real, share, None

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self.output is None:
            self.output = self.real.run(batch)["symbols"].copy()
            flat = self.output.reshape(-1)
            flat[: int(len(flat) * self.share)] += 1
        return {"symbols": self.output}


@pytest.mark.parametrize(("share", "accepted"), [(0.5, False), (0.0, True)])
def test_an_engine_that_strays_is_never_chosen(
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
    result = tuning.tune(loaded, "edge", [pixels], *EDGE, 1)
    assert result["candidates"][1]["accepted"] is accepted
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
    result = tuning.tune(Bundle.load(copy_of(bundle)), "edge", [pixels], *EDGE, 1)
    assert (result["provider"], result["precision"]) == ("cpu", "fp32")
    assert "illegal instruction" in tuning.table(result)


def test_strays_of_logits() -> None:
    logits = np.array([[4.0, 0.0, 0.0]], np.float32)
    assert Classification.deviation(logits, logits + 1) == (0.0, False)
    assert Classification.deviation(logits, np.array([[0.0, 4.0, 0.0]], np.float32))[1]
    assert Classification.deviation(logits, np.full((1, 3), np.nan, np.float32)) == (1.0, True)
    assert Classification.deviation(logits, logits.astype(np.float64)) == (1.0, True)


def test_what_tune_cannot_do(
    bundle: Path,
    copy_of: Copy,
    pixels: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    loaded = Bundle.load(copy_of(bundle))
    with pytest.raises(TuneError, match="nothing to measure with"):
        tuning.tune(loaded, "edge", [], *EDGE, 1)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tuning, "write_atomically", full)
    monkeypatch.setattr(tuning, "ROUNDS", 2)
    with pytest.raises(TuneError, match="cannot be saved"):
        tuning.tune(loaded, "edge", [pixels], *EDGE, 1)
    assert edge_cli.main(["--tune", "--bundle", str(loaded.folder), "missing.jpg"]) == 1
    assert "no such file: missing.jpg" in capsys.readouterr().err


class _Doubling(OnnxRuntime):
    """Somebody's own engine: its provider, its precisions, its quirks in one class."""

    PROVIDERS = ("doubling",)
    PRECISIONS = ("fp32",)

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        super().__init__(graph, SAFE, threads, workers)
        self.choice = choice

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        return None

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {name: 2 * values for name, values in super().run(batch).items()}


def test_an_engine_is_one_class_and_one_line_of_registration(
    bundle: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineChoiceError, match="no engine doubling"):
        EdgeEncoder(bundle, 1, provider="doubling")
    monkeypatch.setattr(registry, "ENGINES", [*registry.ENGINES, _Doubling])
    ours = EdgeEncoder(bundle, 1, provider="doubling")
    assert str(ours.engine.choice) == "doubling fp32"
    assert np.array_equal(ours.symbols(pixels), 2 * EdgeEncoder(bundle, 1).symbols(pixels))
    assert Choice("doubling", "fp32") in registry.candidates(Bundle.load(bundle), "edge")
    assert Choice("doubling", "bf16") not in registry.candidates(Bundle.load(bundle), "edge")
    with pytest.raises(EngineChoiceError, match="doubling has no bf16: choose --provider openvino"):
        EdgeEncoder(bundle, 1, provider="doubling", precision="bf16")


def test_a_signal_after_openvino_is_handled(bundle: Path) -> None:
    """It leaves a signal stack behind that it frees, on which the handler of the next signal would run."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    code = (
        "import os, signal, sys\n"
        "from runtime import CloudDecoder, EdgeEncoder\n"
        "def once():\n"
        "    data = EdgeEncoder(sys.argv[1], 1, provider='openvino').encode(sys.argv[2])\n"
        "    CloudDecoder(sys.argv[1], 1, 'openvino').classify(data)\n"
        "once(); kept = EdgeEncoder(sys.argv[1], 1, provider='openvino'); once()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: kept.encode(sys.argv[2]); print('handled')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, GOLF_BALL], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
