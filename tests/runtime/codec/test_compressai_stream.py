"""CompressAI's streams: the same bytes as its own coder writes, and bounded reads of any input."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.ans import RansDecoder, RansEncoder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_tables import as_array, skewed_tables, tables_and_symbols
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.codec.coder import Tables
from runtime.codec.compressai_stream import CompressAiCoder, from_feature_file, to_feature_file


def theirs(cdfs: list[list[int]], offsets: list[int], symbols: list[list[int]]) -> bytes:
    """The stream that CompressAI's own encoder writes."""
    width = max(len(cdf) for cdf in cdfs)
    padded = [cdf + [0] * (width - len(cdf)) for cdf in cdfs]
    indexes = [channel for channel, row in enumerate(symbols) for _ in row]
    flat = [symbol for row in symbols for symbol in row]
    return RansEncoder().encode_with_indexes(
        flat, indexes, padded, [len(cdf) for cdf in cdfs], offsets
    )


@settings(max_examples=300)
@given(tables_and_symbols())
def test_the_bytes_are_compressais(case) -> None:
    cdfs, offsets, symbols = case
    coder, array = CompressAiCoder(Tables(cdfs, offsets)), as_array(symbols)
    stream = coder.encode(array)
    assert np.array_equal(coder.decode(stream, array.shape[1:]), array)
    # CompressAI 1.2.8 may write outside its buffer for less than four symbols.
    assume(array.size >= 4)
    assert stream == theirs(cdfs, offsets, symbols)


def test_compressai_reads_ours() -> None:
    cdfs, offsets = skewed_tables(3)
    symbols = np.random.default_rng(0).integers(-9, 10, (3, 100)).astype(np.int16)
    stream = CompressAiCoder(Tables(cdfs, offsets)).encode(symbols)
    indexes = np.repeat(np.arange(3), 100).tolist()
    assert (
        RansDecoder().decode_with_indexes(stream, indexes, cdfs, [9] * 3, offsets)
        == symbols.reshape(-1).tolist()
    )


@settings(max_examples=200)
@given(st.binary(max_size=120), st.integers(0, 40))
def test_noise_is_refused_or_decodes_to_itself(noise: bytes, row: int) -> None:
    coder = CompressAiCoder(Tables(*skewed_tables(2)))
    try:
        symbols = coder.decode(noise, (row,))
    except errors.DamagedStreamError:
        return
    assert coder.encode(symbols) == noise


def test_every_truncation_flipped_bit_and_addition_is_refused_or_another_stream() -> None:
    coder = CompressAiCoder(Tables(*skewed_tables(2)))
    symbols = np.random.default_rng(1).integers(-300, 300, (2, 20)).astype(np.int16)
    stream = coder.encode(symbols)
    for length in range(len(stream)):
        with pytest.raises(errors.DamagedStreamError):
            coder.decode(stream[:length], (20,))
    with pytest.raises(errors.DamagedStreamError, match="left over"):
        coder.decode(stream + b"\0\0\0\0", (20,))
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(errors.DamagedStreamError):
            assert coder.encode(coder.decode(bytes(damaged), (20,))) == damaged


def test_the_mark_of_a_nan_is_refused() -> None:
    with pytest.raises(errors.NotANumberError):
        CompressAiCoder(Tables(*skewed_tables(1))).encode(np.full((1, 4), -32768, np.int16))


def test_recordings_of_the_models_own_entropy_bottleneck_convert_both_ways(
    random_checkpoint: Path, random_bundle: Path, golf_ball: NDArray[np.uint8]
) -> None:
    """`compress` and `decompress` of the torch checkpoint, and our feature files."""
    from export.parity import torch_symbols
    from training.checkpoint import load_model

    model, _ = load_model(random_checkpoint, "ours_n0")
    entropy = model.bottleneck_layer.entropy_bottleneck
    entropy.update(force=True)
    pixels = np.ascontiguousarray(golf_ball[:128, :192])
    with torch.no_grad():
        symbols = torch.from_numpy(torch_symbols(model, pixels[None]))
        stream = entropy.compress(symbols.float() + model.bottleneck_layer.medians)[0]
    data = to_feature_file(stream, 128, 192, random_bundle)
    assert np.array_equal(CloudDecoder(random_bundle, 1).symbols(data), symbols[0].numpy())
    assert from_feature_file(data, random_bundle) == (stream, (16, 24))
    with torch.no_grad():
        latent = entropy.decompress(
            [
                from_feature_file(
                    EdgeEncoder(random_bundle, 1).encode(pixels, as_is=True), random_bundle
                )[0]
            ],
            (16, 24),
        )
    assert (latent.round() - symbols != 0).float().mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 0), (-8, 64), (8 << 12, 8 << 12)])
def test_impossible_pixels(random_bundle: Path, height: int, width: int) -> None:
    with pytest.raises(errors.StreamShapeError, match="multiples of 8"):
        to_feature_file(b"", height, width, random_bundle)
