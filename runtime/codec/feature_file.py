"""The feature file, which the edge sends to the cloud. docs/FORMAT.md is its specification.

    byte 0      0xFC
    byte 1      format version in the low four bits, profile in the high four: 0 static, 1 context
    bytes 2-5   the first four bytes of the bundle's fingerprint
    then        height / 8, width / 8 and payload length, each an unsigned LEB128 of 1 to 4 bytes
    then        payload
    last 4      CRC-32 of everything before, little-endian

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
VERSION = 1
FINGERPRINT_BYTES = 4
BLOCK = 8  # pixels that heights and widths are multiples of
MAX_FEATURE_FILE_BYTES = 16 << 20  # upper bound on file size; bulk readers stop here
Bytes = bytes | bytearray | memoryview
_MAX_VARINT_BYTES = 4
_CRC_BYTES = 4
_PROFILE_SHIFT = 4


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
    `payload` refers to the parsed bytes.
    """

    fingerprint: bytes
    height: int
    width: int
    payload: memoryview
    profile: Profile = Profile.STATIC
    version: int = VERSION

    @property
    def pixels(self) -> int:
        """Height x width."""
        return self.height * self.width


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
    fingerprint: bytes, height: int, width: int, payload: bytes, profile: Profile = Profile.STATIC
) -> bytes:
    """A feature file of header, payload and checksum.

    Args:
        fingerprint: the bundle's; its first four bytes are written.
        height, width: of the image in pixels: multiples of 8, below 2^31.
        payload: below 2^28 bytes.
        profile: which tables the payload is coded with.

    Raises ValueError for a size that does not fit.
    """
    if height % BLOCK or width % BLOCK:
        raise ValueError(f"{width}x{height} pixels are not multiples of {BLOCK}")
    sizes = _varint(height // BLOCK) + _varint(width // BLOCK) + _varint(len(payload))
    body = (
        bytes((MAGIC, VERSION | profile.value << _PROFILE_SHIFT))
        + fingerprint[:FINGERPRINT_BYTES]
        + sizes
        + payload
    )
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


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
    if len(view) < 2:
        raise TruncatedFeatureFileError(
            "a feature file of 1 byte ends in its header: send it again"
        )
    version, profile = view[1] % (1 << _PROFILE_SHIFT), view[1] >> _PROFILE_SHIFT
    if version != VERSION or profile > 1:
        raise UnsupportedVersionError(
            f"feature file of format version {version}, profile {profile}; this release reads "
            f"version {VERSION}, profiles 0 and 1: update the cloud side"
        )
    if len(view) < 2 + FINGERPRINT_BYTES:
        raise TruncatedFeatureFileError(
            f"a feature file of {len(view)} bytes ends in its header: send it again"
        )
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
    if zlib.crc32(view[:-_CRC_BYTES]) != int.from_bytes(view[-_CRC_BYTES:], "little"):
        raise DamagedFeatureFileError(
            "the feature file is damaged, its checksum does not match: send it again"
        )
    return FeatureFile(
        fingerprint=bytes(view[2 : 2 + FINGERPRINT_BYTES]),
        height=rows * BLOCK,
        width=columns * BLOCK,
        payload=view[at : at + length],
        profile=Profile(profile),
    )
