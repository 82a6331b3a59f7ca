"""A ResNet-50 whose tail serves bottlenecks as well as its own start.

A bottleneck replaces the start, conv1 to layer1, and gives nearly what layer1 gives. So one tail
can classify both, and one file of weights can stand behind many models. In training, part of each
batch goes through a bottleneck as a device and a server run it: encoded, rounded and decoded.

Always holds: neither the start nor the bottlenecks change, so bottlenecks that were trained for
this start fit the trained network too.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck as Block

from .backbones import RESNET50
from .bottleneck import Bottleneck, random_levels
from .checkpoint import load_model
from .command import TrainingError
from .weights import read_metadata


class FrozenStart(ResNet):
    """A ResNet-50 whose start, conv1 to layer1, has no gradient and stays in eval mode.

    Attributes:
        behind: bottlenecks in front of which the tail works too, no part of the state_dict. In
            training, a random one of them decodes the features of `share` of a batch.
    """

    def __init__(self, classes: int):
        super().__init__(Block, [3, 4, 6, 3], num_classes=classes)
        self.behind: list[Bottleneck] = []
        self.share = 0.0
        for part in self._start():
            part.requires_grad_(False)

    def _start(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.relu, self.maxpool, self.layer1]

    def train(self, mode: bool = True) -> "FrozenStart":
        """Set the mode of all that is not frozen."""
        super().train(mode)
        for part in self._start():
            part.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image float [N, 3, H, W] -> logits [N, classes]."""
        if not (self.training and self.behind):
            return cast(Tensor, super().forward(image))
        count = round(len(image) * self.share)
        bottleneck = self.behind[int(torch.randint(len(self.behind), ()))]
        level = random_levels(count, image.device)
        with torch.no_grad():
            decoded = bottleneck.decode(bottleneck.symbols(image[:count], level), level)
            rest = nn.Sequential(*self._start())(image[count:])
        return self.classify(torch.cat([decoded, rest]))

    def classify(self, features: Tensor) -> Tensor:
        """The tail: layer1's features [N, 256, H/4, W/4] -> logits [N, classes]."""
        last = self.layer4(self.layer3(self.layer2(features)))
        return cast(Tensor, self.fc(self.avgpool(last).flatten(1)))

    def through(self, bottleneck: Bottleneck) -> Callable[[Tensor], Tensor]:
        """Image -> logits behind a bottleneck, at the middle one of its rate levels."""
        return lambda image: self.classify(bottleneck.decode(bottleneck.symbols(image)))


def read_bottlenecks(files: Iterable[Path], device: torch.device) -> list[Bottleneck]:
    """The bottlenecks of checkpoints that say their model, on `device`, without gradients.

    Raises TrainingError if one says no model or has another backbone, FileNotFoundError,
    CheckpointErrors.
    """
    found = []
    for file in files:
        name = read_metadata(file).get("model")
        if name is None:
            raise TrainingError(
                f"{file} does not say which model it is of, as published files do not: "
                "name checkpoints that training.train wrote"
            )
        model, _ = load_model(file, name)
        if model.spec.backbone != RESNET50:
            raise TrainingError(
                f"{file} has another backbone than ResNet-50 cut at layer1: "
                "name checkpoints of the paper's models"
            )
        bottleneck = model.bottleneck_layer.requires_grad_(False).to(device)
        found.append(bottleneck.to(memory_format=torch.channels_last))
    return found
