"""Small files: context tables against the Python coder, and what is refused."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import reference_coder
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import skewed_tables
from numpy.typing import NDArray

from export.counts import contexts_of
from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.codec.bundle import Bundle
from runtime.codec.coder import CONTEXTS, Contexts, Tables
from runtime.codec.compressai_stream import CompressAiCoder, from_feature_file, to_feature_file
from runtime.codec.feature_file import Profile, parse

LIMIT = 32767
FORMAT = Path(__file__).resolve().parents[3] / "docs" / "FORMAT.md"


@st.composite
def cases(
    draw: st.DrawFn,
) -> tuple[list[list[int]], list[int], reference_coder.Contexts, NDArray[np.int16]]:
    """Any tables, context tables for some channels, and symbols inside and outside of them."""
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 18]))
    rows, columns = draw(st.sampled_from([0, 1, 2, 5])), draw(st.sampled_from([1, 2, 3, 7]))
    cdfs, offsets, contexts, planes = [], [], {}, []
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    for channel in range(channels):
        size = draw(st.sampled_from([1, 2, 5, 16, 60, 255]))
        offset = draw(st.one_of(st.just(-(size // 2)), st.integers(-LIMIT, LIMIT - size + 1)))

        def cdf(size: int = size) -> list[int]:
            # A population of `size` puts all inner values at one end, with frequencies of 1.
            inner = np.sort(rng.choice(rng.choice([size, 4000, 65535]), size, replace=False)) + 1
            return [0, *inner.tolist(), 65536]

        cdfs.append(cdf())
        offsets.append(offset)
        if draw(st.booleans()):
            thresholds = sorted(
                draw(
                    st.lists(
                        st.integers(max(-LIMIT, offset - 3), min(LIMIT, offset + size + 3)),
                        min_size=4,
                        max_size=4,
                        unique=True,
                    )
                )
            )
            contexts[channel] = (thresholds, [cdf() for _ in range(CONTEXTS)])
        kind = draw(st.sampled_from(["inside", "near", "anywhere"]))
        low, high = {
            "inside": (offset, offset + size),
            "near": (offset - 3, offset + size + 3),
            "anywhere": (-LIMIT, LIMIT + 1),
        }[kind]
        planes.append(rng.integers(max(low, -LIMIT), min(high, LIMIT + 1), (rows, columns)))
    return cdfs, offsets, contexts, np.array(planes, np.int16).reshape(channels, rows, columns)


def tables_of(
    cdfs: list[list[int]], offsets: list[int], contexts: reference_coder.Contexts
) -> Tables:
    return Tables(cdfs, offsets, {channel: Contexts(*pair) for channel, pair in contexts.items()})


@settings(max_examples=300)
@given(cases())
def test_both_coders_write_the_same_bytes_and_read_them_back(case) -> None:
    cdfs, offsets, contexts, planes = case
    tables, (rows, columns) = tables_of(cdfs, offsets, contexts), planes.shape[1:]
    symbols = planes.reshape(len(planes), -1).tolist()
    payload = tables.encode(planes, profile=Profile.CONTEXT)
    assert payload == reference_coder.encode_small(cdfs, offsets, contexts, symbols, columns)
    assert np.array_equal(tables.decode(payload, (rows, columns), profile=Profile.CONTEXT), planes)
    assert (
        reference_coder.decode_small(cdfs, offsets, contexts, payload, rows * columns, columns)
        == symbols
    )


@settings(max_examples=300)
@given(cases(), st.data())
def test_a_damaged_payload_is_refused_or_decodes_to_itself(case, data: st.DataObject) -> None:
    cdfs, offsets, contexts, planes = case
    tables = tables_of(cdfs, offsets, contexts)
    payload = bytearray(tables.encode(planes, profile=Profile.CONTEXT))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload)))]
    try:
        decoded = tables.decode(bytes(payload), planes.shape[1:], profile=Profile.CONTEXT)
    except errors.DamagedFeatureFileError:
        return
    assert tables.encode(decoded, profile=Profile.CONTEXT) == payload


def context_tables(channels: int, with_contexts: int) -> Tables:
    """Skewed tables; context tables make the symbols likely that their context suggests."""
    cdfs, offsets = skewed_tables(channels)
    skewed = []
    for context in range(CONTEXTS):
        weights = np.ones(8)
        weights[[3, 1 + context // 5, 1 + context % 5]] += [20, 100, 100]
        frequencies = (weights / weights.sum() * 65000).astype(int)
        frequencies[3] += 65536 - frequencies.sum()
        skewed.append([0, *np.cumsum(frequencies).tolist()])
    return Tables(
        cdfs,
        offsets,
        {channel: Contexts([-1, 0, 1, 2], skewed) for channel in range(with_contexts)},
    )


@pytest.mark.parametrize("with_contexts", [0, 1, 2, 3, 15, 16, 17, 19])
@pytest.mark.parametrize("side", [28, 55])
def test_any_number_of_channels_with_context_tables(with_contexts: int, side: int) -> None:
    """For two lanes and four, and for numbers that no lane count divides."""
    tables = context_tables(20, with_contexts)
    rng = np.random.default_rng(side)
    planes = np.where(
        rng.random((20, side, side)) < 0.3, rng.integers(-5, 6, (20, side, side)), 0
    ).astype(np.int16)
    payload = tables.encode(planes, profile=Profile.CONTEXT)
    contexts = {
        channel: (pair[0].tolist(), [row.tolist() for row in pair[1]])
        for channel, pair in tables.contexts.items()
    }
    cdfs, offsets = [cdf.tolist() for cdf in tables.cdfs], tables.offsets.tolist()
    assert payload == reference_coder.encode_small(
        cdfs, offsets, contexts, planes.reshape(20, -1).tolist(), side
    )
    assert np.array_equal(tables.decode(payload, (side, side), profile=Profile.CONTEXT), planes)
    for length in [*range(0, 60, 2), len(payload) - 2]:
        with pytest.raises(errors.DamagedFeatureFileError, match="damaged"):
            tables.decode(payload[:length], (side, side), profile=Profile.CONTEXT)
    with pytest.raises(errors.DamagedFeatureFileError, match="left over"):
        tables.decode(payload + b"\0\0", (side, side), profile=Profile.CONTEXT)


def test_contexts_match_the_python_coder() -> None:
    plane = np.random.default_rng(0).integers(-4, 5, (6, 5))
    expected = [
        reference_coder.context_of([-2, 0, 1, 3], plane.reshape(-1).tolist(), at, 5)
        for at in range(30)
    ]
    assert contexts_of(plane, [-2, 0, 1, 3]).reshape(-1).tolist() == expected


def test_golden_bytes() -> None:
    """These bytes are the format: other bytes need another version."""
    golden = "05300300b6f9e002168a"
    cdfs, offsets = [[0, 30000, 60000, 65536], [0, 10, 65000, 65500, 65536]], [0, -1]
    contexts = {
        0: (
            [-1, 0, 1, 2],
            [[0, 20000 + 1000 * context, 60000, 65536] for context in range(CONTEXTS)],
        )
    }
    symbols = [[0, 1, 1, 0, 1, 5], [0, 0, 0, -1, 0, 0]]
    planes = np.array(symbols, np.int16).reshape(2, 2, 3)
    assert (
        tables_of(cdfs, offsets, contexts).encode(planes, profile=Profile.CONTEXT).hex() == golden
    )
    assert reference_coder.encode_small(cdfs, offsets, contexts, symbols, 3).hex() == golden
    assert np.array_equal(
        tables_of(cdfs, offsets, contexts).decode(
            bytes.fromhex(golden), (2, 3), profile=Profile.CONTEXT
        ),
        planes,
    )
    assert golden in FORMAT.read_text()


def test_the_mark_of_a_nan_is_refused() -> None:
    planes = np.zeros((2, 3, 3), np.int16)
    planes[0, 1, 1] = -32768
    with pytest.raises(errors.NotANumberError, match="not a number"):
        context_tables(2, 1).encode(planes, profile=Profile.CONTEXT)


GOOD = ([-1, 0, 1, 2], [[0, 1, 2, 65536]] * CONTEXTS)


@pytest.mark.parametrize(
    ("channel", "thresholds", "cdfs", "text"),
    [
        (2, *GOOD, "channel 2, which does not exist"),
        (-1, *GOOD, "channel -1, which does not exist"),
        (1, [0, 1, 2], GOOD[1], "not 4 thresholds"),
        (1, [0, 1, 1, 2], GOOD[1], "do not increase"),
        (1, [-32768, 0, 1, 2], GOOD[1], "do not increase"),
        (1, [0, 1, 2, 32768], GOOD[1], "do not increase"),
        (1, ["a", 1, 2, 3], GOOD[1], "not a row of integers"),
        (1, GOOD[0], GOOD[1][1:], "25 CDFs"),
        (1, GOOD[0], [[0, 1, 65536]] * CONTEXTS, "as long as"),
        (1, GOOD[0], [*GOOD[1][1:], [0, 2, 2, 65536]], "does not increase at value 2"),
        (1, GOOD[0], [*GOOD[1][1:], [0, 1, 2, 65535]], "does not end at 65536"),
        (0, GOOD[0], [[*range(257), 65536]] * CONTEXTS, "more than 256 entries"),
    ],
)
def test_bad_context_tables_are_refused(
    channel: int, thresholds: list, cdfs: list, text: str
) -> None:
    with pytest.raises(errors.TablesError, match=text):
        Tables(
            [[*range(257), 65536], [0, 1, 2, 65536]], [0, 0], {channel: Contexts(thresholds, cdfs)}
        )


def test_context_tables_survive_their_file_and_change_the_digest() -> None:
    tables = context_tables(3, 2)
    again = Tables.from_json(tables.to_json())
    assert again.to_json() == tables.to_json()
    assert again.digest() == tables.digest()
    assert len({context_tables(3, number).digest() for number in range(4)}) == 4


@pytest.mark.parametrize(
    "contexts",
    [
        b"[]",
        b'{"a": 1}',
        b'{"0": {"thresholds": [0, 1, 2, 3]}}',
        b'{"0": {"thresholds": 5, "cdfs": 7}}',
        b'{"0": []}',
    ],
)
def test_a_bad_file_of_context_tables_is_refused(contexts: bytes) -> None:
    with pytest.raises(errors.TablesError):
        Tables.from_json(
            b'{"precision": 16, "cdfs": [[0, 1, 65536]], "offsets": [0], "contexts": '
            + contexts
            + b"}"
        )


def test_the_default_bundle_writes_small_files_of_the_same_symbols(
    bundle: Path, golf_ball: NDArray[np.uint8]
) -> None:
    small, plain = EdgeEncoder(bundle, 1), EdgeEncoder(bundle, 1, profile=Profile.STATIC)
    files = small.encode(golf_ball), plain.encode(golf_ball)
    assert [parse(file).profile for file in files] == [Profile.CONTEXT, Profile.STATIC]
    assert len(files[0]) < 0.85 * len(files[1])
    decoder = CloudDecoder(bundle, 1)
    assert np.array_equal(*(decoder.bundle.decode(file) for file in files))
    assert np.array_equal(*(decoder.logits([file]) for file in files))


def test_a_small_file_may_not_claim_to_be_plain(bundle: Path, feature_bytes: bytes) -> None:
    body = feature_bytes[:1] + bytes([feature_bytes[1] ^ 0x10]) + feature_bytes[2:-4]
    with pytest.raises(errors.DamagedFeatureFileError):
        Bundle.load(bundle).decode(body + zlib.crc32(body).to_bytes(4, "little"))


def test_small_files_need_context_tables(random_bundle: Path, golf_ball: NDArray[np.uint8]) -> None:
    """The random bundle was exported without counts."""
    with pytest.raises(errors.NoContextTablesError, match="--refit"):
        EdgeEncoder(random_bundle, 1, profile=Profile.CONTEXT)
    encoder = EdgeEncoder(random_bundle, 1)
    with pytest.raises(errors.NoContextTablesError, match="--refit"):
        encoder.bundle.encode(
            encoder.symbols(golf_ball[None])[0], 480, 640, profile=Profile.CONTEXT
        )
    file = bytearray(encoder.encode(golf_ball))
    file[1] |= 0x10
    file[-4:] = zlib.crc32(file[:-4]).to_bytes(4, "little")
    with pytest.raises(errors.DamagedFeatureFileError, match="small one"):
        encoder.bundle.decode(bytes(file))


def test_compressai_streams_use_the_checkpoints_own_tables(
    bundle: Path, feature_bytes: bytes
) -> None:
    """CompressAI's receivers have these tables, not the fitted ones."""
    loaded = Bundle.load(bundle)
    own = loaded.compressai_tables()
    assert own.digest() != loaded.tables.digest()
    assert not own.contexts
    stream, shape = from_feature_file(feature_bytes, bundle)
    assert np.array_equal(CompressAiCoder(own).decode(stream, shape), loaded.decode(feature_bytes))
    assert to_feature_file(stream, 224, 224, bundle) == feature_bytes
