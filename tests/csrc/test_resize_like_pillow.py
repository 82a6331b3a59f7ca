"""csrc/images/resize.hpp gives the pixels of Pillow, level for level, for all kinds of sizes."""

import numpy as np
import pytest
from c_library import BAD_IMAGE, CBundle, CError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pillow_pixels import pillow_pixels

# Width and height. Sides that are scaled by whole and odd factors, up and down, and not at all.
SIDES = (1, 2, 3, 7, 31, 64, 128, 223, 224, 225, 255, 256, 257, 300, 511, 512, 513, 767, 1000)
SIZES = [(width, height) for width in SIDES for height in SIDES]
# Panoramas on both sides of the limit of 64 to 1, from which on they are cropped before, and
# large photographs.
LARGE = [
    *((short, short * 64 + more) for short in (1, 5, 40) for more in (-1, 0, 1, 500)),
    *((1, long) for long in (8191, 16384, 16385, 50000)),
    (1920, 1080),
    (1280, 720),
    (2047, 1365),
    (4032, 3024),
    (300, 6001),
]


def _noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random levels, a part of which are black and white, where rounding has its limits."""
    random = np.random.default_rng((seed, width, height))
    levels = random.integers(-100, 356, (height, width, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _compare(c_bundle: CBundle, image: NDArray[np.uint8]) -> None:
    assert (c_bundle.prepare(image) == pillow_pixels(image)).all(), image.shape


def test_sizes_up_to_1000(c_bundle: CBundle) -> None:
    for size in SIZES:
        _compare(c_bundle, _noise(*size))


@pytest.mark.parametrize("turned", [False, True])
def test_large_images_and_panoramas(c_bundle: CBundle, turned: bool) -> None:
    for width, height in LARGE:
        _compare(c_bundle, _noise(height, width) if turned else _noise(width, height))


@settings(max_examples=150)
# Heights on both sides of that from which on Pillow 13 resizes columns before rows.
@example(300, 599, 0)
@example(300, 601, 0)
@example(300, 640, 0)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 1 << 32))
def test_any_size(c_bundle: CBundle, width: int, height: int, seed: int) -> None:
    _compare(c_bundle, _noise(width, height, seed))


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_one_level_stays(c_bundle: CBundle, level: int) -> None:
    for size in ((1, 1), (640, 480), (3, 900), (255, 257)):
        image = np.full((*size, 3), level, np.uint8)
        assert (c_bundle.prepare(image) == level).all()


def test_rows_that_lie_apart(c_bundle: CBundle) -> None:
    image = _noise(500, 400)[10:, 20:470]
    assert (c_bundle.prepare(image) == pillow_pixels(np.ascontiguousarray(image))).all()


def test_no_pixels_and_too_many_are_refused(c_bundle: CBundle) -> None:
    for shape in ((0, 5, 3), (1 << 25, 1, 3), (1 << 20, 1 << 12, 3)):
        huge = np.lib.stride_tricks.as_strided(_noise(2, 2), shape, (3 * shape[1], 3, 1))
        with pytest.raises(CError, match="is empty or too large") as refused:
            c_bundle.prepare(huge)
        assert refused.value.status == BAD_IMAGE
