"""Images for training: an ImageFolder, decoded and augmented by torchvision.

Always holds: what is held out for choosing (schedule, epoch) is the same for every run on the
same folder, and is never trained on.
"""

import os

from torch.utils.data import Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def training_images(root: str | os.PathLike[str], size: int) -> ImageFolder:
    """Random resized crops of `size` pixels a side, flipped by chance; float [3, size, size]."""
    augment = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    return ImageFolder(root, transforms.Compose(augment + _to_input))


def evaluation_images(root: str | os.PathLike[str], size: int = 224, resize: int = 224) -> ImageFolder:
    """Short side to `resize`, centre crop `size`; 224 and 224 leave images of 224x224 as they are."""
    crop = [transforms.Resize(resize), transforms.CenterCrop(size)]
    return ImageFolder(root, transforms.Compose(crop + _to_input))


def split_held_out(data: Dataset, held_out: int, keep_held_out: bool) -> Subset:
    """Every (len/held_out)-th image is held out; the rest is trained on. 0 holds out nothing."""
    total = len(data)  # type: ignore[arg-type]
    if not 0 <= held_out < total:
        raise ValueError(f"cannot hold out {held_out} of {total} images")
    chosen = {i * total // held_out for i in range(held_out)} if held_out else set()
    return Subset(data, [i for i in range(total) if (i in chosen) == keep_held_out])
