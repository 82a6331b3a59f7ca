"""Images for the parity gate: the user's, or a packaged set of synthetic ones.

The synthetic set is computed, the same everywhere: smooth shading, sharp shapes, texture, noise.
It is there so that a plain clone can compare two graphs on pixels with some life in them; it says
nothing about accuracy.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.preprocess import preprocess

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


class NoImagesError(ValueError):
    """The folder has no image in it."""


def synthetic_images(count: int = 10, side: int = 224) -> NDArray[np.uint8]:
    """uint8 [count, side, side, 3]; image i depends on i and side alone."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    images = []
    for index in range(count):
        rng = np.random.default_rng(index)
        image = np.zeros((side, side, 3))
        for octave in range(6):  # smooth noise at scales from the whole image to 7 pixels
            grid = rng.normal(size=(2**octave + 1, 2**octave + 1, 3))
            image += _stretch(grid, side) / (octave + 1)
        for _ in range(12):  # sharp-edged discs and half planes
            centre, colour = rng.uniform(size=2), rng.normal(scale=1.5, size=3)
            if rng.random() < 0.5:
                inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(0.02, 0.2) ** 2
            else:
                angle = rng.uniform(0, np.pi)
                inside = np.abs((rows - centre[0]) * np.sin(angle) + (columns - centre[1]) * np.cos(angle)) < rng.uniform(0.005, 0.05)
            image[inside] = colour
        stripes = np.sin(2 * np.pi * (rows * rng.integers(4, 40) + columns * rng.integers(4, 40)))
        image += 0.5 * stripes[..., None] * rng.normal(size=3) + rng.normal(scale=0.1, size=image.shape)
        images.append(np.clip(128 + 50 * image, 0, 255).astype(np.uint8))
    return np.stack(images)


def _stretch(grid: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    at = np.linspace(0, len(grid) - 1, side)
    low = np.minimum(at.astype(int), len(grid) - 2)
    part = at - low
    grid = grid[low] * (1 - part)[:, None, None] + grid[low + 1] * part[:, None, None]
    return grid[:, low] * (1 - part)[None, :, None] + grid[:, low + 1] * part[None, :, None]


def image_paths(folder: Path) -> list[Path]:
    """All image files in `folder` and below, sorted. Raises NoImagesError."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise NoImagesError(f"no image in {folder}: name a folder of JPEG or PNG files")
    return paths


def folder_images(folder: Path, limit: int = 40) -> NDArray[np.uint8]:
    """Up to `limit` images from `folder` and below, evenly spread over the sorted names, 224x224.

    Raises NoImagesError; files that are no images are passed over.
    """
    paths = image_paths(folder)
    images = []
    for path in paths[:: max(1, len(paths) // limit)][:limit]:
        try:
            images.append(preprocess(path))
        except ImageError:
            continue
    if not images:
        raise NoImagesError(f"no image in {folder}: name a folder of JPEG or PNG files")
    return np.stack(images)


def labelled_paths(folder: Path, classes: int) -> list[tuple[Path, int | None]]:
    """All image files in `folder` and below, each with its class where there is one folder a class, in sorted order.

    Raises NoImagesError.
    """
    paths = image_paths(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(names) != classes or any(path.parent == folder for path in paths):
        return [(path, None) for path in paths]
    return [(path, names.index(path.relative_to(folder).parts[0])) for path in paths]
