"""The teacher and the loss, as in the paper.

loss = 0.5 CE(logits, labels) + 0.5 KL(teacher || student)
       + sum of MSE(student, teacher) over the outputs of (bottleneck, layer2, layer3, layer4)
       + lmb * estimated bpp

Always holds: the teacher is in eval mode and has no gradient, whatever mode the student is in.
"""

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss
from torchvision.models import resnet50

from .checkpoint import load_state, read_state_dict
from .labels import stored_labels
from .models import FeatureCompressionModel, Outputs, classify_features


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
    classifier = state.get("fc.weight")
    teacher = Teacher(classifier.shape[0] if classifier is not None and classifier.ndim == 2 else 1000)
    load_state(teacher.backbone, state, str(path))
    teacher.labels = stored_labels(metadata, teacher.backbone.fc.out_features)
    return teacher


def load_imagenet_teacher(option: str) -> Teacher:
    """torchvision's ResNet-50 of ImageNet (IMAGENET1K_V1, the paper's); fetched once by torchvision.

    Raises OSError, which names the `option` that takes a file in its place.
    """
    from torchvision.models import ResNet50_Weights

    try:
        state = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=True)
    except OSError as error:
        raise OSError(f"torchvision cannot fetch ImageNet's ResNet-50 ({error}): name a file with {option}") from error
    teacher = Teacher(1000)
    load_state(teacher.backbone, dict(state), "torchvision's ResNet-50")
    teacher.labels = stored_labels({}, 1000)
    return teacher


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


def distillation_loss(student: Outputs, teacher: Outputs, labels: Tensor, pixels: int, lmb: float) -> LossTerms:
    """The loss above for a batch; labels int64 [N], pixels = N * H * W of the input."""
    logits = student.logits.float()
    ce = cross_entropy(logits, labels)
    kl = kl_div(log_softmax(logits, 1), log_softmax(teacher.logits.float(), 1), reduction="batchmean", log_target=True)
    features = torch.stack(
        [mse_loss(ours.float(), theirs.float()) for ours, theirs in zip(student.features, teacher.features, strict=True)]
    ).sum()
    bpp = student.bits / pixels
    return LossTerms(0.5 * ce + 0.5 * kl + features + lmb * bpp, ce, kl, features, bpp)
