"""Decodes an image file completely, or refuses it.

Pillow decodes. This file also checks what Pillow ignores: truncated or overwritten scans of JPEGs
(also inside TIFFs), and checksums and missing rows of PNGs. Damaged metadata do not matter: a PNG
that Pillow refuses for them is decoded without them.

Always holds: an incomplete image is never returned. A file opened here is closed here; the caller's
stays open. System errors (EIO, ELOOP, EMFILE and so on) stay OSErrors with the file's name, and are
not called damage. Messages have a bounded length. Pillow's global settings are not changed.
"""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

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
from .png import check_checksums, load_png, without_metadata

FAST_SIDE = 512  # pixels that a fast JPEG's short side keeps at least, if the image has them
MAX_STREAM_BYTES = 256 << 20  # read from a pipe; larger than any image file that is decoded
_PROGRAMS = {"EPS", "WMF"}  # Pillow runs these with an interpreter of the system
_TIFF_COMPRESSION, _TIFF_JPEG, _TIFF_JPEG_TABLES = 259, 7, 347  # a tag, its value, a tag
_TIFF_PARTS = ((273, 279), (324, 325))  # tags: offsets and sizes of strips, and of tiles
_MAX_TEXT = 300  # characters of a name or a reason in a message
# Pillow has no error class for formats that it does not decode, only these messages.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unimplemented|unknown|unrecogni[sz]ed|not available"
    r"|cannot (handle|find|load this)",
    re.I,
)


def load_image(
    source: str | os.PathLike[str] | BinaryIO, fast_jpeg: bool = False, fast_side: int = FAST_SIDE
) -> Image.Image:
    """Decode an image file.

    Args:
        source: a path, or a file that is open in binary mode.
        fast_jpeg: decode a large JPEG at a half, a quarter or an eighth of its size.
        fast_side: pixels that both sides then keep at least.

    Returns a loaded PIL image in Pillow's mode for the file; its EXIF orientation is not applied.

    Raises ImageTypeError, ImageNotFoundError, ImageFileTooLargeError, NotAnImageError,
    UnsupportedImageError, DamagedImageError, DecompressionBombError, and OSErrors of the system.
    """
    with _opened(source) as (file, name), _refusals(name):
        try:
            image = Image.open(file)
            _decode(image, file, name, fast_jpeg * fast_side)
        except (Image.DecompressionBombError, ImageError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders have no common error class
            pixels = without_metadata(file)
            if pixels is None:
                raise
            check_checksums(file)
            try:
                image = Image.open(pixels)
            except UnidentifiedImageError:
                raise error from None
            _decode(image, pixels, name, fast_jpeg * fast_side)
        return image


def load_opened(image: Image.Image) -> None:
    """Decode a PIL image that is not loaded yet, with load_image's checks.

    Raises load_image's errors.
    """
    with _refusals("the image"):
        if image.width < 1 or image.height < 1:
            raise ImageTypeError(
                f"a PIL image of {image.width}x{image.height} has no pixels: give one that has"
            )
        file = getattr(image, "fp", None)
        if getattr(image, "tile", None) and (file is None or getattr(file, "closed", False)):
            raise ImageTypeError(
                "the PIL image's file was closed before its pixels were read: "
                "call its load() before"
            )
        _decode(image, file, "the image")


def shortened(text: str) -> str:
    """The text, cut to a length that fits a message."""
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT - 50]}... ({len(text):,} characters)"


@contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The source as a seekable file, and its name for messages."""
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        yield _seekable(source), shortened(name) if isinstance(name, str) else "the image"
        return
    name = shortened(str(source))
    try:
        file = open(source, "rb")  # noqa: SIM115 (a `with` would also catch errors of reading)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"no such file: {name or 'a name of no characters'}") from None
    except IsADirectoryError:
        raise ImageNotFoundError(f"{name} is a folder: name the images in it") from None
    except ValueError:  # a NUL character, or half of a surrogate pair
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
    """The file itself, or the contents of a pipe or a socket."""
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
            f"the image has more than {MAX_STREAM_BYTES} bytes, which is the limit for pipes: "
            "make it smaller first"
        )
    return io.BytesIO(data)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn what Pillow raises into the ImageErrors."""
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
        # Not system errors: Pillow's own OSErrors, which have no number, and the two numbers of
        # seeking to an impossible offset that a damaged header names.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise OSError(error.errno, error.strerror, name) from error
        why = shortened(str(error) or type(error).__name__)
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(why):
            raise UnsupportedImageError(
                f"{name} is of a kind that Pillow does not decode ({why}): "
                "convert it to JPEG or PNG"
            ) from error
        raise DamagedImageError(f"{name} is damaged or cut short ({why}): copy it again") from error


def _decode(image: Image.Image, file: BinaryIO | None, name: str, fast_side: int = 0) -> None:
    """Load the image's pixels, and check that they are complete. Raises ValueError if not."""
    pending: Any = getattr(image, "tile", None)
    if pending and image.format in _PROGRAMS:
        raise NotAnImageError(
            f"{name} is a drawing program ({image.format}), which is not run: "
            "convert it to JPEG or PNG"
        )
    if image.format == "MPEG":
        raise UnsupportedImageError(f"{name} is a film: take an image from it")
    if not pending or file is None:
        image.load()
    elif image.format in ("JPEG", "MPO"):
        if fast_side:
            image.draft(None, (fast_side, fast_side))
        _decode_jpeg(image)
    elif image.format == "PNG":
        check_checksums(file)
        load_png(image, file)
    else:
        image.load()
        if image.format == "TIFF":
            _check_tiff(image, file)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _decode_jpeg(image: Any) -> None:
    """Load a JPEG, then check the Huffman codes of the same blocks that Pillow read."""
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
    """Check JPEGs in strips or tiles; a TIFF may keep their Huffman tables elsewhere."""
    tags = image.tag_v2
    if tags.get(_TIFF_COMPRESSION) != _TIFF_JPEG:
        return
    tables = tags.get(_TIFF_JPEG_TABLES, b"")
    for offsets, sizes in _TIFF_PARTS:
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False):
            file.seek(offset)
            part = file.read(size)
            # Joined without the tables' end marker and the part's start marker.
            _refuse(jpeg_damage(tables[:-2] + part[2:] if tables else part))
