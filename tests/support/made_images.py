"""Images and image files that tests make."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """RGB pixels without any symmetry, so that a turn or a flip shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [columns * 255 // width, rows * 255 // height, (columns + rows) % 256], 2
    ).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    """An image file in memory, of a format that Pillow writes."""
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    depth: int, colour: int, width: int, height: int, rows: bytes, *others: bytes
) -> io.BytesIO:
    """A PNG file. Each row begins with its filter, 0; `others` are chunks before the image data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(others)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
