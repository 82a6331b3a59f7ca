"""Images for training: an ImageFolder, decoded and augmented by torchvision.

Always holds: what is held out for choosing (schedule, epoch) is the same for every run on the
same folder, and is never trained on. An image's crop depends on the seed, the epoch and the image
alone, and a batch's images on the seed and the epoch, however many processes share the work.
"""

import os
from collections.abc import Iterator

import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def training_images(root: str | os.PathLike[str], size: int, crop_area: float = 0.08) -> ImageFolder:
    """Random crops of `crop_area` of an image or more, resized to `size` pixels a side, flipped by chance; float [3, size, size]."""
    augment = [transforms.RandomResizedCrop(size, scale=(crop_area, 1.0)), transforms.RandomHorizontalFlip()]
    return ImageFolder(root, transforms.Compose(augment + _to_input))


def evaluation_images(root: str | os.PathLike[str], size: int = 224, resize: int = 224) -> ImageFolder:
    """Short side to `resize`, centre crop `size`; 224 and 224 leave images of 224x224 as they are."""
    crop = [transforms.Resize(resize), transforms.CenterCrop(size)]
    return ImageFolder(root, transforms.Compose(crop + _to_input))


def as_they_are(root: str | os.PathLike[str]) -> ImageFolder:
    """Images with their own pixels, cropped from the middle to multiples of 8 a side; of one size, or taken one by one."""
    return ImageFolder(root, transforms.Compose([transforms.Lambda(_crop_to_eights), *_to_input]))


def _crop_to_eights(image: Image.Image) -> Image.Image:
    width, height = image.size[0] // 8 * 8, image.size[1] // 8 * 8
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def split_held_out(data: Dataset, held_out: int, keep_held_out: bool) -> Subset:
    """Every (len/held_out)-th image is held out; the rest is trained on. 0 holds out nothing."""
    total = len(data)  # type: ignore[arg-type]
    if not 0 <= held_out < total:
        raise ValueError(f"cannot hold out {held_out} of {total} images")
    chosen = {i * total // held_out for i in range(held_out)} if held_out else set()
    return Subset(data, [i for i in range(total) if (i in chosen) == keep_held_out])


class SeededImages(Dataset):
    """`images`, each augmented by random numbers of its own."""

    def __init__(self, images: Dataset, seed: int):
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 10_000_019 + index)
            return self.images[index]


class Batches:
    """Indexes of one process's batches of an epoch: its share of batches that all processes fill together.

    An incomplete last batch is left out.
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
