"""The teacher and the loss, as in the paper.

loss = 0.5 CE(logits, labels) + 0.5 KL(teacher || student)
       + sum of MSE(student, teacher) over the outputs of (bottleneck, layer2, layer3, layer4)
       + lmb * estimated bpp

Always holds: the teacher is in eval mode and has no gradient, whatever mode the student is in.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss
from torchvision.models import resnet50

from .checkpoint import classes_of, load_state
from .labels import stored_labels
from .models import FeatureCompressionModel, Outputs, classify_features
from .weights import read_state_dict


class Teacher(nn.Module):
    """A whole torchvision ResNet-50 whose layer1..layer4 and logits the student learns to give."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.backbone = resnet50(weights=None, num_classes=num_classes).requires_grad_(False)
        self.labels: list[str] | None = None  # of its classes, where they are known
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Outputs:
        """Normalised image float [N, 3, H, W] -> features after layer1..4, logits; bits are 0."""
        net = self.backbone
        first = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(image)))))
        stages, logits = classify_features(net, first)
        return Outputs([first, *stages], logits, torch.zeros(()))


def load_teacher(path: str | os.PathLike[str]) -> Teacher:
    """A teacher from a ResNet-50 checkpoint with torchvision's keys; classes read from `fc.weight`.

    Raises FileNotFoundError, UnreadableCheckpointError, CheckpointKeysError.
    """
    state, metadata = read_state_dict(path)
    teacher = Teacher(classes_of(state, str(path)))
    load_state(teacher.backbone, state, str(path))
    teacher.labels = stored_labels(metadata, teacher.backbone.fc.out_features)
    return teacher


def load_imagenet_teacher(option: str = "--backbone") -> Teacher:
    """torchvision's ResNet-50 of ImageNet (IMAGENET1K_V1, the paper's); fetched once by torchvision.

    `option` names a file of one's own instead, for the message. Raises OSError, CheckpointErrors.
    """
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V1
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                weights.url, str(kept), hash_prefix=kept.stem.rpartition("-")[2]
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash is another one
        raise OSError(
            f"torchvision's ResNet-50 of ImageNet cannot be fetched ({error}): name a file with {option}"
        ) from error
    return load_teacher(kept)


def start_from_teacher(model: FeatureCompressionModel, teacher: Teacher) -> None:
    """Give the model's tail the teacher's weights."""
    for name in ("layer2", "layer3", "layer4", "fc"):
        getattr(model, name).load_state_dict(getattr(teacher.backbone, name).state_dict())


class LossTerms(NamedTuple):
    """The loss and its parts, scalars: `bpp` is estimated bits per input pixel, before lmb."""

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    features: Tensor
    bpp: Tensor


def distillation_loss(
    student: Outputs, teacher: Outputs, labels: Tensor, pixels: int, lmb: float
) -> LossTerms:
    """The loss above for a batch; labels int64 [N], pixels = N * H * W of the input."""
    logits = student.logits.float()
    ce = cross_entropy(logits, labels)
    kl = kl_div(
        log_softmax(logits, 1),
        log_softmax(teacher.logits.float(), 1),
        reduction="batchmean",
        log_target=True,
    )
    features = torch.stack(
        [
            mse_loss(ours.float(), theirs.float())
            for ours, theirs in zip(student.features, teacher.features, strict=True)
        ]
    ).sum()
    bpp = student.bits / pixels
    return LossTerms(0.5 * ce + 0.5 * kl + features + lmb * bpp, ce, kl, features, bpp)
