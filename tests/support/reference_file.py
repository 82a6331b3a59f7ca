"""Feature files once more, in plain Python: written from docs/FORMAT.md, sections 2, 4 and 6.

The payload is reference_coder's. `read` makes the checks of the page in their order, and says by
`Refused` which one a file does not pass.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass

from reference_coder import Contexts, Rows, decode, decode_small, encode, encode_small

LEVELS = 16
CUT = 255

Tables = tuple[Rows, list[int], Contexts]  # CDFs, offsets, context tables


class Refused(Exception):
    """A file that is refused; the argument is the number of the check in the page."""


@dataclass
class Bundle:
    """What both ends hold. Of version 1, `levels` has one set of tables, and the rest is empty."""

    channels: int
    stride: int
    shrink: int
    max_symbols: int
    fingerprint: bytes
    levels: list[Tables]
    order: tuple[int, ...] = ()
    gains: tuple[tuple[float, ...], ...] = ()
    inverse_gains: tuple[tuple[float, ...], ...] = ()

    @property
    def version(self) -> int:
        return 2 if self.order else 1

    def tables(self, step: int | None, kept: int | None) -> Tables:
        """The tables of a step, or of a cut file: section 6.3."""
        cdfs, offsets, contexts = self.levels[0 if step is None else (step + 8) // 16]
        if kept is None:
            return cdfs, offsets, contexts
        chosen = self.order[:kept]
        return (
            [cdfs[c] for c in chosen],
            [offsets[c] for c in chosen],
            {place: contexts[c] for place, c in enumerate(chosen) if c in contexts},
        )


def leb128(value: int) -> bytes:
    groups = [value % 128]
    while value := value // 128:
        groups.append(value % 128)
    return bytes([*(group + 128 for group in groups[:-1]), groups[-1]])


def sealed(body: bytes) -> bytes:
    """A body with its checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def write(
    bundle: Bundle,
    symbols: Rows,
    height: int,
    width: int,
    small: bool = False,
    step: int | None = None,
    kept: int | None = None,
) -> bytes:
    """A feature file of symbols[channel][position]."""
    cdfs, offsets, contexts = bundle.tables(step, kept)
    rows = symbols if kept is None else [symbols[c] for c in bundle.order[:kept]]
    columns = width // bundle.stride - bundle.shrink
    payload = b""
    if cdfs:
        payload = (
            encode_small(cdfs, offsets, contexts, rows, columns)
            if small
            else encode(cdfs, offsets, rows)
        )
    size = leb128(height // 8)
    if step is None:
        head = bytes([0xFC, 1 | small << 4]) + bundle.fingerprint[:4]
        return sealed(head + size + leb128(width // 8) + leb128(len(payload)) + payload)
    square = height == width
    head = bytes([0xFC, 2 | small << 4 | square << 5]) + bundle.fingerprint[:4]
    level = bytes([step]) if kept is None else bytes([CUT, kept])
    return sealed(head + level + size + (b"" if square else leb128(width // 8)) + payload)


class Reader:
    """Takes fields from a file; check 4 is that they are there, and in their shortest form."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 2

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Refused(4)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        start = self.at
        while self.take(1)[0] >= 128:
            if self.at - start == 4:
                raise Refused(4)
        groups = self.data[start : self.at]
        if groups[-1] == 0 and len(groups) > 1:
            raise Refused(4)
        return sum((group & 127) << 7 * place for place, group in enumerate(groups))


def read(bundle: Bundle, data: bytes) -> Rows:
    """The symbols[channel][position] of a file. Raises Refused."""
    if not data:
        raise Refused(1)
    if data[0] != 0xFC:
        raise Refused(2)
    if len(data) < 2:
        raise Refused(4)
    version, flags = data[1] % 16, data[1] // 16
    if version not in (1, 2) or flags > (1 if version == 1 else 3):
        raise Refused(3)
    small, square = bool(flags & 1), bool(flags & 2)
    reader = Reader(data)
    fingerprint = reader.take(4)
    step = kept = None
    if version == 2:
        step = reader.take(1)[0]
        if step == CUT:
            step, kept = 0, reader.take(1)[0]
    rows = reader.number()
    columns = rows if square else reader.number()
    length = reader.number() if version == 1 else len(data) - reader.at - 4
    if len(data) < reader.at + length + 4 or length < 0:
        raise Refused(4)
    if version == 2 and (step > 240 or (rows == columns and not square)):
        raise Refused(4)
    if len(data) > reader.at + length + 4:
        raise Refused(5)
    if sealed(data[:-4]) != data:
        raise Refused(6)
    if fingerprint != bundle.fingerprint[:4] or version != bundle.version:
        raise Refused(7)
    height = rows * 8 // bundle.stride - bundle.shrink
    width = columns * 8 // bundle.stride - bundle.shrink
    if height < 1 or width < 1 or bundle.channels * height * width > bundle.max_symbols:
        raise Refused(8)
    if small and not any(contexts for _, _, contexts in bundle.levels):
        raise Refused(9)
    if kept is not None and kept >= bundle.channels:
        raise Refused(9)
    payload = reader.take(length)
    cdfs, offsets, contexts = bundle.tables(step, kept)
    try:
        if not cdfs:
            assert not payload
            found: Rows = []
        elif small:
            found = decode_small(cdfs, offsets, contexts, payload, height * width, width)
        else:
            found = decode(cdfs, offsets, payload, height * width)
    except (AssertionError, IndexError):
        raise Refused(10) from None
    if kept is None:
        return found
    symbols: Rows = [[0] * (height * width) for _ in range(bundle.channels)]
    for channel, row in zip(bundle.order, found, strict=False):
        symbols[channel] = row
    return symbols


def digest(tables: Tables) -> bytes:
    """The SHA-256 of tables: section 4, part 2."""
    cdfs, offsets, contexts = tables
    sha = hashlib.sha256()
    for cdf, offset in zip(cdfs, offsets, strict=True):
        sha.update(struct.pack(f"<ii{len(cdf)}I", offset, len(cdf), *cdf))
    for channel in sorted(contexts):
        thresholds, rows = contexts[channel]
        sha.update(struct.pack("<5i", channel, *thresholds))
        for row in rows:
            sha.update(struct.pack(f"<{len(row)}I", *row))
    return sha.digest()


def fingerprint(bundle: Bundle, bottleneck_sha256: bytes) -> bytes:
    """All 32 bytes of a bundle's fingerprint: sections 4 and 6.5."""
    rule = (
        f"feature file {bundle.version}; block 8; {bundle.channels} channels, "
        f"stride {bundle.stride}, shrink {bundle.shrink}; "
    )
    if bundle.version == 1:
        tables = digest(bundle.levels[0])
    else:
        sha = hashlib.sha256(b"".join(digest(level) for level in bundle.levels))
        for gains in (*bundle.gains, *bundle.inverse_gains):
            sha.update(struct.pack(f"<{bundle.channels}f", *gains))
        sha.update(struct.pack(f"<{bundle.channels}i", *bundle.order))
        tables = sha.digest()
    return hashlib.sha256(rule.encode() + tables + bottleneck_sha256).digest()
