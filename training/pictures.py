"""Folders of pictures without labels, split into training and held-out pictures.

Always holds: what is held out is never trained on; each folder gives the same number of crops.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from .data import COLOUR, Normalisation, evaluation_images, training_images
from .state import summarise_files


@dataclass(frozen=True)
class Pictures:
    """Folders of pictures, each with the pictures in it and below."""

    roots: list[Path]
    files: list[list[Path]]
    held_out: int

    def summary(self) -> str:
        """The pictures as the identity of a run records them."""
        return "; ".join(
            summarise_files(root, files, 0)
            for root, files in zip(self.roots, self.files, strict=True)
        )

    def split(self, files: list[Path]) -> tuple[list[Path], list[Path]]:
        """Pictures to train on, and those held out: a tenth of a folder at most, evenly spread."""
        count = min(self.held_out, len(files) // 10)
        chosen = {index * len(files) // count for index in range(count)}
        kept = [file for index, file in enumerate(files) if index not in chosen]
        return kept, [files[index] for index in sorted(chosen)]

    def training(self, size: int, crop_area: float, normalisation: Normalisation) -> Dataset:
        """Augmented crops, as many of each folder; float [3, size, size], each with the label 0."""
        folders = [self.split(files)[0] for files in self.files]
        share = sum(map(len, folders)) // len(folders)
        mixed = [(files[index % len(files)], 0) for index in range(share) for files in folders]
        return training_images(mixed, size, crop_area, COLOUR, normalisation)

    def evaluation(
        self, args: argparse.Namespace, normalisation: Normalisation
    ) -> dict[str, Dataset]:
        """The held-out pictures of each folder that has any, by the folder's name."""
        resize = round(args.val_size / args.val_crop_r)
        found: dict[str, Dataset] = {}
        for root, files in zip(self.roots, self.files, strict=True):
            held_out = [(file, 0) for file in self.split(files)[1]]
            if held_out:
                name = root.resolve().name
                name = f"{name}_{len(found)}" if name in found else name
                found[name] = evaluation_images(held_out, args.val_size, resize, normalisation)
        return found
