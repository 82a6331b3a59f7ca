"""From anybody's image to the pixels that the edge graph takes: uint8 [H, W, 3], RGB.

The default is the reference's evaluation transform: short side to 256 (bilinear, antialiased),
centre crop 224; `as_is` leaves the pixels alone and crops them, centred, to multiples of 8.
With `fast_jpeg` a large JPEG is decoded at a half, a quarter or an eighth of its size before that, still at least
512 pixels a side: libjpeg then leaves out most of its work, and levels differ a little. docs/folders.md has the figures.

Of an animation the first frame is taken; what is transparent lies on white; 16-bit levels keep their upper eight; CMYK
is taken as Adobe writes it, inverted, without its colour profile.

Always holds: EXIF orientation is applied, and a header that promises too many pixels is refused
before they are decoded.
"""

import os
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import (
    DamagedImageError,
    DecompressionBombError,
    ImageArrayError,
    ImageNotFoundError,
    ImageTooSmallError,
    NotAnImageError,
)
from .feature_file import BLOCK

RESIZE, CROP = 256, 224
FAST_SIDE = 512  # a fast JPEG's short side is no smaller, unless the image's is
_LEVELS = np.dtype(np.uint8)
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_PROGRAMS = {"EPS", "WMF"}  # Pillow hands these to an interpreter of the system

ImageInput: TypeAlias = "str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[np.uint8]"


def load_image(source: str | os.PathLike[str] | BinaryIO, fast_jpeg: bool = False) -> Image.Image:
    """Decode an image file, by path or open file; with `fast_jpeg`, a large JPEG at a fraction of its size.

    Raises ImageNotFoundError, NotAnImageError, DamagedImageError, DecompressionBombError.
    """
    name = "the image" if hasattr(source, "read") else str(source)
    try:
        image = Image.open(source)
        if image.format in _PROGRAMS:
            raise NotAnImageError(f"{name} is a program that draws ({image.format}), and is not run: convert it to JPEG or PNG")
        if fast_jpeg and image.format in ("JPEG", "MPO"):
            image.draft(None, (FAST_SIDE, FAST_SIDE))
        image.load()
        return image
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"no such file: {name}") from None
    except IsADirectoryError:
        raise ImageNotFoundError(f"{name} is a folder: name the images in it") from None
    except Image.DecompressionBombError as error:
        raise DecompressionBombError(f"{name} has too many pixels to decode safely ({error}): make it smaller first") from error
    except UnidentifiedImageError:
        raise NotAnImageError(f"{name} is not an image that Pillow can read: convert it to JPEG or PNG") from None
    except (PermissionError, MemoryError, NotAnImageError):
        raise
    except Exception as error:  # Pillow's decoders have no common class for damage
        raise DamagedImageError(f"{name} is damaged or cut short ({error}): copy it again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright and in mode RGB, from any mode.

    Raises DamagedImageError.
    """
    try:
        image.load()
        # exif_transpose copies even what is upright.
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and not image.has_transparency_data:
            return image
        if image.mode == "I" or image.mode.startswith("I;16"):
            levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
            image = Image.fromarray(levels.astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            return white
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # an image that was opened and not loaded, or EXIF data that make no sense
        raise DamagedImageError(f"the image is damaged or cut short ({error}): copy it again") from error


def _centre(length: int, size: int) -> int:
    return round((length - size) / 2.0)


def preprocess(source: ImageInput, as_is: bool = False, fast_jpeg: bool = False) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3], H and W multiples of 8; [224, 224, 3] unless `as_is`.

    Args:
        source: a path, an open file, a PIL image, or a uint8 array [H, W, 3] of RGB levels.
        fast_jpeg: decode large JPEG files at a fraction of their size; no effect with `as_is`.

    Raises load_image's errors, ImageArrayError, ImageTooSmallError.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != _LEVELS or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ImageArrayError(f"an image array is uint8 [height, width, 3] in RGB order, not {source.dtype} {list(source.shape)}")
        if as_is:
            return _crop_to_blocks(source)
        image = Image.fromarray(source)
    else:
        image = to_rgb(source if isinstance(source, Image.Image) else load_image(source, fast_jpeg and not as_is))
        if as_is:
            return _crop_to_blocks(np.asarray(image))
    width, height = image.size
    # As torchvision's Resize and CenterCrop compute sides and corners.
    if width <= height:
        size = (RESIZE, max(RESIZE, int(RESIZE * height / width)))
    else:
        size = (max(RESIZE, int(RESIZE * width / height)), RESIZE)
    # A panorama is cut before it is enlarged: 1 x 50,000 pixels are not to become 256 x 12,800,000.
    if max(size) > 64 * RESIZE:
        image = image.crop(_middle(width, height))
        size = (RESIZE, 64 * RESIZE) if width <= height else (64 * RESIZE, RESIZE)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = _centre(size[0], CROP), _centre(size[1], CROP)
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    keep_width, keep_height = min(width, 64 * height), min(height, 64 * width)
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    return left, top, left + keep_width, top + keep_height


def _crop_to_blocks(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // BLOCK * BLOCK, pixels.shape[1] // BLOCK * BLOCK
    if height == 0 or width == 0:
        raise ImageTooSmallError(
            f"an image of {pixels.shape[1]}x{pixels.shape[0]} pixels is under {BLOCK} a side: leave out --as-is, or enlarge it"
        )
    if (height, width) == pixels.shape[:2]:
        return pixels
    top, left = _centre(pixels.shape[0], height), _centre(pixels.shape[1], width)
    return pixels[top : top + height, left : left + width]
