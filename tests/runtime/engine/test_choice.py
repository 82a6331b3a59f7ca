"""The choice of an engine: what may be asked for, what runs, and what `--tune` would try."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.engine import processor, registry
from runtime.engine.base import Choice
from runtime.engine.onnxruntime import OnnxRuntime
from runtime.engine.registry import SAFE
from runtime.errors import EngineChoiceError

OPENVINO_INT8 = Choice("openvino", "int8")


def test_the_default_is_the_cpu_in_float32(bundle: Path) -> None:
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


class _Doubling(OnnxRuntime):
    """An engine of a user: its provider, its precisions and its quirks in one class."""

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
