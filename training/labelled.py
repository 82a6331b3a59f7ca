"""The labelled images of a run: read and checked, split into training and held-out images.

Always holds: classes are in the model's order, whatever order the folders are in; what is held out
is never trained on.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .command import TrainingError, say
from .data import (
    IMAGENET,
    Batched,
    Normalisation,
    ReadableImages,
    Transforms,
    evaluation_images,
    refuse_held_out,
    split_held_out,
    training_images,
)
from .folders import Damage, DataError, class_folder
from .labels import match, read_labels
from .state import summarise_files


@dataclass(frozen=True)
class Data:
    """The images of a run, each with its class, and the classes' labels."""

    root: Path
    files: list[tuple[Path, int]]
    labels: list[str]
    named: bool  # whether --labels gave the labels

    def for_model(
        self, labels: list[str] | None, classes: int, of: str, report: bool = True
    ) -> "Data":
        """The same images with classes in the order that the model `of` has them.

        `labels` are the model's, None where they are not known; `report` prints how folders were
        matched if not by name. Raises TrainingError, ClassesError.
        """
        if len(self.labels) != classes:
            raise TrainingError(
                f"{self.root} has {len(self.labels)} classes and {of} has {classes}"
            )
        order, note = match(self.labels, labels or classes, str(self.root), of)
        if note and labels and report:
            say(note, sys.stderr)
        ours: list[str] = [self.labels[order.index(index)] for index in range(classes)]
        kept = ours if note or self.named or not labels else labels
        return Data(
            self.root, [(path, order[index]) for path, index in self.files], kept, self.named
        )

    def summary(self) -> str:
        """The images as the identity of a run records them."""
        return summarise_files(self.root, [path for path, _ in self.files], len(self.labels))

    def training(
        self,
        args: argparse.Namespace,
        size: int,
        augment: Transforms = (),
        normalisation: Normalisation = IMAGENET,
    ) -> Subset:
        """Augmented training images, float [3, size, size], without those held out."""
        images = training_images(self.files, size, args.crop_area, augment, normalisation)
        return split_held_out(images, args.held_out, keep_held_out=False)

    def held_out(self, args: argparse.Namespace, normalisation: Normalisation = IMAGENET) -> Subset:
        """The held-out images, float [3, val_size, val_size]."""
        resize = round(args.val_size / args.val_crop_r)
        images = evaluation_images(self.files, args.val_size, resize, normalisation)
        return split_held_out(images, args.held_out, keep_held_out=True)


def read_data(args: argparse.Namespace) -> Data:
    """The images in --data and their labels, checked before anything else is done.

    Raises TrainingError, DataError, LabelsError.
    """
    folder = class_folder(args.data)
    classes = len(folder.names)
    if classes < 2:
        raise TrainingError(
            f"{args.data} has one folder, {folder.names[0]}: "
            "training needs two classes or more, one folder for each"
        )
    labels = read_labels(args.labels, classes, str(args.data)) if args.labels else folder.names
    refuse_held_out(args.held_out, len(folder.files))
    return Data(args.data, folder.files, labels, bool(args.labels))


def top1(
    images: Dataset,
    logits: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
    amp: bool,
    damage: Damage | None = None,
) -> float:
    """Share of images whose class has the largest of `logits(image)`.

    `logits` takes float [N, 3, H, W] on `device` and gives [N, classes]; with `amp` it runs under
    bfloat16 autocast. Raises DamagedImageError, DataError.
    """
    right = count = 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for image, label in Batched(
            ReadableImages(images), damage or Damage(False), batch_size=batch_size
        ):
            found = logits(image.to(device, memory_format=torch.channels_last)).cpu()
            # argmax takes NaN for the largest: logits with a NaN count as wrong.
            right += int(((found.argmax(1) == label) & found.isfinite().all(1)).sum())
            count += len(label)
    if not count:
        raise DataError("none of the held-out images can be read: mend or remove them")
    return right / count
