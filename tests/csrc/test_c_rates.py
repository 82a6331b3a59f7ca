"""Variable-rate bundles in the C library: Python's files, at every level and for every budget."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from c_library import (
    BAD_ARGUMENT,
    BAD_BUNDLE,
    BAD_FEATURE_FILE,
    OTHER_BUNDLE,
    SMALL_BUDGET,
    CBundle,
    CError,
    CLibrary,
)
from c_library import with_checksum as checked
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime import EdgeEncoder
from runtime.codec.bundle import EDGE_TABLES, EDGE_WEIGHTS, Bundle
from runtime.codec.feature_file import Profile, parse

RULE = 136  # bytes of edge.tables before what differs between its versions


@pytest.fixture(scope="module", params=[Profile.STATIC, Profile.CONTEXT])
def python(request: pytest.FixtureRequest, variable_bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(variable_bundle, threads=1, profile=request.param, provider="native")


def test_what_it_says_of_the_bundle(c_variable: CBundle, c_bundle: CBundle) -> None:
    assert (c_variable.has_rates, c_bundle.has_rates) == (True, False)
    assert c_variable.info.has_encoder


def test_every_level_and_budget_gives_the_file_of_python(
    c_variable: CBundle, python: EdgeEncoder, golf_ball: NDArray[np.uint8]
) -> None:
    encoder = c_variable.encoder(profile=1 + python.profile.value)
    budgets = [{}, {"rate": 9, "max_bytes": 600}]
    budgets += [{"rate": step / 16} for step in (0, 7, 8, 9, 129, 239, 240)]
    budgets += [{"max_bytes": size} for size in (14, 51, 100, 250, 400, 700, 1200, 3000, 10**6)]
    kept = set()
    for pixels in (golf_ball[:224, :224], golf_ball[8:72, 16:144]):
        for budget in budgets:
            data = encoder.ask(**budget).encode(pixels)
            assert data == python.encode(np.ascontiguousarray(pixels), as_is=True, **budget), budget
            assert len(data) <= budget.get("max_bytes", len(data))
            assert np.array_equal(c_variable.decode(data), python.bundle.decode(data))
            kept.add(parse(data).kept)
    assert {None, 0} < kept, "some files are whole, some have no channels, others a few"
    encoder.close()


@settings(max_examples=60, deadline=None)
@given(size=st.integers(14, 2500), level=st.one_of(st.none(), st.floats(0, 15)), seed=st.integers())
def test_any_budget(
    c_variable: CBundle, python: EdgeEncoder, size: int, level: float | None, seed: int
) -> None:
    rng = np.random.default_rng(abs(seed))
    coarse = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1))
    encoder = c_variable.encoder(profile=1 + python.profile.value)
    data = encoder.ask(level, size).encode(pixels)
    assert data == python.encode(pixels, as_is=True, rate=level, max_bytes=size)
    encoder.close()


def test_a_stream_with_a_mean(
    c_variable: CBundle, python: EdgeEncoder, golf_ball: NDArray[np.uint8]
) -> None:
    pictures = [
        np.ascontiguousarray(golf_ball[y : y + 96, x : x + 128])
        for y, x in itertools.product(range(0, 384, 32), range(0, 512, 128))
    ]
    encoder = c_variable.encoder(profile=1 + python.profile.value)
    for most in (0, 400):
        asked = {"target_bytes": 300.0} | ({"max_bytes": most} if most else {})
        encoder.ask(**asked)
        files = [encoder.encode(picture) for picture in pictures]
        assert files == python.encode_batch(pictures, as_is=True, **asked)
        assert 250 < np.mean([len(file) for file in files]) < 330
    encoder.ask(target_bytes=300)
    assert encoder.encode(pictures[0]) == python.encode(pictures[0], as_is=True, target_bytes=300)
    encoder.close()


def test_what_cannot_be_asked_for(
    c_variable: CBundle, c_bundle: CBundle, golf_ball: NDArray[np.uint8]
) -> None:
    encoder = c_variable.encoder()
    for budget, text in (
        ({"rate": 15.1}, "a rate level is from 0 to 15"),
        ({"rate": -0.5}, "a rate level is from 0 to 15"),
        ({"rate": float("nan")}, "a rate level is from 0 to 15"),
        ({"target_bytes": 0.5}, "ask for 1 byte or more"),
        ({"target_bytes": -1}, "ask for 1 byte or more"),
        ({"target_bytes": float("inf")}, "ask for 1 byte or more"),
        ({"rate": 3, "target_bytes": 300}, "ask for one of both"),
    ):
        with pytest.raises(CError, match=text) as refused:
            encoder.ask(**budget)
        assert refused.value.status == BAD_ARGUMENT
    pixels = golf_ball[:224, :224]
    with pytest.raises(CError, match=r"12 bytes are too few: .* at least 13, allow so") as few:
        encoder.ask(max_bytes=12).encode(pixels)
    assert few.value.status == SMALL_BUDGET
    assert len(encoder.ask(max_bytes=500).encode(pixels)) <= 500, "it still works"
    encoder.close()
    encoder = c_bundle.encoder()
    encoder.ask()
    for budget in ({"rate": 0}, {"max_bytes": 500}, {"target_bytes": 500}):
        with pytest.raises(CError, match="the bundle has one rate: leave out rate") as refused:
            encoder.ask(**budget)
        assert refused.value.status == BAD_ARGUMENT
    encoder.close()


def _floats(tables: bytes, at: int, value: float) -> bytes:
    return checked(tables, at, struct.pack("<f", value))


def test_tables_that_are_refused(c_library: CLibrary, variable_bundle: Path) -> None:
    tables = (variable_bundle / EDGE_TABLES).read_bytes()
    gains, order = RULE + 4, RULE + 4 + 2 * 4 * 16 * 64
    steps, levels = order + 4 * 64, order + 4 * 64 + 4 * 241 * 64
    for changed, text in (
        (checked(tables, RULE, struct.pack("<I", 241)), "its default step is over 240"),
        (checked(tables, 12, struct.pack("<I", 257)), "all rates and more than 256 channels"),
        (_floats(tables, gains, 0), "a gain is not over 0 and at most 1e6"),
        (_floats(tables, gains, float("nan")), "a gain is not over 0 and at most 1e6"),
        (_floats(tables, gains + 4 * 16 * 64, -1), "a gain is not over 0 and at most 1e6"),
        (_floats(tables, steps + 4 * 64, 2e6), "a gain is not over 0 and at most 1e6"),
        (_floats(tables, steps, 0.123), "its gains differ from those of a whole level"),
        (checked(tables, order, struct.pack("<I", 64)), "order does not list every channel once"),
        (
            checked(tables, order, tables[order + 4 : order + 8]),
            "order does not list every channel once",
        ),
        (checked(tables, levels, struct.pack("<I", 3)), "a level of it is cut short"),
        (checked(tables, levels, struct.pack("<I", 1 << 31)), "it ends before its tables do"),
        (_floats(tables, order - 4, 1.5), "another fingerprint than it says"),
        (checked(tables + bytes(4), 12, tables[12:16]), "bytes behind its tables"),
        (checked(tables, 8, b"\x01"), ""),
    ):
        with pytest.raises(CError, match=f"edge.tables is refused, .*{text}.*: copy it") as refused:
            c_library.from_memory(changed)
        assert refused.value.status == BAD_BUNDLE
    for size in range(RULE, len(tables), 4999):
        with pytest.raises(CError, match=r"edge.tables is refused"):
            c_library.from_memory(checked(tables[: size // 4 * 4 + 4], 12, tables[12:16]))


def test_weights_of_another_kind_are_refused(
    c_library: CLibrary, variable_bundle: Path, bundle: Path
) -> None:
    tables = (variable_bundle / EDGE_TABLES).read_bytes()
    weights = (bundle / EDGE_WEIGHTS).read_bytes()
    with pytest.raises(CError, match=r"edge\.weights is of another bundle than edge\.tables"):
        c_library.from_memory(tables, weights)


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (b"\xff\x40", "cut to 64 channels, and its bundle has 64"),
        (b"\xff\x00", "no channels, and [0-9]+ bytes of them"),
        (b"\x00", "payload is damaged"),
    ],
    ids=["too many channels", "no channels", "another level"],
)
def test_files_that_are_refused(
    c_variable: CBundle, golf_ball: NDArray[np.uint8], level: bytes, text: str
) -> None:
    encoder = c_variable.encoder()
    data = encoder.ask(rate=15).encode(golf_ball[:224, :224])
    with pytest.raises(CError, match=text) as refused:
        c_variable.decode(checked(data[:6] + level + data[7:], 0, b"\xfc"))
    assert refused.value.status == BAD_FEATURE_FILE
    encoder.close()


def test_files_of_the_other_version_are_refused(
    c_variable: CBundle, variable_bundle: Path, feature_bytes: bytes
) -> None:
    fingerprint = Bundle.load(variable_bundle).fingerprint[:4]
    with pytest.raises(CError, match="is of version 1, and files of this bundle are of v") as bad:
        c_variable.decode(checked(feature_bytes, 2, fingerprint))
    assert bad.value.status == OTHER_BUNDLE
