"""The native coder against the Python one, golden bytes, and what it refuses."""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import reference_coder
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import LIMIT, as_array, skewed_tables, tables_and_symbols

from runtime.codec import _coder
from runtime.codec.coder import Tables
from runtime.errors import DamagedFeatureFileError, NotANumberError, TablesError

FORMAT = Path(__file__).resolve().parents[3] / "docs" / "FORMAT.md"


@settings(max_examples=300)
@given(tables_and_symbols())
def test_both_coders_write_the_same_bytes_and_read_them_back(case) -> None:
    cdfs, offsets, symbols = case
    tables, array = Tables(cdfs, offsets), as_array(case[2])
    payload = tables.encode(array)
    assert payload == reference_coder.encode(cdfs, offsets, symbols)
    assert np.array_equal(tables.decode(payload, array.shape[1:]), array)
    assert reference_coder.decode(cdfs, offsets, payload, array.shape[1]) == symbols


@pytest.mark.parametrize("row", [0, 1, 2, 3, 4, 5, 784, 3025])
@pytest.mark.parametrize("kind", ["all zero", "all escape", "mixed"])
def test_rows_of_every_length(row: int, kind: str) -> None:
    cdfs, offsets = skewed_tables(3)
    rng = np.random.default_rng(row)
    symbols = {
        "all zero": np.zeros((3, row), np.int16),
        "all escape": rng.choice(np.array([-LIMIT, -4, 4, 67, 68, LIMIT], np.int16), (3, row)),
        "mixed": np.where(rng.random((3, row)) < 0.1, rng.integers(-9, 9, (3, row)), 0).astype(
            np.int16
        ),
    }[kind]
    tables = Tables(cdfs, offsets)
    payload = tables.encode(symbols)
    assert payload == reference_coder.encode(cdfs, offsets, symbols.tolist())
    assert np.array_equal(tables.decode(payload, (row,)), symbols)


GOLDEN = [
    # Two channels in runs (narrow), and one that is not.
    (
        [[0, 10, 65000, 65500, 65536], [0, 1, 65535, 65536]],
        [-1, 0],
        [[0, 0, 0, 1, -1, 0, 0, 5, 0], [1, 1, 0, 1, -200, 1, 1, 32767, 1]],
        "2c070300697c74d7b9012fd38f0302000400faff0300",
    ),
    ([[0, 10000, 50000, 65500, 65536]], [-1], [[0, 0, 0, 1, -1, 0, 0, 5, 0]], "b601e5ac3c950600"),
]


@pytest.mark.parametrize(("cdfs", "offsets", "symbols", "golden"), GOLDEN)
def test_golden_bytes(
    cdfs: list[list[int]], offsets: list[int], symbols: list[list[int]], golden: str
) -> None:
    """These bytes are the format: other bytes need another version."""
    assert Tables(cdfs, offsets).encode(as_array(symbols)).hex() == golden
    assert reference_coder.encode(cdfs, offsets, symbols).hex() == golden
    assert Tables(cdfs, offsets).decode(bytes.fromhex(golden), (9,)).tolist() == symbols
    assert golden in FORMAT.read_text()


def test_no_symbols_are_6_bytes() -> None:
    assert Tables([[0, 1, 65536]], [0]).encode(np.zeros((1, 0), np.int16)) == bytes.fromhex(
        "000010000000"
    )


def plain_tables(channels: int, entries: int) -> tuple[list[list[int]], list[int]]:
    """Tables of `entries` symbols, none so frequent that it is coded in runs."""
    weights = 0.6 ** np.abs(np.arange(entries) - entries // 2)
    inner = np.maximum(1, (weights / weights.sum() * (65535 - entries)).astype(int))
    inner[entries // 2] += 65535 - inner.sum()
    return [[0, *np.cumsum([*inner, 1]).tolist()]] * channels, [-(entries // 2)] * channels


def native(cdfs: list[list[int]], offsets: list[int], kernel: str) -> _coder.Tables:
    lengths = np.array([len(cdf) for cdf in cdfs], np.uint32)
    return _coder.Tables(
        np.concatenate(cdfs).astype(np.uint32), lengths, np.array(offsets, np.int32), kernel
    )


@pytest.mark.parametrize("kernel", _coder.KERNELS)
@pytest.mark.parametrize("entries", [2, 3, 5, 16, 17, 32, 70])
@pytest.mark.parametrize(
    ("row", "kind"), [(4096, "likely"), (5600, "likely"), (5461, "any"), (4099, "escapes")]
)
def test_the_wide_part_with_every_kernel(kernel: str, entries: int, row: int, kind: str) -> None:
    """Four plain channels and one in runs. The first three are wide, with sixteen lanes."""
    cdfs, offsets = plain_tables(4, entries)
    cdfs, offsets = [*cdfs[:2], skewed_tables(1)[0][0], *cdfs[2:]], [*offsets[:2], -3, *offsets[2:]]
    rng = np.random.default_rng(entries * row)
    probabilities = np.diff(cdfs[0])[:-1] / 65535
    symbols = rng.choice(
        np.arange(entries) + offsets[0], (5, row), p=probabilities / probabilities.sum()
    ).astype(np.int16)
    symbols[2] = rng.random(row) < 0.02
    if kind == "any":
        symbols[:, ::7] = rng.integers(offsets[0], offsets[0] + entries, symbols[:, ::7].shape)
    if kind == "escapes":
        symbols[:, ::11] = rng.integers(-LIMIT, LIMIT, symbols[:, ::11].shape)
    coder = native(cdfs, offsets, kernel)
    payload = coder.encode(symbols)
    assert payload == reference_coder.encode(cdfs, offsets, symbols.tolist())
    decoded = np.empty_like(symbols)
    assert coder.decode(payload, decoded) is None
    assert np.array_equal(decoded, symbols)
    if entries == 5:
        assert reference_coder.decode(cdfs, offsets, payload, row) == symbols.tolist()
    for at in rng.integers(0, len(payload), 20):
        damaged = bytearray(payload)
        damaged[at] ^= 1 << int(rng.integers(8))
        assert coder.decode(bytes(damaged), decoded) is not None or coder.encode(decoded) == damaged
    for length in [*range(0, 80, 2), *rng.integers(0, len(payload), 20)]:
        assert coder.decode(payload[:length], decoded) is not None
    assert coder.decode(payload + b"\0\0", decoded) is not None


@pytest.mark.parametrize("kernel", _coder.KERNELS)
def test_a_narrow_part_too_short_for_the_wide_lanes_is_padded(kernel: str) -> None:
    """The last plain channel takes too few words to fill the wide lanes' first states."""
    cdfs, offsets = plain_tables(3, 5)
    cdfs[2] = [0, 57000, 57001, 65536]
    symbols = np.random.default_rng(0).integers(-2, 3, (3, 8192)).astype(np.int16)
    symbols[2] = -2
    payload = native(cdfs, offsets, kernel).encode(symbols)
    assert payload == reference_coder.encode(cdfs, offsets, symbols.tolist())
    assert np.array_equal(Tables(cdfs, offsets).decode(payload, (8192,)), symbols)
    assert reference_coder.decode(cdfs, offsets, payload, 8192) == symbols.tolist()


def test_kernels() -> None:
    """Those that the processor can run, the fastest first, and always the portable one."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = (
        set(cpuinfo.read_text().split())
        if cpuinfo.is_file() and platform.machine() == "x86_64"
        else set()
    )
    expected = [
        *(
            ["avx512"]
            if flags
            >= {
                "popcnt",
                "avx2",
                "avx512f",
                "avx512bw",
                "avx512vl",
                "avx512vbmi",
                "avx512_vbmi2",
                "avx512ifma",
            }
            else []
        ),
        *(["avx2"] if flags >= {"popcnt", "avx2"} else []),
        *(["neon"] if platform.machine() in ("aarch64", "arm64") else []),
        "portable",
    ]
    assert list(_coder.KERNELS) == expected
    with pytest.raises(ValueError, match="no kernel abacus"):
        native(*skewed_tables(1), "abacus")


@pytest.mark.parametrize("bits", [0.1, 0.4, 1.0, 2.0])
def test_a_payload_is_within_8_bytes_and_a_third_of_a_percent_of_the_ideal(bits: float) -> None:
    cdfs, offsets = laplacian_tables(bits)
    probabilities = np.diff(cdfs[0]) / 65536
    rng = np.random.default_rng(0)
    for rows in (1, 64):
        excess = []
        for _ in range(20):
            symbols = rng.choice(
                np.arange(len(probabilities) - 1) + offsets[0],
                (rows, 784),
                p=probabilities[:-1] / probabilities[:-1].sum(),
            )
            ideal = -np.log2(probabilities[symbols - offsets[0]]).sum() / 8
            excess.append(
                len(Tables(cdfs * rows, offsets * rows).encode(symbols.astype(np.int16)))
                - 1.003 * ideal
            )
        assert np.mean(excess) <= 8


def laplacian_tables(bits: float) -> tuple[list[list[int]], list[int]]:
    """One channel's table: a discrete Laplacian of that many bits of entropy."""
    values = np.arange(-20, 21)

    def distribution(scale: float) -> np.ndarray:
        weights = np.exp(-np.abs(values) / scale)
        return weights / weights.sum()

    low, high = 0.02, 20.0
    for _ in range(60):
        scale = (low + high) / 2
        p = distribution(scale)
        low, high = (
            (scale, high) if -(p * np.log2(np.maximum(p, 1e-300))).sum() < bits else (low, scale)
        )
    frequencies = np.maximum(1, (distribution(low) * 65000).astype(int))
    frequencies[20] += 65535 - frequencies.sum()
    return [[0, *np.cumsum([*frequencies, 1]).tolist()]], [-20]


@settings(max_examples=300)
@given(tables_and_symbols(), st.data())
def test_a_damaged_payload_is_refused_or_decodes_to_itself(case, data: st.DataObject) -> None:
    """What the decoder accepts, the encoder would have written byte for byte."""
    cdfs, offsets, symbols = case
    tables, array = Tables(cdfs, offsets), as_array(symbols)
    payload = bytearray(tables.encode(array))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = tables.decode(bytes(payload), array.shape[1:])
    except DamagedFeatureFileError:
        return
    assert tables.encode(decoded) == payload


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 40))
def test_noise_is_refused_or_decodes_to_itself(noise: bytes, row: int) -> None:
    tables = Tables(*skewed_tables(2))
    try:
        decoded = tables.decode(noise, (row,))
    except DamagedFeatureFileError:
        return
    assert tables.encode(decoded) == noise


@pytest.mark.parametrize("kind", ["all zero", "all escape", "mixed"])
def test_every_truncation_and_every_addition_is_refused(kind: str) -> None:
    tables = Tables(*skewed_tables(2))
    rng = np.random.default_rng(1)
    symbols = {
        "all zero": np.zeros((2, 50), np.int16),
        "all escape": np.full((2, 50), 900, np.int16),
        "mixed": rng.integers(-5, 6, (2, 50)).astype(np.int16),
    }[kind]
    payload = tables.encode(symbols)
    for length in range(len(payload)):
        with pytest.raises(DamagedFeatureFileError, match="damaged"):
            tables.decode(payload[:length], (50,))
    for more in (b"\0", b"\0\0", b"\xff" * 40):
        with pytest.raises(DamagedFeatureFileError, match="damaged"):
            tables.decode(payload + more, (50,))


def test_the_mark_of_a_nan_is_refused() -> None:
    symbols = np.zeros((2, 9), np.int16)
    symbols[1, 4] = _coder.NOT_A_SYMBOL
    with pytest.raises(NotANumberError, match="not a number"):
        Tables(*skewed_tables(2)).encode(symbols)


@pytest.mark.parametrize(
    ("cdfs", "offsets", "text"),
    [
        ([], [], "no tables"),
        ([[0, 1, 65536]], [0, 0], "1 tables and 2 offsets"),
        ([[0, 65536]], [0], "fewer than three"),
        ([[1, 2, 65536]], [0], "begin at 0"),
        ([[0, 5, 5, 65536]], [0], "does not increase at value 2"),
        ([[0, 7, 6, 65536]], [0], "does not increase at value 2"),
        ([[0, 1, 65535]], [0], "does not end at 65536"),
        ([[0, 1, 65536], [0, 1, 65537]], [0, 0], "table 1: .*end at 65536"),
        ([[0, 1, 65536]], [-32768], "leave the range"),
        ([[0, 1, 2, 65536]], [32767], "leave the range"),
        ([[0, -1, 65536]], [0], "bad entropy tables"),
        ([[0, 1, 65536]], [2**40], "bad entropy tables"),
        ([["a", 1, 65536]], [0], "bad entropy tables"),
        ([[0, 0.5, 65536]], [0], "bad entropy tables"),
        ([None], [0], "bad entropy tables"),
    ],
)
def test_bad_tables_are_refused(cdfs: list, offsets: list, text: str) -> None:
    with pytest.raises(TablesError, match=text):
        Tables(cdfs, offsets)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"precision": 15, "cdfs": [], "offsets": []}',
        b'{"precision": 16, "cdfs": 1, "offsets": []}',
    ],
)
def test_a_bad_tables_file_is_refused(text: bytes) -> None:
    with pytest.raises(TablesError):
        Tables.from_json(text)


def test_tables_survive_their_file() -> None:
    tables = Tables(*skewed_tables(2))
    again = Tables.from_json(tables.to_json())
    assert again.digest() == tables.digest()
    assert again.to_json() == tables.to_json()
    assert (
        Tables([[0, 1, 65536]] * 2, [0, 1]).digest() != Tables([[0, 1, 65536]] * 2, [0, 0]).digest()
    )


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4), np.int32),
        np.zeros((2, 8), np.int16)[:, ::2],
        np.zeros((3, 4), np.int16),
        np.zeros(8, np.int16),
    ],
)
def test_arrays_of_another_kind_are_refused_not_converted(bad: np.ndarray) -> None:
    cdfs, offsets = skewed_tables(2)
    native = _coder.Tables(
        np.array(cdfs, np.uint32).reshape(-1),
        np.array([9, 9], np.uint32),
        np.array(offsets, np.int32),
    )
    with pytest.raises((TypeError, ValueError)):
        native.encode(bad)
    with pytest.raises((TypeError, ValueError)):
        native.decode(b"", bad)


def test_one_table_set_may_be_used_by_many_threads() -> None:
    tables = Tables(*skewed_tables(16))
    rows = [np.random.default_rng(i).integers(-4, 5, (16, 784)).astype(np.int16) for i in range(8)]
    expected = [tables.encode(row) for row in rows]

    def work(index: int) -> bool:
        row = rows[index % 8]
        payload = tables.encode(row)
        return payload == expected[index % 8] and np.array_equal(
            tables.decode(payload, (784,)), row
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_the_lane_count_is_that_of_the_format() -> None:
    assert (
        (_coder.NARROW_LANES, _coder.WIDE_LANES)
        == (reference_coder.NARROW_LANES, reference_coder.WIDE_LANES)
        == (2, 16)
    )
    assert sys.byteorder == "little", (
        "the coder is endian-neutral, but no big-endian machine has run these tests"
    )
