"""What Pillow does not do for PNG files: checksums, missing rows, deep transparent colours.

Pillow ignores the checksums of image data, accepts data that end after any row, and refuses whole
images for damaged or large texts and profiles.

Always holds: a file's chunks are read in pieces, so none of these checks holds the file in memory.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, ImageChops

_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# The passes of an interlaced PNG: first column, first row, column step, row step.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int, bool]]:
    """A PNG's chunks: name, offset, whole size in bytes, and whether the checksum is right."""
    offset = 8
    while True:
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8:
            return
        left, kind = struct.unpack(">I4s", head)
        size, found = left + 12, zlib.crc32(kind)
        while left and (block := file.read(min(left, 1 << 16))):
            found = zlib.crc32(block, found)
            left -= len(block)
        yield kind, offset, size, left == 0 and file.read(4) == struct.pack(">I", found)
        if kind == b"IEND":
            return
        offset += size


def check_checksums(file: BinaryIO) -> None:
    """Check the chunks that pixels come from; keeps the file's position. Raises ValueError."""
    position = file.tell()
    for kind, _, _, is_right in _chunks(file):
        if kind in _PIXEL_CHUNKS and not is_right:
            raise ValueError(f"a wrong checksum in {kind.decode()}")
    file.seek(position)


def _check_rows(file: BinaryIO) -> None:
    """Check that the image data have as many rows as the header says. Raises ValueError.

    Pillow accepts compressed data that end properly after any row.
    """
    file.seek(16)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    inflate = zlib.decompressobj()
    for kind, offset, size, _ in _chunks(file):
        file.seek(offset + 8)
        more = size - 12 if kind == b"IDAT" else 0
        while expected > 0 and more and (block := file.read(min(more, 1 << 16))):
            more -= len(block)
            while block and expected > 0:
                expected -= len(inflate.decompress(block, 1 << 20))
                block = inflate.unconsumed_tail
    # Rows may still be inside the decompressor after the last byte.
    if expected > 0 and expected > len(inflate.flush()):
        raise ValueError("its data ends before its picture does")


def load_png(image: Any, file: BinaryIO) -> None:
    """Load a PNG that Pillow opened, with all its rows and its transparent colour.

    Pillow compares that colour, which has the file's bit depth, with levels of eight bits.
    Raises ValueError if rows are missing.
    """
    depth, key = image.tile[0][3], image.info.get("transparency")
    if depth in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if depth == "L;2" else 17)
    interlaced = bool(image.info.get("interlace"))
    image.load()
    # Missing rows are zero. Few images end in such a row, so few are checked.
    if interlaced or not any(image.crop((0, image.height - 1, *image.size)).tobytes()):
        _check_rows(file)
    if depth == "RGB;16B" and isinstance(key, tuple):
        # Pillow keeps the upper bytes. Read with the other byte order, the file gives the others.
        file.seek(0)
        lower: Any = Image.open(file)
        lower.tile = [(*lower.tile[0][:3], "RGB;16L")]
        lower.load()
        image.putalpha(_unlike(key, image, lower))
        del image.info["transparency"]


def _unlike(key: tuple[int, ...], upper: Image.Image, lower: Image.Image) -> Image.Image:
    """A mask, in mode L, of the pixels that differ from a 16-bit colour.

    `upper` and `lower` have the upper and lower bytes. Row by row, to save memory.
    """
    mask = Image.new("L", upper.size)
    for row in range(upper.height):
        box = (0, row, upper.width, row + 1)
        unlike = Image.new("L", (upper.width, 1))
        for part, shift in ((upper, 8), (lower, 0)):
            for channel, level in zip(part.crop(box).split(), key, strict=True):
                wanted = level >> shift & 255
                unlike = ImageChops.lighter(
                    unlike, channel.point([255 * (found != wanted) for found in range(256)])
                )
        mask.paste(unlike, box)
    return mask


class _Parts(io.RawIOBase):
    """Parts of a file, each (offset, size), read as one file."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]):
        self._file, self._parts, self._at = file, parts, 0
        self._size = sum(size for _, size in parts)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(
            0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        )
        return self._at

    def readinto(self, buffer: Any) -> int:
        begin = self._at
        for offset, size in self._parts:
            if begin < size:
                self._file.seek(offset + begin)
                data = self._file.read(min(len(buffer), size - begin))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            begin -= size
        return 0


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its texts and profiles; None for other formats, whose metadata do no harm."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return None
    parts = [(0, 8)]
    for kind, offset, size, is_right in _chunks(file):
        if kind in _PIXEL_CHUNKS or (kind == b"eXIf" and is_right):
            begin, before = parts[-1]
            if begin + before == offset:
                parts[-1] = (begin, before + size)
            else:
                parts.append((offset, size))
    return io.BufferedReader(_Parts(file, parts), 1 << 16)
