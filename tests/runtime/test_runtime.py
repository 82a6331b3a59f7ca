"""Both ends together: the demo's class, limits, batches, threads, and other bundles' files."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.codec import feature_file
from runtime.engine.registry import group_by_shape

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"


def test_the_demo_gives_the_right_class(decoder: CloudDecoder, feature_bytes: bytes) -> None:
    assert 200 < len(feature_bytes) < 1200
    best, *others = decoder.classify(feature_bytes, top_k=3)
    assert best.label == "golf ball"
    assert decoder.labels[best.class_index] == "golf ball"
    assert best.probability > max(other.probability for other in others)
    everything = decoder.classify(feature_bytes, top_k=99)
    assert len(everything) == 10
    assert sum(prediction.probability for prediction in everything) == pytest.approx(1)


def test_one_encoder_and_one_decoder_give_the_same_bytes_every_time(
    encoder: EdgeEncoder, bundle: Path, feature_bytes: bytes
) -> None:
    assert encoder.encode(GOLF_BALL) == feature_bytes
    assert encoder.encode(Image.open(GOLF_BALL)) == feature_bytes
    assert EdgeEncoder(bundle, threads=2).encode(GOLF_BALL) == feature_bytes


def test_what_is_decoded_is_what_was_encoded(
    encoder: EdgeEncoder, decoder: CloudDecoder, golf_ball: NDArray[np.uint8]
) -> None:
    symbols = encoder.symbols(golf_ball[None])[0]
    data = encoder.encode(golf_ball, as_is=True)
    assert symbols.shape == (64, 60, 80)
    assert (symbols != 0).mean() > 0.01
    assert np.array_equal(decoder.symbols(data), symbols)
    file = feature_file.parse(data)
    assert (file.height, file.width) == (480, 640)


@pytest.mark.parametrize("side", [(8, 8), (8, 1024), (72, 40), (232, 312)])
def test_odd_sizes(encoder: EdgeEncoder, decoder: CloudDecoder, side: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*side, 3), dtype=np.uint8)
    assert decoder.logits([encoder.encode(pixels, as_is=True)]).shape == (1, 10)


def test_a_batch_of_mixed_sizes_gives_what_each_gives_alone(
    encoder: EdgeEncoder, decoder: CloudDecoder, golf_ball: NDArray[np.uint8]
) -> None:
    images = [golf_ball[:side, : side + 16] for side in (64, 200, 64, 128, 200)] + [
        golf_ball[::-1][:64, :80]
    ]
    files = encoder.encode_batch(images, as_is=True)
    assert files == [encoder.encode(image, as_is=True) for image in images]
    logits = decoder.logits(files)
    assert logits.dtype == np.float32
    for row, data in zip(logits, files, strict=True):
        assert np.allclose(row, decoder.logits([data])[0], atol=1e-4)
    assert encoder.encode_batch([]) == []
    assert decoder.logits([]).shape == (0, 10)


def test_groups_keep_every_index_once() -> None:
    groups = group_by_shape([(1,), (2,), (1,), (1,), (2,)], 2)
    assert groups == [[0, 2], [3], [1, 4]]


def test_threads_may_share_encoder_and_decoder(
    encoder: EdgeEncoder, decoder: CloudDecoder, golf_ball: NDArray[np.uint8]
) -> None:
    images = [np.roll(golf_ball[:96, :96], shift, axis=1) for shift in range(6)]
    expected = [encoder.encode(image, as_is=True) for image in images]
    logits = decoder.logits(expected)

    def work(index: int) -> bool:
        data = encoder.encode(images[index % 6], as_is=True)
        return data == expected[index % 6] and np.allclose(
            decoder.logits([data])[0], logits[index % 6], atol=1e-4
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(36)))


def test_another_bundles_file(random_bundle: Path, feature_bytes: bytes) -> None:
    with pytest.raises(errors.WrongBundleError, match="decode it with the bundle that encoded it"):
        CloudDecoder(random_bundle, 1).classify(feature_bytes)


def test_an_image_larger_than_the_bundle_allows(encoder: EdgeEncoder) -> None:
    with pytest.raises(errors.ImageTooLargeError, match="1048576"):
        encoder.encode(np.zeros((1032, 1024, 3), np.uint8), as_is=True)
    assert encoder.encode(np.zeros((512, 512, 3), np.uint8), as_is=True)


def test_a_file_larger_than_the_bundle_allows_takes_no_memory(decoder: CloudDecoder) -> None:
    """The header claims 2^62 pixels, and is refused before anything is allocated."""
    side = ((1 << 28) - 1) * 8
    with pytest.raises(errors.TooManySymbolsError, match="--max-pixels"):
        decoder.classify(feature_file.build(decoder.bundle.fingerprint, side, side, bytes(100)))


@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 224), (224, 0)])
def test_a_file_of_no_pixels(decoder: CloudDecoder, height: int, width: int) -> None:
    with pytest.raises(errors.DamagedFeatureFileError, match="impossible"):
        decoder.classify(feature_file.build(decoder.bundle.fingerprint, height, width, bytes(16)))


@pytest.mark.parametrize(
    "change", [lambda p: p[:-2], lambda p: p + b"\0\0", lambda p: bytes(len(p)), lambda p: b""]
)
def test_a_payload_that_is_damaged_under_a_right_checksum(
    decoder: CloudDecoder, feature_bytes: bytes, change: Callable[[bytes], bytes]
) -> None:
    payload = change(bytes(feature_file.parse(feature_bytes).payload))
    with pytest.raises(errors.DamagedFeatureFileError, match="payload"):
        decoder.classify(feature_file.build(decoder.bundle.fingerprint, 224, 224, payload))


def test_every_flipped_byte_of_a_real_file_is_refused(
    decoder: CloudDecoder, feature_bytes: bytes
) -> None:
    for at in range(len(feature_bytes)):
        data = bytearray(feature_bytes)
        data[at] ^= 0x55
        with pytest.raises(errors.FeatureFileError):
            decoder.symbols(data)
