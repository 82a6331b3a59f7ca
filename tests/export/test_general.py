"""n4_lite2 as a plain clone exports it: a thousand classes, through both ends."""

from pathlib import Path

import pytest

from export.cli import main
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import EDGE_WEIGHTS

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_picture_is_named_among_a_thousand(tmp_path: Path) -> None:
    out = tmp_path / "n4_lite2"
    assert main(["n4_lite2", "--out", str(out)]) == 0
    encoder, decoder = EdgeEncoder(out, threads=1), CloudDecoder(out, threads=1)
    manifest = encoder.bundle.manifest
    assert (manifest.model, manifest.weights) == ("n4_lite2", "trained")
    assert len(set(decoder.labels)) > 990  # ImageNet names some of its classes alike
    data = encoder.encode(PROJECT / "docs" / "demo" / "golf_ball.jpg")
    assert len(data) < 1568  # 0.25 bpp
    label, probability, _ = decoder.classify(data)[0]
    assert label == "golf ball"
    assert probability > 0.5
    assert (out / EDGE_WEIGHTS).is_file()
    native = EdgeEncoder(out, threads=1, provider="native")
    whole = native.encode(PROJECT / "docs" / "demo" / "golf_ball.jpg")
    assert decoder.classify(whole)[0].label == "golf ball"
    (checkpoint,) = (PROJECT / "checkpoints" / "n4_lite2").glob("*.safetensors")
    assert checkpoint.stat().st_size <= 16_000_000
