"""The losses: the paper's, and that of a bottleneck in front of any backbone.

The paper's, for images with labels:

loss = 0.5 CE(logits, labels) + 0.5 KL(teacher || student)
       + sum of MSE(student, teacher) over the outputs of (bottleneck, layer2, layer3, layer4)
       + lmb * estimated bpp

The other needs no labels, and makes errors of all layers comparable:

loss = normalised MSE at the cut + w (mean of normalised MSEs behind it + KL(teacher || student))
       + lmb * estimated bpp

The bits of a variable-rate model are weighed image by image, each with the lmb of its rate level.
An MSE is normalised by the variance of what the teacher gives. `w` begins at 0: with logits from
the start a bottleneck in front of a narrow network does not begin to learn.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from .bottleneck import random_levels
from .models import Outputs
from .rates import Lmb, LmbRange


class LossTerms(NamedTuple):
    """The loss and its parts, scalars: `bpp` is estimated bits per input pixel, before lmb."""

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    features: Tensor
    bpp: Tensor


def distillation_loss(
    student: Outputs, teacher: Outputs, labels: Tensor, pixels: int, lmb: float | Tensor
) -> LossTerms:
    """The loss above for a batch.

    Args:
        labels: int64 [N].
        pixels: N * H * W of the input.
        lmb: float [N] if there are bits of each image.
    """
    logits = student.logits.float()
    ce = cross_entropy(logits, labels)
    kl = divergence(logits, teacher.logits.float())
    features = torch.stack(
        [
            mse_loss(ours.float(), theirs.float())
            for ours, theirs in zip(student.features, teacher.features, strict=True)
        ]
    ).sum()
    bpp, rate = _rate(student.bits, pixels, lmb)
    return LossTerms(0.5 * ce + 0.5 * kl + features + rate, ce, kl, features, bpp)


def _rate(bits: Tensor, pixels: int, lmb: float | Tensor) -> tuple[Tensor, Tensor]:
    """Estimated bpp of a batch, and the same weighed, scalars.

    `bits` are the batch's, or with float [N] each image's, with its own lmb.
    """
    bpp = bits / pixels
    return bpp.sum(), (lmb * bpp).sum()


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1) -> Tensor:
    """KL(teacher || student) of logits float32 [N, classes], mean over the batch.

    Both are divided by `temperature`, and the result is multiplied by its square, so that gradients
    keep their size (Hinton et al. 2015, arXiv 1503.02531).
    """
    ours, theirs = (log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def draw_levels(lmb: Lmb, images: Tensor) -> tuple[Tensor | None, Tensor | float]:
    """Random rate levels for a batch of images, and the rate weight of each, both float [N].

    A fixed rate has no levels, and its weight is that of all.
    """
    if isinstance(lmb, LmbRange):
        levels = random_levels(len(images), images.device)
        return levels, lmb.at(levels)
    return None, lmb


class FeatureTerms(NamedTuple):
    """The second loss and its parts, scalars; `later` and `distillation` are 0 where w is."""

    loss: Tensor
    features: Tensor
    later: Tensor
    distillation: Tensor
    bpp: Tensor


def feature_loss(
    student: Outputs,
    teacher: Outputs,
    deviation: Tensor,
    pixels: int,
    lmb: float | Tensor,
    weight: float,
) -> FeatureTerms:
    """The second loss for a batch.

    Args:
        deviation: float [C], of the teacher's features at the cut, channel by channel.
        pixels: N * H * W of the input.
        lmb: float [N] if there are bits of each image.
        weight: w, from 0; at 0 the outputs may be without later stages and logits.
    """
    difference = student.features[0].float() - teacher.features[0].float()
    features = (difference / deviation[:, None, None]).square().mean()
    bpp, rate = _rate(student.bits, pixels, lmb)
    later = kl = torch.zeros_like(features)
    if weight:
        errors = [
            mse_loss(ours.float(), theirs.float()) / theirs.float().var()
            for ours, theirs in zip(student.features[1:], teacher.features[1:], strict=True)
        ]
        later = torch.stack(errors).mean() if errors else later
        kl = divergence(student.logits.float(), teacher.logits.float())
    loss = features + weight * (later + kl) + rate
    return FeatureTerms(loss, features, later, kl, bpp)
