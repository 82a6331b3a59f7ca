"""Images for export: the user's, or synthetic ones for the parity check.

The synthetic images are computed, and are the same on every machine: smooth shading, sharp shapes,
texture and noise. With them, a plain clone can compare two graphs without a data set. They say
nothing about accuracy.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.cli.command import say
from runtime.codec.manifest import STANDARD, Preprocessing
from runtime.errors import ImageError
from runtime.images.preprocess import preprocess
from training.folders import Damage, NoImagesError, class_folder, images_below, refuse_splits
from training.labels import ClassesError, match

LabelledPath = tuple[Path, int | None]  # a file, and its class if it is known


def synthetic_images(count: int = 10, side: int = 224) -> NDArray[np.uint8]:
    """uint8 [count, side, side, 3]. Image i depends only on i and `side`."""
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
                inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(
                    0.02, 0.2
                ) ** 2
            else:
                angle = rng.uniform(0, np.pi)
                inside = np.abs(
                    (rows - centre[0]) * np.sin(angle) + (columns - centre[1]) * np.cos(angle)
                ) < rng.uniform(0.005, 0.05)
            image[inside] = colour
        stripes = np.sin(2 * np.pi * (rows * rng.integers(4, 40) + columns * rng.integers(4, 40)))
        image += 0.5 * stripes[..., None] * rng.normal(size=3) + rng.normal(
            scale=0.1, size=image.shape
        )
        images.append(np.clip(128 + 50 * image, 0, 255).astype(np.uint8))
    return np.stack(images)


def _stretch(grid: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Bilinear interpolation of a grid [n, n, 3] to [side, side, 3]."""
    at = np.linspace(0, len(grid) - 1, side)
    low = np.minimum(at.astype(int), len(grid) - 2)
    part = at - low
    grid = grid[low] * (1 - part)[:, None, None] + grid[low + 1] * part[:, None, None]
    return grid[:, low] * (1 - part)[None, :, None] + grid[:, low + 1] * part[None, :, None]


@dataclass(frozen=True)
class Reading:
    """How export reads images: as edge-encode prepares them.

    Attributes:
        as_is: whether images are only cropped to multiples of 8, and not resized.
        damage: is told of images that cannot be read; by default they are left out.
        rule: sides after resizing and cropping.
    """

    as_is: bool = False
    damage: Damage = field(default_factory=lambda: Damage(skip=True))
    rule: Preprocessing = STANDARD

    def pixels(self, path: Path) -> NDArray[np.uint8] | None:
        """uint8 [H, W, 3]; None for an image that cannot be read and is left out.

        Raises DamagedImageError where damaged images are not left out.
        """
        try:
            return preprocess(path, self.as_is, rule=self.rule)
        except ImageError as error:
            self.damage.note(path, str(error))
            return None


def folder_images(
    folder: Path, limit: int = 40, rule: Preprocessing = STANDARD
) -> NDArray[np.uint8]:
    """Up to `limit` images of `folder` and below, as uint8 [N, crop, crop, 3].

    They are spread evenly over the sorted names. Files that cannot be read are named on standard
    error. Raises NoImagesError where none is left, NoFolderError, OSError.
    """
    paths = images_below(folder)
    reading = Reading(rule=rule)
    read = (reading.pixels(path) for path in paths[:: max(1, len(paths) // limit)][:limit])
    images = [pixels for pixels in read if pixels is not None]
    if not images:
        raise NoImagesError(f"no image in {folder}: name a folder of JPEG or PNG files")
    return np.stack(images)


def unlabelled_paths(folder: Path) -> list[Path]:
    """All image files in `folder` and below.

    Raises NoImagesError, NoFolderError, SplitsError, OSError.
    """
    refuse_splits(folder)
    return images_below(folder)


def labelled_paths(folder: Path, labels: Sequence[str]) -> list[LabelledPath]:
    """All image files in `folder` and below, sorted, each with its class.

    The class is the one of `labels` that has the name of the image's folder. Where the folders are
    not the classes, a line on standard error says so, and each class is None.

    Raises NoImagesError, NoFolderError, SplitsError, OSError.
    """
    refuse_splits(folder)
    try:
        found = class_folder(folder, empty=True)
        classes, note = match(found.names, labels, str(folder), "the model")
    except (NoImagesError, ClassesError) as error:
        paths = images_below(folder)
        say(f"export: int8 is judged without labels: {error}", sys.stderr)
        return [(path, None) for path in paths]
    if note:
        say(f"export: {note}", sys.stderr)
    return [(path, classes[index]) for path, index in found.files]
