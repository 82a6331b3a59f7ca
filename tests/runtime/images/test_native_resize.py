"""Arrays and small images are resized by native code, with the pixels that Pillow gives."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pillow_pixels import pillow_pixels

from runtime.codec import _coder
from runtime.codec.manifest import Preprocessing
from runtime.images.preprocess import preprocess


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 30), st.integers(0, 200))
def test_pixels_are_pillows(height: int, width: int, blocks: int, more: int) -> None:
    image, crop = _noise(height, width), 8 * blocks
    found = _coder.prepare(image, crop + more, crop)
    assert (found == pillow_pixels(image, crop + more, crop)).all()


@pytest.mark.parametrize("size", [(1200, 900), (300, 400)], ids=["large", "small"])
def test_every_kind_of_source_gives_the_same_pixels(size: tuple[int, int]) -> None:
    image = _noise(*size)
    expected = pillow_pixels(image)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    for source in (image, np.asfortranarray(image), image[:, ::-1][:, ::-1]):
        assert (preprocess(source) == expected).all()
    for picture in (Image.fromarray(image), file):
        assert (preprocess(picture) == expected).all()
    rule = Preprocessing(64, 32)
    assert (preprocess(image, rule=rule) == pillow_pixels(image, 64, 32)).all()


def test_grey_images() -> None:
    grey = _noise(300, 400)[:, :, 0]
    expected = pillow_pixels(np.repeat(grey[:, :, None], 3, 2))
    assert (preprocess(Image.fromarray(grey)) == expected).all()


def test_what_native_code_refuses() -> None:
    for shape in ((5, 5), (5, 5, 4), (0, 5, 3)):
        with pytest.raises(ValueError, match="must have the shape"):
            _coder.prepare(np.zeros(shape, np.uint8), 16, 8)
    for resize, crop in ((8, 16), (8, 0), (5000, 8)):
        with pytest.raises(ValueError, match="1 <= crop <= resize <= 4096"):
            _coder.prepare(_noise(5, 5), resize, crop)
    with pytest.raises(TypeError):
        _coder.prepare(np.zeros((5, 5, 3), np.float32), 16, 8)  # type: ignore[arg-type]
