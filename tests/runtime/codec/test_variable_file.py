"""Feature files of version 2: golden bytes, and every file that is refused without its bundle."""

import zlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runtime import errors
from runtime.codec.feature_file import FeatureFile, Profile, build, parse

FINGERPRINT = bytes.fromhex("0badcafe")
LANDSCAPE = bytes.fromhex("fc020badcafe781c5068656c6c6fd4f1abab")
CUT = bytes.fromhex("fc320badcafeff031c68656c6c6f08b6201c")


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_golden_bytes() -> None:
    """These bytes are version 2 of the format: other bytes need another version."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "FORMAT.md").read_text()
    assert LANDSCAPE.hex() in page
    assert CUT.hex() in page
    assert build(FINGERPRINT + b"more", 224, 640, b"hello", step=120) == LANDSCAPE
    assert build(FINGERPRINT, 224, 224, b"hello", Profile.CONTEXT, 0, kept=3) == CUT
    assert parse(LANDSCAPE) == FeatureFile(
        FINGERPRINT, 224, 640, memoryview(b"hello"), version=2, step=120
    )
    assert parse(CUT) == FeatureFile(
        FINGERPRINT, 224, 224, memoryview(b"hello"), Profile.CONTEXT, 2, 0, 3
    )


def test_overhead_is_12_bytes_at_224() -> None:
    assert len(build(FINGERPRINT, 224, 224, bytes(1000), step=240)) == 1012
    largest = build(FINGERPRINT, 8 << 27, 8 << 26, b"", step=0, kept=255)
    assert len(largest) == 20


@given(
    st.binary(min_size=4, max_size=4),
    st.integers(0, 2**28 - 1),
    st.integers(0, 2**28 - 1),
    st.booleans(),
    st.binary(max_size=300),
    st.sampled_from(Profile),
    st.one_of(st.integers(0, 240), st.just(0)),
    st.one_of(st.none(), st.integers(0, 255)),
)
def test_what_is_built_is_parsed(
    fingerprint: bytes,
    rows: int,
    columns: int,
    square: bool,
    payload: bytes,
    profile: Profile,
    step: int,
    kept: int | None,
) -> None:
    columns, step = rows if square else columns, 0 if kept is not None else step
    data = build(fingerprint, 8 * rows, 8 * columns, payload, profile, step, kept)
    assert parse(data) == FeatureFile(
        fingerprint, 8 * rows, 8 * columns, memoryview(payload), profile, 2, step, kept
    )


def test_a_file_tells_its_level() -> None:
    assert parse(LANDSCAPE).describe_level() == {"level": 7.5, "kept_channels": None}
    assert parse(CUT).describe_level() == {"level": 0.0, "kept_channels": 3}
    assert parse(build(FINGERPRINT, 8, 8, b"")).describe_level() == {}


@pytest.mark.parametrize(
    ("step", "kept"), [(-1, None), (241, None), (255, None), (1, 3), (0, -1), (0, 256)]
)
def test_impossible_steps_are_not_written(step: int, kept: int | None) -> None:
    with pytest.raises(ValueError, match=f"step {step} is not"):
        build(FINGERPRINT, 8, 8, b"", step=step, kept=kept)


@pytest.mark.parametrize("data", [LANDSCAPE, CUT])
def test_every_truncation(data: bytes) -> None:
    for length in range(1, len(data)):
        with pytest.raises(errors.DamagedFeatureFileError, match="send it again"):
            parse(data[:length])
    with pytest.raises(errors.TruncatedFeatureFileError, match="ends in its header"):
        parse(data[:9])


@pytest.mark.parametrize("more", [b"\0", LANDSCAPE])
def test_trailing_bytes_are_damage(more: bytes) -> None:
    with pytest.raises(errors.DamagedFeatureFileError, match="damaged or incomplete"):
        parse(LANDSCAPE + more)


@pytest.mark.parametrize("data", [LANDSCAPE, CUT])
def test_every_flipped_bit(data: bytes) -> None:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.FeatureFileError):
            parse(bytes(flipped))


@pytest.mark.parametrize("step", range(241, 255))
def test_steps_that_nobody_writes(step: int) -> None:
    with pytest.raises(errors.DamagedFeatureFileError, match=f"step {step}"):
        parse(sealed(LANDSCAPE[:6] + bytes([step]) + LANDSCAPE[7:-4]))


def test_a_square_image_has_one_size() -> None:
    with pytest.raises(errors.DamagedFeatureFileError, match="224 written twice"):
        parse(sealed(LANDSCAPE[:7] + b"\x1c\x1c" + LANDSCAPE[9:-4]))


@given(st.binary(max_size=60), st.sampled_from([0x02, 0x12, 0x22, 0x32]))
def test_noise_is_refused(noise: bytes, second: int) -> None:
    with pytest.raises(errors.FeatureFileError):
        parse(bytes([0xFC, second]) + noise)


@given(st.binary(min_size=9, max_size=60), st.sampled_from([0x02, 0x12, 0x22, 0x32]))
def test_whatever_is_read_could_have_been_written(noise: bytes, second: int) -> None:
    data = sealed(bytes([0xFC, second]) + noise)
    try:
        file = parse(data)
    except errors.FeatureFileError:
        assume(False)
    again = build(
        file.fingerprint,
        file.height,
        file.width,
        bytes(file.payload),
        file.profile,
        file.step,
        file.kept,
    )
    assert again == data
