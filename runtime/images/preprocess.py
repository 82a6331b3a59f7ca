"""From any image to the pixels that the edge graph takes: uint8 [H, W, 3], RGB.

The bundle's manifest says how: the short side is resized (bilinear, antialiased), then the centre
is cropped. 256 and 224 pixels are the reference's evaluation transform. With `as_is` an image is
not resized, and only cropped at its centre to multiples of 8 pixels.

With `fast_jpeg` a large JPEG is first decoded at a half, a quarter or an eighth of its size, which
saves libjpeg most of its work; the result is at least twice the resized short side (512 pixels for
256). Levels differ a little; docs/folders.md has the figures.

Animations use their first frame, and transparency is composited on white. 16-bit levels keep their
upper eight bits. CMYK is read as Adobe writes it, inverted, without its colour profile.

Always holds: EXIF orientation is applied, and an unreadable one means upright. A header that claims
too many pixels is refused before they are decoded. Levels of unknown range are refused, not
guessed. Besides Pillow's decoded pixels, memory is at most five bytes per pixel, and three more
with `as_is`.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..codec._coder import prepare
from ..codec.feature_file import BLOCK
from ..codec.manifest import STANDARD, Preprocessing
from ..errors import (
    ImageArrayError,
    ImageTooSmallError,
    ImageTypeError,
    UnknownLevelsError,
    UnsupportedImageError,
)
from .image_file import FAST_SIDE, load_image, load_opened, shortened

__all__ = ["FAST_SIDE", "ImageInput", "load_image", "preprocess"]

_LEVELS = np.dtype(np.uint8)
_MAX_LONG_SIDE = 64 * 256  # pixels after resizing, unless four times the short side are more
_BAND_PIXELS = 1 << 20  # converted at a time
_MAX_COPIED_PIXELS = 1 << 19
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY = {"1", "L", "LA", "La", "I"}
_SIXTEEN_BITS = {"PNG", "PPM", "JPEG2000"}  # formats whose 16-bit levels may have Pillow's mode I
# TIFF tags: bits per sample; whether zero is white (0) or black (1); sample format, 1 is unsigned.
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339

_Flatten: TypeAlias = Callable[[Image.Image, str], Image.Image]  # a band of rows, to mode L or RGB
ImageInput: TypeAlias = "str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[np.uint8]"


def preprocess(
    source: ImageInput, as_is: bool = False, fast_jpeg: bool = False, rule: Preprocessing = STANDARD
) -> NDArray[np.uint8]:
    """Decode, resize and crop an image.

    Args:
        source: a path, a binary file, a PIL image, or a uint8 array [H, W, 3] of RGB levels.
        as_is: do not resize; crop to multiples of 8 pixels.
        fast_jpeg: decode large JPEG files at a reduced size; no effect with `as_is`.
        rule: the bundle's, `bundle.manifest.preprocessing`.

    Returns pixels uint8 [H, W, 3], RGB: H and W are `rule.crop`, or with `as_is` multiples of 8.

    Raises load_image's errors, UnknownLevelsError, ImageArrayError, ImageTooSmallError.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != _LEVELS or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ImageArrayError(
                "an image array is uint8 [height, width, 3] in RGB order, not "
                f"{source.dtype} {list(source.shape)}"
            )
        if as_is:
            top, left, height, width = _blocks(*source.shape[:2])
            return source[top : top + height, left : left + width]
        return prepare(np.ascontiguousarray(source), rule.resize, rule.crop)
    if isinstance(source, Image.Image):
        load_opened(source)
        image = _to_levels(source, "the image")
    elif isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        name = shortened(str(source)) if isinstance(source, str | os.PathLike) else "the image"
        image = _to_levels(load_image(source, fast_jpeg and not as_is, 2 * rule.resize), name)
    else:
        raise ImageTypeError(_wrong_type(source))
    return _to_array(image) if as_is else _to_crop(image, rule)


def _wrong_type(source: object) -> str:
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    if isinstance(source, bytes | bytearray | memoryview):
        remedy = "give io.BytesIO(data) for a file's contents"
    elif hasattr(source, "__array__") or hasattr(source, "numpy"):
        remedy = "make it a uint8 array [height, width, 3] of RGB levels"
    elif isinstance(source, list | tuple | set | dict):
        remedy = "give one image at a time, or several to encode_batch"
    else:
        remedy = "give one of those"
    return (
        "an image is a path, an open binary file, a PIL image or a numpy array, "
        f"not {kind}: {remedy}"
    )


def _to_levels(image: Image.Image, name: str) -> Image.Image:
    """The image upright and opaque, with eight bits per level: mode L if it is grey, else RGB.

    Raises UnknownLevelsError, UnsupportedImageError.
    """
    turn = _TURNS.get(_orientation(image))
    narrow = _wide_levels(image, name)
    if narrow or image.mode not in ("L", "RGB") or image.has_transparency_data:
        image = _flattened(image, narrow or _flat)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's errors for damaged metadata have no common class
        return 1


def _flattened(image: Image.Image, flatten: _Flatten) -> Image.Image:
    # In bands of rows, so that a conversion needs memory for one band, not for the whole image.
    is_grey = image.mode in _GREY or image.mode.startswith("I;16")
    mode = "L" if is_grey else "RGB"
    flat = Image.new(mode, image.size)
    for top, bottom in _bands(*image.size):
        band = image.crop((0, top, image.width, bottom))
        try:
            flat.paste(flatten(band, mode), (0, top))
        except ValueError as error:
            raise UnsupportedImageError(
                f"an image of mode {image.mode} cannot be converted ({error}): convert it to RGB"
            ) from error
    return flat


def _bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BAND_PIXELS // width)
    return ((top, min(height, top + rows)) for top in range(0, height, rows))


def _flat(band: Image.Image, mode: str) -> Image.Image:
    """Composited on white, in mode L or RGB."""
    if not band.has_transparency_data:
        return band.convert(mode)
    band = band.convert("LA" if mode == "L" else "RGBA")
    white = Image.new(mode, band.size, "white")
    white.paste(band.convert(mode), mask=band.getchannel("A"))
    return white


def _wide_levels(image: Any, name: str) -> _Flatten | None:
    """A function that reduces levels of more than eight bits to eight; None if they have eight.

    Raises UnknownLevelsError where nothing says which levels are black and white.
    """
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    signed = any(kind != 1 for kind in tags.get(_TIFF_SAMPLE_FORMAT, ()))
    if not wide and not signed:
        return None
    known = image.mode.startswith("I;16") and image.format != "FITS"
    if signed or not (known or (image.mode == "I" and image.format in _SIXTEEN_BITS)):
        raise UnknownLevelsError(
            f"{name} has mode {image.mode}, and nothing says which levels are black and white: "
            "convert it to 8 bits, or unsigned 16"
        )
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        raise UnknownLevelsError(
            f"{name} is a 16-bit TIFF in which zero is white, which Pillow does not invert: "
            "convert it to PNG"
        )
    bits = 12 if 12 in tags.get(_TIFF_BITS, ()) else 16
    key = image.info.get("transparency")

    def narrow(band: Image.Image, mode: str) -> Image.Image:
        levels = np.asarray(band)
        eight = (np.clip(levels, 0, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8)
        if isinstance(key, int):
            eight[levels == key] = 255
        return Image.fromarray(eight)

    return narrow


def _to_crop(image: Image.Image, rule: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop; sides and corners are those of torchvision's Resize and CenterCrop.

    The native code gives the same pixels, and is faster where a copy of the image costs little.
    """
    short, crop = rule.resize, rule.crop
    width, height = image.size
    if image.mode == "RGB" and width * height <= _MAX_COPIED_PIXELS:
        return prepare(np.asarray(image), short, crop)
    if width <= height:
        size = (short, max(short, int(short * height / width)))
    else:
        size = (max(short, int(short * width / height)), short)
    # A panorama is cropped before it is enlarged: 1 x 50,000 must not become 256 x 12,800,000.
    ratio = max(4, _MAX_LONG_SIDE // short)
    if max(size) > ratio * short:
        image = image.crop(_middle(width, height, ratio))
        size = (short, ratio * short) if width <= height else (ratio * short, short)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = _centre(size[0], crop), _centre(size[1], crop)
    return np.asarray(image.crop((left, top, left + crop, top + crop)).convert("RGB"))


def _centre(length: int, size: int) -> int:
    return round((length - size) / 2.0)


def _middle(width: int, height: int, ratio: int) -> tuple[int, int, int, int]:
    keep_width, keep_height = min(width, ratio * height), min(height, ratio * width)
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    return left, top, left + keep_width, top + keep_height


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of the image, cropped to whole blocks."""
    first, left, height, width = _blocks(image.height, image.width)
    pixels = np.empty((height, width, 3), np.uint8)
    for top, bottom in _bands(width, height):
        pixels[top:bottom] = image.crop((left, first + top, left + width, first + bottom)).convert(
            "RGB"
        )
    return pixels


def _blocks(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the whole blocks in the middle."""
    height, width = rows // BLOCK * BLOCK, columns // BLOCK * BLOCK
    if height == 0 or width == 0:
        raise ImageTooSmallError(
            f"an image of {columns}x{rows} pixels is under {BLOCK} a side: "
            "leave out --as-is, or enlarge it"
        )
    return _centre(rows, height), _centre(columns, width), height, width
