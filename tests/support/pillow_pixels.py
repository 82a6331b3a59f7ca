"""Pillow's pixels of an image that is prepared for the edge: what the native code is held to."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pillow_pixels(
    pixels: NDArray[np.uint8], resize: int = 256, crop: int = 224
) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] with Pillow, and crop the centre; panoramas are cropped before."""
    image = Image.fromarray(pixels)
    width, height = image.size
    ratio = max(4, 64 * 256 // resize)
    if width <= height:
        size = (resize, max(resize, int(resize * height / width)))
    else:
        size = (max(resize, int(resize * width / height)), resize)
    if max(size) > ratio * resize:
        keep = min(width, ratio * height), min(height, ratio * width)
        left, top = (width - keep[0]) // 2, (height - keep[1]) // 2
        image = image.crop((left, top, left + keep[0], top + keep[1]))
        longest = ratio * resize
        size = (resize, longest) if width <= height else (longest, resize)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in size)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))
