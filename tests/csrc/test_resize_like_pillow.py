"""csrc/images/resize.hpp gives Pillow's pixels, for images of all sizes."""

import numpy as np
import pytest
from c_library import BAD_IMAGE, CBundle, CError
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pillow_pixels import pillow_pixels


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


# Sizes on both sides of what Pillow does in another order: columns before rows.
@example(640, 300)
@example(601, 300)
@example(599, 300)
# What is not resized; one pixel; enlargements; panoramas, which are cropped first.
@example(256, 256)
@example(256, 300)
@example(1, 1)
@example(1, 3000)
@example(3000, 1)
@example(7, 900)
@given(st.integers(1, 800), st.integers(1, 800))
def test_pixels_are_those_of_the_python_edge(c_bundle: CBundle, height: int, width: int) -> None:
    image = _noise(height, width)
    assert (c_bundle.prepare(image) == pillow_pixels(image)).all()


def test_rows_that_lie_apart(c_bundle: CBundle) -> None:
    image = _noise(400, 500)[10:300, 20:450]
    assert (c_bundle.prepare(image) == pillow_pixels(np.ascontiguousarray(image))).all()


def test_a_camera_picture(c_bundle: CBundle) -> None:
    image = _noise(1080, 1920)
    assert (c_bundle.prepare(image) == pillow_pixels(image)).all()


def test_no_pixels_and_too_many_are_refused(c_bundle: CBundle) -> None:
    for shape in ((0, 5, 3), (1 << 25, 1, 3), (1 << 20, 1 << 12, 3)):
        huge = np.lib.stride_tricks.as_strided(_noise(2, 2), shape, (3 * shape[1], 3, 1))
        with pytest.raises(CError, match="is empty or too large") as refused:
            c_bundle.prepare(huge)
        assert refused.value.status == BAD_IMAGE
