"""n4_lite2 and ours_n4_vr as a plain clone exports them, through both ends."""

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


@pytest.mark.slow
def test_one_checkpoint_for_any_number_of_bytes(tmp_path: Path) -> None:
    out, picture = tmp_path / "ours_n4_vr", PROJECT / "docs" / "demo" / "golf_ball.jpg"
    assert main(["ours_n4_vr", "--out", str(out)]) == 0
    encoder, decoder = EdgeEncoder(out, threads=1), CloudDecoder(out, threads=1)
    assert (encoder.bundle.manifest.weights, encoder.bundle.manifest.lmb) == (
        "trained",
        "0.16-20.48",
    )
    sizes = [len(encoder.encode(picture, rate=level)) for level in range(16)]
    assert sizes == sorted(sizes)
    assert sizes[15] > 3 * sizes[0]
    for most in (300, 600, 1200):
        data = encoder.encode(picture, max_bytes=most)
        assert 0.9 * min(most, sizes[15]) < len(data) <= most
        assert decoder.classify(data)[0].label == "golf ball"
    # Below level 0 a file is cut, and still gives an answer.
    assert len(encoder.encode(picture, max_bytes=51)) <= 51
    for options in ({"precision": "int8"}, {"provider": "native"}):
        small = EdgeEncoder(out, threads=1, max_bytes=600, **options).encode(picture)
        assert len(small) <= 600
        assert decoder.classify(small)[0].label == "golf ball"


def test_one_checkpoint_for_all_rates_is_no_larger_than_one_of_one_rate() -> None:
    one_rate = PROJECT / "checkpoints" / "ours_n4" / "lmb1.28.safetensors"
    (checkpoint,) = (PROJECT / "checkpoints" / "ours_n4_vr").glob("*.safetensors")
    assert checkpoint.stat().st_size <= one_rate.stat().st_size
