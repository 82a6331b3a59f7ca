"""The feature file: golden bytes, and every file that is refused."""

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import errors
from runtime.codec.feature_file import FeatureFile, Profile, build, parse

FINGERPRINT = bytes.fromhex("0badcafe")
GOLDEN = bytes.fromhex("fc010badcafe1c500568656c6c6f12b5289d")


def sealed(body: bytes) -> bytes:
    """A body with a right checksum, so that a test reaches the checks after it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_golden_bytes() -> None:
    """These bytes are version 1 of the format: other bytes need another version."""
    assert build(FINGERPRINT + b"and more", 224, 640, b"hello") == GOLDEN
    assert GOLDEN.hex() in (Path(__file__).resolve().parents[3] / "docs" / "FORMAT.md").read_text()
    assert parse(GOLDEN) == FeatureFile(FINGERPRINT, 224, 640, memoryview(b"hello"))


def test_overhead_is_14_bytes_at_224() -> None:
    assert len(build(FINGERPRINT, 224, 224, bytes(1000))) == 1014


@given(
    st.binary(min_size=4, max_size=4),
    st.integers(0, 2**28 - 1),
    st.integers(0, 2**28 - 1),
    st.binary(max_size=300),
)
def test_what_is_built_is_parsed(
    fingerprint: bytes, rows: int, columns: int, payload: bytes
) -> None:
    file = parse(build(fingerprint, 8 * rows, 8 * columns, payload))
    assert (file.fingerprint, file.height, file.width, bytes(file.payload)) == (
        fingerprint,
        8 * rows,
        8 * columns,
        payload,
    )
    assert file.pixels == 64 * rows * columns


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_buffer_is_parsed(kind: type) -> None:
    assert bytes(parse(kind(GOLDEN)).payload) == b"hello"


@pytest.mark.parametrize(("height", "width"), [(220, 224), (224, 1), (-8, 8), (8 << 28, 8)])
def test_impossible_sizes_are_not_written(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8|does not fit"):
        build(FINGERPRINT, height, width, b"")


def test_empty() -> None:
    with pytest.raises(errors.EmptyFeatureFileError, match="empty"):
        parse(b"")


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0 a JPEG", b"\x89PNG\r\n\x1a\n", b"\0"])
def test_another_kind_of_file(data: bytes) -> None:
    with pytest.raises(errors.NotAFeatureFileError, match="not a feature file"):
        parse(data)


@pytest.mark.parametrize("version", [0x00, 0x03, 0x0F, 0x13, 0x21, 0xF1, 0x42, 0x82, 0xFF])
def test_another_version_or_profile(version: int) -> None:
    text = (
        f"version {version % 16}, profile {version // 16}; "
        "this release reads version 1, profiles 0 and 1, and version 2, profiles 0 to 3"
    )
    with pytest.raises(errors.UnsupportedVersionError, match=text):
        parse(sealed(bytes([0xFC, version]) + GOLDEN[2:-4]))


def test_the_profile_is_the_high_half_of_the_second_byte() -> None:
    data = build(FINGERPRINT, 224, 640, b"hello", profile=Profile.CONTEXT)
    assert data[:2] == b"\xfc\x11"
    assert data[2:-4] == GOLDEN[2:-4]
    assert parse(data) == FeatureFile(
        FINGERPRINT, 224, 640, memoryview(b"hello"), profile=Profile.CONTEXT
    )


@pytest.mark.parametrize("length", range(1, len(GOLDEN)))
def test_every_truncation(length: int) -> None:
    with pytest.raises(errors.TruncatedFeatureFileError, match="send it again"):
        parse(GOLDEN[:length])


@pytest.mark.parametrize("more", [b"\0", GOLDEN])
def test_trailing_bytes(more: bytes) -> None:
    with pytest.raises(errors.TrailingBytesError, match=f"{len(more)} more"):
        parse(GOLDEN + more)


@pytest.mark.parametrize("bit", range(8 * len(GOLDEN)))
def test_every_flipped_bit(bit: int) -> None:
    data = bytearray(GOLDEN)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(errors.FeatureFileError):
        parse(bytes(data))


@pytest.mark.parametrize("field", ["8000", "808080808001", "ffffffffff"])
def test_a_header_field_that_nobody_writes(field: str) -> None:
    """Longer than it need be, or longer than four bytes."""
    with pytest.raises(errors.DamagedFeatureFileError, match="byte 6"):
        parse(sealed(GOLDEN[:6] + bytes.fromhex(field) + bytes.fromhex("1c00")))


@given(st.binary(max_size=60))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(errors.FeatureFileError):
        parse(noise)
    with pytest.raises(errors.FeatureFileError):
        parse(b"\xfc\x01" + noise)
