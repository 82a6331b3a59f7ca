"""An image file, by path or open: decoded whole, or refused.

Pillow decodes. Looked for here is what it passes over in silence: a JPEG's scan that is cut short or overwritten (in a
TIFF, too), and a PNG's checksums. Metadata are not pixels: where a PNG fails with them, it is decoded without.

Always holds: never half an image; a file that is opened here is closed here, and the caller's stays open; faults of the
system (EIO, ELOOP, EMFILE and so on) are OSErrors with the file's name, never damage; messages are of a bounded length;
Pillow's settings are the caller's.
"""

import errno
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image, ImageChops, UnidentifiedImageError

from ..codec._coder import jpeg_damage
from ..errors import (
    DamagedImageError,
    DecompressionBombError,
    ImageError,
    ImageFileTooLargeError,
    ImageNotFoundError,
    ImageTypeError,
    NotAnImageError,
    UnsupportedImageError,
)

FAST_SIDE = 512  # a fast JPEG's short side is no smaller, unless the image's is
MAX_STREAM_BYTES = 256 << 20  # of what has no length; larger than any image file that is decoded
_PROGRAMS = {"EPS", "WMF"}  # Pillow hands these to an interpreter of the system
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # of PNG
# Of an interlaced PNG: the first column and row of each pass, and how far it is to the next ones.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_TIFF_COMPRESSION, _TIFF_JPEG, _TIFF_JPEG_TABLES = 259, 7, 347
_TIFF_PARTS = ((273, 279), (324, 325))  # places and sizes of strips, and of tiles
_LONGEST = 300  # characters of a name or a reason in a message
# Pillow has no class for what it does not decode.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unimplemented|unknown|unrecogni[sz]ed|not available|cannot (handle|find|load this)",
    re.I,
)


def load_image(
    source: str | os.PathLike[str] | BinaryIO, fast_jpeg: bool = False, fast_side: int = FAST_SIDE
) -> Image.Image:
    """Decode an image file, by path or open file; with `fast_jpeg`, a large JPEG at a fraction of its size, at least `fast_side`
    pixels a side.

    Raises ImageTypeError, ImageNotFoundError, ImageFileTooLargeError, NotAnImageError, UnsupportedImageError,
    DamagedImageError, DecompressionBombError, and OSError where the system fails.
    """
    with _opened(source) as (file, name), _refusals(name):
        try:
            image = Image.open(file)
            _decode(image, file, name, fast_jpeg * fast_side)
        except (Image.DecompressionBombError, ImageError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders have no common class for what is wrong
            pixels = _without_metadata(file)
            if pixels is None:
                raise
            _check_png(file)
            try:
                image = Image.open(pixels)
            except UnidentifiedImageError:
                raise error from None
            _decode(image, pixels, name, fast_jpeg * fast_side)
        return image


def load_opened(image: Image.Image) -> None:
    """Decode a PIL image if that was not done yet, as load_image does. Raises load_image's errors."""
    with _refusals("the image"):
        if image.width < 1 or image.height < 1:
            raise ImageTypeError(
                f"a PIL image of {image.width}x{image.height} has no pixels: give one that has"
            )
        file = getattr(image, "fp", None)
        if getattr(image, "tile", None) and (file is None or getattr(file, "closed", False)):
            raise ImageTypeError(
                "the PIL image's file was closed before its pixels were read: call its load() before"
            )
        _decode(image, file, "the image")


def shortened(text: str) -> str:
    """Of a length that fits a message."""
    return (
        text if len(text) <= _LONGEST else f"{text[: _LONGEST - 50]}... ({len(text):,} characters)"
    )


@contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The file, which can be read again from its start, and its name."""
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        yield _seekable(source), shortened(name) if isinstance(name, str) else "the image"
        return
    name = shortened(str(source))
    try:
        file = open(source, "rb")  # noqa: SIM115 (its faults are other faults than those of reading)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"no such file: {name or 'a name of no characters'}") from None
    except IsADirectoryError:
        raise ImageNotFoundError(f"{name} is a folder: name the images in it") from None
    except ValueError:  # a zero among the characters, or half of a surrogate pair
        raise ImageNotFoundError(
            f"no file can have the name {name!r}: name an image file"
        ) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageNotFoundError(f"no such file, for the name is too long: {name}") from None
        raise
    with file:
        yield _seekable(file), name


def _seekable(file: BinaryIO) -> BinaryIO:
    """The file, or what it holds where it is a pipe or a socket."""
    if getattr(file, "closed", False):
        raise ImageTypeError(
            "the image's file is closed: open it, and keep it open until the image is encoded"
        )
    try:
        is_text = isinstance(file.read(0), str)
    except io.UnsupportedOperation:
        raise ImageTypeError(
            "the image's file is open for writing alone: open it with mode 'rb'"
        ) from None
    if is_text:
        raise ImageTypeError("the image's file is open as text: open it with mode 'rb'")
    if file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek"):
        return file
    data = file.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise ImageFileTooLargeError(
            f"the image has more than {MAX_STREAM_BYTES} bytes, no image is so large: make it smaller first"
        )
    return io.BytesIO(data)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What Pillow raises, as the error that it means."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DecompressionBombError(
            f"{name} has too many pixels to decode safely ({error}): make it smaller first"
        ) from error
    except UnidentifiedImageError:
        raise NotAnImageError(
            f"{name} is not an image that Pillow can read: convert it to JPEG or PNG"
        ) from None
    except Exception as error:  # Pillow's decoders have no common class for damage
        # Pillow's own OSErrors have no number; a place that makes no sense, in a damaged header, has one of these.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise OSError(error.errno, error.strerror, name) from error
        why = shortened(str(error) or type(error).__name__)
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(why):
            raise UnsupportedImageError(
                f"{name} is of a kind that Pillow does not decode ({why}): convert it to JPEG or PNG"
            ) from error
        raise DamagedImageError(f"{name} is damaged or cut short ({why}): copy it again") from error


def _decode(image: Image.Image, file: BinaryIO | None, name: str, fast_side: int = 0) -> None:
    """Pixels, and whether they are all there."""
    waiting: Any = getattr(image, "tile", None)
    if waiting and image.format in _PROGRAMS:
        raise NotAnImageError(
            f"{name} is a program that draws ({image.format}), and is not run: convert it to JPEG or PNG"
        )
    if image.format == "MPEG":
        raise UnsupportedImageError(f"{name} is a film: take an image from it")
    if not waiting or file is None:
        image.load()
    elif image.format in ("JPEG", "MPO"):
        if fast_side:
            image.draft(None, (fast_side, fast_side))
        _decode_jpeg(image)
    elif image.format == "PNG":
        _check_png(file)
        _decode_png(image, file)
    else:
        image.load()
        if image.format == "TIFF":
            _check_tiff(image, file)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _decode_jpeg(image: Any) -> None:
    """Pillow reads the file in blocks. The same blocks are then walked once more, code by code."""
    blocks: list[bytes] = []
    read = image.load_read

    def keep(size: int) -> bytes:
        blocks.append(read(size))
        return blocks[-1]

    image.load_read = keep
    try:
        image.load()
    finally:
        del image.load_read
    _refuse(jpeg_damage(b"".join(blocks)))


def _check_tiff(image: Any, file: BinaryIO) -> None:
    """The JPEGs that strips and tiles may be, whose Huffman tables are kept apart."""
    tags = image.tag_v2
    if tags.get(_TIFF_COMPRESSION) != _TIFF_JPEG:
        return
    tables = tags.get(_TIFF_JPEG_TABLES, b"")
    for places, sizes in _TIFF_PARTS:
        for place, size in zip(tags.get(places, ()), tags.get(sizes, ()), strict=False):
            file.seek(place)
            part = file.read(size)
            # Without the tables' end and the part's start.
            _refuse(jpeg_damage(tables[:-2] + part[2:] if tables else part))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int, bool]]:
    """A PNG's chunks: name, place, size in all, and whether the checksum is right."""
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        left, kind = struct.unpack(">I4s", head)
        size, found = left + 12, zlib.crc32(kind)
        while left and (block := file.read(min(left, 1 << 16))):
            found = zlib.crc32(block, found)
            left -= len(block)
        yield kind, place, size, left == 0 and file.read(4) == struct.pack(">I", found)
        if kind == b"IEND":
            return
        place += size


def _check_png(file: BinaryIO) -> None:
    position = file.tell()
    for kind, _, _, is_right in _chunks(file):
        if kind in _PIXEL_CHUNKS and not is_right:
            raise ValueError(f"a wrong checksum in {kind.decode()}")
    file.seek(position)


def _check_png_rows(file: BinaryIO) -> None:
    """Whether the image data are as long as the header says: Pillow takes their regular end after any row for the image's."""
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
    for kind, place, size, _ in _chunks(file):
        file.seek(place + 8)
        more = size - 12 if kind == b"IDAT" else 0
        while expected > 0 and more and (block := file.read(min(more, 1 << 16))):
            more -= len(block)
            while block and expected > 0:
                expected -= len(inflate.decompress(block, 1 << 20))
                block = inflate.unconsumed_tail
    # Rows may still be inside the decompressor after the last byte.
    if expected > 0 and expected > len(inflate.flush()):
        raise ValueError("its data ends before its picture does")


def _decode_png(image: Any, file: BinaryIO) -> None:
    """Pillow compares the colour that stands for transparent with the levels that it gives, not with those in the file."""
    depth, key = image.tile[0][3], image.info.get("transparency")
    if depth in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if depth == "L;2" else 17)
    interlaced = bool(image.info.get("interlace"))
    image.load()
    # Rows that never came are zero, and few images end in such a row.
    if interlaced or not any(image.crop((0, image.height - 1, *image.size)).tobytes()):
        _check_png_rows(file)
    if depth == "RGB;16B" and isinstance(key, tuple):
        # Pillow gives the upper bytes; read as if in the other order, the file gives the lower ones.
        file.seek(0)
        lower: Any = Image.open(file)
        lower.tile = [(*lower.tile[0][:3], "RGB;16L")]
        lower.load()
        image.putalpha(_unlike(key, image, lower))
        del image.info["transparency"]


def _unlike(key: tuple[int, ...], upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Where a pixel is not of a 16-bit colour, in mode L; row by row, which takes no memory to speak of."""
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
    """Some parts of a file, one after the other, as a file."""

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
        for place, size in self._parts:
            if begin < size:
                self._file.seek(place + begin)
                data = self._file.read(min(len(buffer), size - begin))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            begin -= size
        return 0


def _without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its texts and profiles; None for others, whose metadata stop no decoder."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return None
    parts = [(0, 8)]
    for kind, place, size, is_right in _chunks(file):
        if kind in _PIXEL_CHUNKS or (kind == b"eXIf" and is_right):
            begin, before = parts[-1]
            if begin + before == place:
                parts[-1] = (begin, before + size)
            else:
                parts.append((place, size))
    return io.BufferedReader(_Parts(file, parts), 1 << 16)
