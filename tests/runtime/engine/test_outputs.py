"""What engines compute: OpenVINO and int8 agree with onnxruntime in float32, or nearly."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.engine.base import Choice
from runtime.engine.openvino import OpenVino
from runtime.errors import InconsistentBundleError

INT8_LAST = (("cpu", "fp32"), ("openvino", "int8"), ("cpu", "int8"))
OPENVINO_INT8 = Choice("openvino", "int8")
GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


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
        "a file decodes to the symbols that were computed"
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
    bundle: Path, pixels: NDArray[np.uint8]
) -> None:
    """At the edge it rounds only what a convolution reads, so symbols are closer to float32's."""
    require_openvino_int8()
    float32, *int8 = (
        EdgeEncoder(bundle, 2, provider=provider, precision=precision).symbols(pixels)
        for provider, precision in INT8_LAST
    )
    openvino, onnxruntime = ((found != float32).sum() for found in int8)
    assert 0 < openvino < onnxruntime


@pytest.mark.xfail(
    strict=True, reason="since ranges are 15 % wider and not 25: 0.047 against 0.040, before 0.017"
)
def test_its_logits_of_the_demo_are_closer_to_those_of_float32(
    bundle: Path, feature_bytes: bytes
) -> None:
    require_openvino_int8()
    float32, *int8 = (
        CloudDecoder(bundle, 2, provider, precision).logits([feature_bytes])
        for provider, precision in INT8_LAST
    )
    openvino, onnxruntime = (np.abs(found - float32).max() for found in int8)
    assert 0 < openvino < onnxruntime


def test_its_logits_are_closer_to_those_of_float32_on_most_images(
    bundle: Path, shared: Path
) -> None:
    require_openvino_int8()
    images = sorted((shared / "data" / "imagenette" / "train").glob("*/*"))[::300]
    encoder = EdgeEncoder(bundle, 2)
    files = [encoder.encode(image, as_is=True) for image in images]
    float32, *int8 = (
        CloudDecoder(bundle, 2, provider, precision).logits(files)
        for provider, precision in INT8_LAST
    )
    openvino, onnxruntime = (np.abs(found - float32).max(1) for found in int8)
    assert 0 < openvino.mean() < onnxruntime.mean()
    assert (openvino < onnxruntime).mean() > 0.5


def require_openvino_int8() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    if OpenVino.lacks(OPENVINO_INT8):
        pytest.skip("this processor has no VNNI, so onnxruntime runs in place of OpenVINO")


def test_a_graph_that_openvino_cannot_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    monkeypatch.setattr(Bundle, "read", lambda self, name: b"no graph")
    with pytest.raises(InconsistentBundleError, match="openvino cannot load"):
        EdgeEncoder(bundle, 1, provider="openvino")


def test_a_signal_after_openvino_is_handled(bundle: Path) -> None:
    """OpenVINO frees a signal stack that it has set; the next signal handler would run on it."""
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
