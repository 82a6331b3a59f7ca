"""The feature file, which the edge sends to the cloud. docs/FORMAT.md is its specification.

    byte 0      0xFC
    byte 1      format version in the low four bits, flags in the high four
    bytes 2-5   the first four bytes of the bundle's fingerprint
    then        version 1: height / 8, width / 8 and payload length
                version 2: step, one byte; of a cut file also how many channels are kept;
                height / 8, and width / 8 unless the image is square
    then        payload
    last 4      CRC-32 of everything before, little-endian

Heights, widths and lengths are unsigned LEB128 of 1 to 4 bytes. Fixed-rate bundles have files of
version 1, variable-rate bundles those of version 2.

Always holds: parsing copies nothing of the payload, and a file that differs in any byte from what
was written is refused.
"""

import enum
import zlib
from dataclasses import dataclass

from ..errors import (
    DamagedFeatureFileError,
    EmptyFeatureFileError,
    NotAFeatureFileError,
    TrailingBytesError,
    TruncatedFeatureFileError,
    UnsupportedVersionError,
)

MAGIC = 0xFC
FIXED_RATE, VARIABLE_RATE = 1, 2  # format versions
STEPS_PER_LEVEL, MAX_STEP = 16, 240  # a file has its rate level in sixteenths
MAX_LEVEL = MAX_STEP // STEPS_PER_LEVEL
FINGERPRINT_BYTES = 4
BLOCK = 8  # pixels that heights and widths are multiples of
MAX_FEATURE_FILE_BYTES = 16 << 20  # upper bound on file size; bulk readers stop here
Bytes = bytes | bytearray | memoryview
_MAX_VARINT_BYTES = 4
_CRC_BYTES = 4
_FLAGS_SHIFT = 4
_SQUARE = 2  # the flag of a square image, whose width is left out; the flag 1 is the profile
_CUT = 255  # in the place of the step: level 0, and only some channels
_MAX_FLAGS = {FIXED_RATE: 1, VARIABLE_RATE: 3}


class Profile(enum.Enum):
    """Which tables a feature file is coded with. The value is what its header has.

    STATIC: one table per channel; commands and documents call such a file plain.
    CONTEXT: the symbols above and to the left choose among 25 tables, for channels that have them;
    such a file is called small, and has about a quarter fewer bytes.
    """

    STATIC = 0
    CONTEXT = 1

    @property
    def title(self) -> str:
        """Its name in commands and records: "plain" or "small"."""
        return "small" if self is Profile.CONTEXT else "plain"


@dataclass(frozen=True)
class FeatureFile:
    """A parsed feature file.

    `fingerprint` has four bytes; `height` and `width` are the encoded image's, in pixels;
    `payload` refers to the parsed bytes. Version 2 has a `step`, 0 to 240: the rate level in
    sixteenths. A cut file has only the first `kept` channels of its bundle's order, and step 0;
    `kept` is None if the file is whole.
    """

    fingerprint: bytes
    height: int
    width: int
    payload: memoryview
    profile: Profile = Profile.STATIC
    version: int = FIXED_RATE
    step: int | None = None
    kept: int | None = None

    @property
    def pixels(self) -> int:
        """Height x width."""
        return self.height * self.width

    def describe_level(self) -> dict[str, float | int | None]:
        """The `level`, 0 to 15, and `kept_channels` (null: all) of version 2; else nothing."""
        if self.step is None:
            return {}
        return {"level": self.step / STEPS_PER_LEVEL, "kept_channels": self.kept}


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value < 1 << (7 * _MAX_VARINT_BYTES):
        raise ValueError(f"{value} does not fit the {_MAX_VARINT_BYTES} bytes of a header field")
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if at + count >= len(data):
            raise TruncatedFeatureFileError(
                f"a feature file of {len(data)} bytes ends in its header: send it again"
            )
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if byte == 0 and count:
                break  # longer than the shortest form, which alone is written
            return value, at + count + 1
    raise DamagedFeatureFileError(
        f"the header field at byte {at} is damaged: send the feature file again"
    )


def build(
    fingerprint: bytes,
    height: int,
    width: int,
    payload: bytes,
    profile: Profile = Profile.STATIC,
    step: int | None = None,
    kept: int | None = None,
) -> bytes:
    """A feature file of header, payload and checksum.

    Args:
        fingerprint: the bundle's; its first four bytes are written.
        height, width: of the image in pixels: multiples of 8, below 2^31.
        payload: below 2^28 bytes.
        profile: which tables the payload is coded with.
        step: 0 to 240, the rate level in sixteenths: gives version 2. None gives version 1.
        kept: of a cut file (step 0): how many channels it has, 0 to 255. None for a whole file.

    Raises ValueError for a value that does not fit.
    """
    if height % BLOCK or width % BLOCK:
        raise ValueError(f"{width}x{height} pixels are not multiples of {BLOCK}")
    sizes = _varint(height // BLOCK)
    if step is None:
        version, flags, level = FIXED_RATE, profile.value, b""
        sizes += _varint(width // BLOCK) + _varint(len(payload))
    else:
        square = height == width
        version, flags = VARIABLE_RATE, profile.value | square * _SQUARE
        level = _level_bytes(step, kept)
        sizes += b"" if square else _varint(width // BLOCK)
    body = (
        bytes((MAGIC, version | flags << _FLAGS_SHIFT))
        + fingerprint[:FINGERPRINT_BYTES]
        + level
        + sizes
        + payload
    )
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


def _level_bytes(step: int, kept: int | None) -> bytes:
    if not 0 <= step <= MAX_STEP or (kept is not None and (step or not 0 <= kept < 256)):
        raise ValueError(
            f"step {step} is not from 0 to {MAX_STEP}, or is not 0 for a file of {kept} channels"
        )
    return bytes((step,)) if kept is None else bytes((_CUT, kept))


def parse(data: Bytes) -> FeatureFile:
    """Take a feature file apart, and check all that can be checked without its bundle.

    Raises EmptyFeatureFileError, NotAFeatureFileError, UnsupportedVersionError,
    TruncatedFeatureFileError, TrailingBytesError, DamagedFeatureFileError.
    """
    view = memoryview(data).cast("B")
    if len(view) == 0:
        raise EmptyFeatureFileError("the feature file is empty (0 bytes): encode and send it again")
    if view[0] != MAGIC:
        raise NotAFeatureFileError(
            f"not a feature file: it begins with byte 0x{view[0]:02x}, not 0x{MAGIC:02x}; "
            "edge-encode writes feature files"
        )
    _require(view, 2)
    version, flags = view[1] % (1 << _FLAGS_SHIFT), view[1] >> _FLAGS_SHIFT
    if flags > _MAX_FLAGS.get(version, -1):
        raise UnsupportedVersionError(
            f"feature file of format version {version}, profile {flags}; this release reads "
            "version 1, profiles 0 and 1, and version 2, profiles 0 to 3: update the cloud side"
        )
    _require(view, 2 + FINGERPRINT_BYTES)
    return _parse_fixed(view) if version == FIXED_RATE else _parse_variable(view, flags)


def _require(view: memoryview, size: int) -> None:
    """Raises TruncatedFeatureFileError for a file of less than `size` bytes."""
    if len(view) < size:
        bytes_ = "1 byte" if len(view) == 1 else f"{len(view)} bytes"
        raise TruncatedFeatureFileError(
            f"a feature file of {bytes_} ends in its header: send it again"
        )


def _is_intact(view: memoryview) -> bool:
    return zlib.crc32(view[:-_CRC_BYTES]) == int.from_bytes(view[-_CRC_BYTES:], "little")


def _parse_fixed(view: memoryview) -> FeatureFile:
    """Version 1, after its fingerprint."""
    rows, at = _read_varint(view, 2 + FINGERPRINT_BYTES)
    columns, at = _read_varint(view, at)
    length, at = _read_varint(view, at)
    expected = at + length + _CRC_BYTES
    if len(view) < expected:
        raise TruncatedFeatureFileError(
            f"the feature file has {len(view)} of its {expected} bytes: send it again"
        )
    if len(view) > expected:
        raise TrailingBytesError(
            f"the feature file has {len(view)} bytes, {len(view) - expected} more than its header "
            "says: send each file by itself"
        )
    if not _is_intact(view):
        raise DamagedFeatureFileError(
            "the feature file is damaged, its checksum does not match: send it again"
        )
    return FeatureFile(
        fingerprint=bytes(view[2 : 2 + FINGERPRINT_BYTES]),
        height=rows * BLOCK,
        width=columns * BLOCK,
        payload=view[at : at + length],
        profile=Profile(view[1] >> _FLAGS_SHIFT),
    )


def _parse_variable(view: memoryview, flags: int) -> FeatureFile:
    """Version 2, after its fingerprint."""
    at = 2 + FINGERPRINT_BYTES
    _require(view, at + 1)
    step, kept = view[at], None
    if step == _CUT:
        _require(view, at + 2)
        step, kept, at = 0, view[at + 1], at + 1
    rows, end = _read_varint(view, at + 1)
    columns = rows
    if not flags & _SQUARE:
        columns, end = _read_varint(view, end)
    _require(view, end + _CRC_BYTES)
    if step > MAX_STEP or (columns == rows and not flags & _SQUARE):
        what = f"step {step}" if step > MAX_STEP else f"a width of {columns * BLOCK} written twice"
        raise DamagedFeatureFileError(
            f"the header is damaged, it has {what}: send the feature file again"
        )
    if not _is_intact(view):
        raise DamagedFeatureFileError(
            "the feature file is damaged or incomplete, its checksum does not match: send it again"
        )
    return FeatureFile(
        fingerprint=bytes(view[2 : 2 + FINGERPRINT_BYTES]),
        height=rows * BLOCK,
        width=columns * BLOCK,
        payload=view[end:-_CRC_BYTES],
        profile=Profile(flags & 1),
        version=VARIABLE_RATE,
        step=step,
        kept=kept,
    )
