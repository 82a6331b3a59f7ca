"""The bottlenecks' encoders and decoders.

An architecture says what the runtime must know of its latent, and builds the encoder, and the
decoder for a backbone. The paper's decoder gives the features of a ResNet-50; that for any other
backbone works at the resolution of the features, which is cheaper.

Architecture after Duan and Zhu, "Efficient Feature Compression for Edge-Cloud Systems" (PCS 2022,
arXiv 2211.09897); `Matsubara` after Matsubara et al., "Supervised Compression for
Resource-Constrained Edge Computing Systems" (WACV 2022, arXiv 2108.11898).

Always holds: module names are those of the published checkpoints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from compressai.layers import GDN1
from torch import Tensor, nn

from .backbones import RESNET50, Backbone


class ResidualBlock(nn.Module):
    """x + conv_2(gelu(conv_1(gelu(x)))), 3x3 convolutions, shape kept."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """float [N, channels, H, W] -> the same shape."""
        return x + self.conv_2(nn.functional.gelu(self.conv_1(nn.functional.gelu(x))))


class FeatureScale(nn.Module):
    """x * scale + shift, channel by channel: the deviation and mean of the teacher's features.

    The layers before it work with values of about one, however wide the features are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """float [N, channels, H, W] -> the same shape."""
        return x * self.scale[:, None, None] + self.shift[:, None, None]


def _paper_decoder(latent_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(latent_channels, 256, 5, stride=2, padding=2, output_padding=1),
        nn.GELU(),
        nn.Conv2d(256, 512, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(512, 256, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(256, 256, 1),
    )


# Channels of the decoder, by how many pixels of the image a row of features stands for.
_WIDTHS = {4: 96, 8: 160, 16: 256}


def _residual_decoder(latent_channels: int, stride: int, backbone: Backbone) -> nn.Sequential:
    """Three residual blocks at the resolution of the features, then FeatureScale."""
    width = _WIDTHS[backbone.stride]
    if backbone.stride < stride:
        upsampling = nn.ConvTranspose2d(
            latent_channels, width, 5, stride=2, padding=2, output_padding=1
        )
        first: list[nn.Module] = [upsampling, nn.GELU(), nn.Conv2d(width, width, 1)]
    elif backbone.stride > stride:
        first = [nn.Conv2d(latent_channels, width, 5, stride=2, padding=2)]
    else:
        first = [nn.Conv2d(latent_channels, width, 1)]
    blocks = [ResidualBlock(width, width // 2) for _ in range(3)]
    last = [nn.GELU(), nn.Conv2d(width, backbone.channels, 1), FeatureScale(backbone.channels)]
    return nn.Sequential(*first, *blocks, *last)


class Architecture(Protocol):
    """An encoder and the decoder that goes with it, and what the runtime must know of the latent.

    Attributes:
        latent_channels: channels of the latent, each with a table of its own.
        stride: input pixels per latent row and column.
        latent_shrink: rows and columns lost at the border: latent side = side / stride - shrink.
    """

    @property
    def latent_channels(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def latent_shrink(self) -> int: ...

    def encoder(self) -> nn.Sequential:
        """Normalised image float [N, 3, H, W] -> latent [N, latent_channels, H', W']."""

    def decoder(self, backbone: Backbone) -> nn.Sequential:
        """Latent -> features [N, C, H/S, W/S], C and S the backbone's channels and stride."""

    def fitted(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Another checkpoint's tensors as a model with the tensors `own` can start from them."""


@dataclass(frozen=True)
class Ours:
    """The paper's own encoder: patches of 8x8 pixels, then `blocks` residual blocks."""

    blocks: int
    latent_channels: int = 64
    stride: int = 8
    latent_shrink: int = 0

    def encoder(self) -> nn.Sequential:
        """Patches of 8x8 to 128 channels, the blocks, and 1x1 to the latent."""
        middle: list[nn.Module] = [ResidualBlock(128, 64) for _ in range(self.blocks)]
        middle = middle or [nn.GELU()]
        patches, last = nn.Conv2d(3, 128, 8, stride=8), nn.Conv2d(128, self.latent_channels, 1)
        return nn.Sequential(patches, *middle, last)

    def decoder(self, backbone: Backbone) -> nn.Sequential:
        """The paper's for its ResNet-50, residual blocks for any other backbone."""
        if backbone == RESNET50:
            return _paper_decoder(self.latent_channels)
        return _residual_decoder(self.latent_channels, self.stride, backbone)

    def fitted(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Blocks that this model lacks are left out, and further ones start as identities."""
        last, their_last = (
            max((int(match[1]) for key in keys if (match := _LAYER.match(key))), default=0)
            for keys in (own, state)
        )
        fitted = {}
        for key, value in state.items():
            match = _LAYER.match(key)
            if match and match[2] and key not in own:
                continue
            if match and int(match[1]) == their_last:
                key = _LAYER.sub(f"bottleneck_layer.encoder.{last}.", key)
            fitted[key] = value
        for key, value in own.items():
            if (match := _LAYER.match(key)) and match[2] and key not in fitted:
                fitted[key] = torch.zeros_like(value) if match[2] == "conv_2" else value
        return fitted


_LAYER = re.compile(r"bottleneck_layer\.encoder\.(\d+)\.(conv_\d)?")


@dataclass(frozen=True)
class Matsubara:
    """The encoder and decoder of Matsubara et al. 2022, for the paper's ResNet-50 alone."""

    latent_channels: int = 24
    stride: int = 4
    latent_shrink: int = 1

    def encoder(self) -> nn.Sequential:
        """Three convolutions, two of stride 2, with GDN between them."""
        return nn.Sequential(
            nn.Conv2d(3, 96, 5, stride=2, padding=2, bias=False),
            GDN1(96),
            nn.Conv2d(96, 48, 5, stride=2, padding=2, bias=False),
            GDN1(48),
            nn.Conv2d(48, self.latent_channels, 2, bias=False),
        )

    def decoder(self, backbone: Backbone) -> nn.Sequential:
        """Three convolutions with inverse GDN between them."""
        return nn.Sequential(
            nn.Conv2d(self.latent_channels, 512, 2, padding=1, bias=False),
            GDN1(512, inverse=True),
            nn.Conv2d(512, 256, 2, bias=False),
            GDN1(256, inverse=True),
            nn.Conv2d(256, backbone.channels, 2, padding=1, bias=False),
        )

    def fitted(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is one depth: the state as it is."""
        return dict(state)


ENCODERS: dict[str, Architecture] = {
    "n0": Ours(0),
    "n4": Ours(4),
    "n8": Ours(8),
    "matsubara": Matsubara(),
}
