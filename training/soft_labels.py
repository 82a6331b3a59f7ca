"""Soft labels: what a whole classifier gives for the training images, among a run's own classes.

The teacher may know more classes than the run has, as ImageNet's classifiers do. Its classes are
found by their labels (labels.py), and its logits for all others are left out. The student learns
the teacher's probabilities for the very crop that it sees itself, blended crops included: with many
crops and enough epochs it comes close to the teacher (Beyer et al. 2022, arXiv 2106.05237).

Always holds: each class of the run is one of the teacher's, and no two are the same one.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .command import TrainingError, say
from .data import IMAGENET
from .labelled import Data
from .labels import match
from .teachers import Teacher, load_teacher, pretrained, uncut

_LIBRARIES = ("torchvision", "timm")


class TeacherSizeError(TrainingError):
    """A teacher that does not take images of the run's sizes."""


@dataclass(frozen=True)
class SoftLabels:
    """A teacher, and which of its classes the run's are.

    Attributes:
        teacher: in eval mode.
        classes: the teacher's class for each class of the run, in the run's order.
        side: images are resized to so many pixels a side for the teacher; None leaves them.
    """

    teacher: Teacher
    classes: list[int]
    side: int | None

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """Images float [N, 3, H, W], normalised for ImageNet -> logits [N, classes]."""
        if self.side and image.shape[2:] != (self.side, self.side):
            image = interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        theirs = self.teacher.normalisation
        if theirs != IMAGENET:
            (mean, std), (own, wide) = (one.tensors() for one in (theirs, IMAGENET))
            scale, shift = wide / std, (own - mean) / std
            image = image * scale.to(image.device) + shift.to(image.device)
        found: Tensor = self.teacher.backbone(image)
        return found[:, self.classes]

    def check_sizes(self, sides: Iterable[int]) -> None:
        """Refuse a teacher that does not take images of `sides`. Raises TeacherSizeError."""
        for side in sorted(set(sides)):
            try:
                self.logits(torch.zeros(1, 3, side, side))
            except Exception as error:  # whatever the network's own code raises on a size
                raise TeacherSizeError(
                    f"the teacher does not take images of {self.side or side} pixels a side "
                    f"({str(error).splitlines()[0][:120]}): give its own size with --teacher_size"
                ) from error


def read_soft_labels(
    name: str, weights: Path | None, side: int | None, data: Data, report: bool = True
) -> SoftLabels:
    """The teacher `name` for the classes of `data`.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, or the file of a ResNet-50.
        weights: of a network of a library, None for those that the library or a package has.
        side: as SoftLabels has it.
        report: print how the classes were matched if not by name.

    Raises TrainingError, BackboneNameError, CutError, NoWeightsError, CheckpointError,
    ClassesError, OSError.
    """
    if name.partition(":")[0] in _LIBRARIES:
        network = uncut(name)
        teacher = load_teacher(weights, network) if weights else pretrained(network)
    elif weights:
        raise TrainingError(
            f"--weights are those of a network of a library, and --teacher {name} is a file: "
            "leave out --weights, or write torchvision:NAME or timm:NAME"
        )
    else:
        teacher = load_teacher(name)
    found, note = match(
        data.labels, teacher.labels or teacher.classes, str(data.root), f"the teacher {name}"
    )
    if note and report:
        say(note, sys.stderr)
    return SoftLabels(teacher, found, side)
