"""Datasets of image files and their batches: decoded by Pillow, augmented by torchvision.

Always holds: the held-out images are the same for every run on the same folder, and are never
trained on. An image's crop depends only on the seed, the epoch and the image, and a batch's images
only on the seed and the epoch, however many processes share the work. Damaged images change
neither: in training the next readable image replaces one, in measuring it is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from .command import heed_signals
from .folders import Damage, DamagedImageError, DataError

Files = Sequence[tuple[Path, int]]  # images, each with its class
Transforms = Sequence[Callable[[Any], Any]]  # of torchvision

_PROGRAMS = {"EPS", "WMF"}  # Pillow runs a system program to draw these
_ORIENTATION = 0x0112  # an EXIF tag; 1 is upright
_TRIES = 100  # unreadable images in a row after which a dataset is given up


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation by channel (RGB, of values from 0 to 1) of a network's input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [3, 1, 1]."""
        mean, std = (
            torch.tensor(one, dtype=dtype).reshape(3, 1, 1) for one in (self.mean, self.std)
        )
        return mean, std

    def to_input(self) -> list[Callable[[Any], Any]]:
        """Transforms of an RGB image into a normalised float [3, H, W]."""
        return [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN, STD = IMAGENET.mean, IMAGENET.std
# Changes of colour for a student that learns what a teacher gives for the changed image.
COLOUR: Transforms = (transforms.ColorJitter(0.3, 0.3, 0.3, 0.05),)


class Images(Dataset):
    """Image files, decoded and transformed. `targets` are their classes."""

    def __init__(self, files: Files, transform: Callable[[Image.Image], Tensor]):
        self.files, self.transform = files, transform
        self.targets = [label for _, label in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Raises UnreadableError."""
        path, label = self.files[index]
        image = read_image(path)
        try:
            return self.transform(image), label
        except DataError as error:
            raise UnreadableError(path, str(error)) from None


class UnreadableError(DamagedImageError):
    """An image that cannot be read; `path` and `why`."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path} {why}")
        self.path, self.why = str(path), f"{path} {why}"


def read_image(path: Path) -> Image.Image:
    """An image as the edge decodes it: upright RGB on white, the upper 8 bits of 16-bit levels.

    Raises UnreadableError.
    """
    try:
        with Image.open(path) as image:
            if image.format in _PROGRAMS:
                raise UnreadableError(
                    path, f"is a drawing program ({image.format}), which is not run"
                )
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                raise UnreadableError(
                    path, f"has levels of mode {image.mode}, whose range is not known"
                )
            image.load()
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise UnreadableError(path, f"has too many pixels to decode safely ({error})") from None
    except UnidentifiedImageError:
        raise UnreadableError(path, "is not an image that Pillow can read") from None
    except MemoryError:
        raise UnreadableError(path, "needs more memory than there is") from None
    except UnreadableError:
        raise
    except Exception as error:  # Pillow's decoders have no common class for damage
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableError(path, f"cannot be read ({error.strerror})") from None
        raise UnreadableError(path, f"is damaged or cut short ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # an invalid orientation is ignored
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def training_images(
    files: Files,
    size: int,
    crop_area: float = 0.08,
    augment: Transforms = (),
    normalisation: Normalisation = IMAGENET,
) -> Images:
    """Random crops, flipped at random; float [3, size, size].

    A crop covers at least the part `crop_area` of an image and is resized to `size`. `augment` is
    applied to the flipped crop, an RGB image.
    """
    crop = transforms.RandomResizedCrop(size, scale=(crop_area, 1.0))
    steps = [crop, transforms.RandomHorizontalFlip(), *augment, *normalisation.to_input()]
    return Images(files, transforms.Compose(steps))


def evaluation_images(
    files: Files, size: int = 224, resize: int = 224, normalisation: Normalisation = IMAGENET
) -> Images:
    """Images with the short side resized to `resize`, centre-cropped; float [3, size, size].

    With the defaults, images of 224x224 stay as they are.
    """
    crop = [transforms.Resize(resize), transforms.CenterCrop(size)]
    return Images(files, transforms.Compose(crop + normalisation.to_input()))


def as_they_are(files: Files, normalisation: Normalisation = IMAGENET) -> Images:
    """Images with their own pixels, centre-cropped to multiples of 8; float [3, H, W].

    Images of different sizes cannot share a batch.
    """
    crop = transforms.Lambda(_crop_to_eights)
    return Images(files, transforms.Compose([crop, *normalisation.to_input()]))


def _crop_to_eights(image: Image.Image) -> Image.Image:
    width, height = image.size[0] // 8 * 8, image.size[1] // 8 * 8
    if not width or not height:
        raise DataError(f"has {image.size[0]}x{image.size[1]} pixels, and 8 a side are needed")
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def blended(image: Tensor, share: float) -> Tensor:
    """`share` of a batch [N, 3, H, W], each blended with another of it, at most half and half."""
    count = len(image)
    blend = torch.rand(count, 1, 1, 1, device=image.device) / 2
    blend *= torch.rand(count, 1, 1, 1, device=image.device) < share
    return image.lerp(image[torch.randperm(count, device=image.device)], blend)


def split_held_out(data: Dataset, held_out: int, keep_held_out: bool) -> Subset:
    """Hold out `held_out` images, spread evenly: those, or with keep_held_out=False the rest.

    Raises DataError if no image is left to train on.
    """
    total = len(data)  # type: ignore[arg-type]
    refuse_held_out(held_out, total)
    chosen = {i * total // held_out for i in range(held_out)} if held_out else set()
    return Subset(data, [i for i in range(total) if (i in chosen) == keep_held_out])


def refuse_held_out(held_out: int, total: int) -> None:
    """Raise DataError if holding out `held_out` of `total` images leaves none to train on."""
    if held_out >= total:
        raise DataError(
            f"cannot hold out {held_out} of {total} images: give --held_out a number under {total}"
        )


class Damaged(NamedTuple):
    """An image that cannot be read, as a loading process reports it."""

    path: str
    why: str


class SeededImages(Dataset):
    """`images`, each augmented with random numbers of its own.

    The next readable image replaces a damaged one, so that batches stay whole. An item is the image
    (None after 100 damaged ones in a row), its class, and the damaged images before it.
    """

    def __init__(self, images: Dataset, seed: int):
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, list[Damaged]]:
        damaged: list[Damaged] = []
        for step in range(min(_TRIES, len(self))):
            at = (index + step) % len(self)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((self.seed * 10_000_019 + at) % 2**63)
                try:
                    return *self.images[at], damaged
                except UnreadableError as error:
                    damaged.append(Damaged(error.path, error.why))
        return None, 0, damaged


class ReadableImages(Dataset):
    """`images` for measuring: a damaged one is None."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, list[Damaged]]:
        try:
            return *self.images[index], []
        except UnreadableError as error:
            return None, 0, [Damaged(error.path, error.why)]


class Batched:
    """Batches (images float [N, 3, H, W], classes int64 [N]), loaded with DataLoader's `options`.

    Damaged images are noted in `damage`. Iterating raises DamagedImageError, DataError.
    """

    def __init__(self, images: SeededImages | ReadableImages, damage: Damage, **options: Any):
        self.loader: DataLoader = DataLoader(images, collate_fn=_collate, **options)
        self.damage, self.whole = damage, isinstance(images, SeededImages)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, missing, damaged in self.loader:
            heed_signals()
            for one in damaged:
                self.damage.note(*one)
            if missing and self.whole:
                raise DataError(
                    f"{len(damaged)} images in a row cannot be read, the last {damaged[-1].path}: "
                    "mend or remove them"
                )
            if images is not None:
                yield images, labels


def _collate(
    items: Sequence[tuple[Tensor | None, int, list[Damaged]]],
) -> tuple[Tensor | None, Tensor, int, list[Damaged]]:
    """Images, their classes, how many images are missing, and the damaged ones."""
    images = [image for image, _, _ in items if image is not None]
    labels = torch.tensor([label for image, label, _ in items if image is not None])
    damaged = [one for _, _, found in items for one in found]
    return torch.stack(images) if images else None, labels, len(items) - len(images), damaged


class Batches:
    """Indexes of one process's batches in an epoch.

    All processes together fill batches of `batch_size * processes`, each with its share; an
    incomplete last batch is dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1):
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        self.batch_size, self.rank, self.processes = batch_size, rank, processes

    def __len__(self) -> int:
        return len(self.order) // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            begin = (batch * self.processes + self.rank) * self.batch_size
            yield self.order[begin : begin + self.batch_size]
