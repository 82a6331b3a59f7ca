"""The seven models, described once as data.

A model is a bottleneck (encoder, factorized entropy model, decoder) in front of the tail of a
torchvision ResNet-50 (layer2, layer3, layer4, average pool, fc). The bottleneck replaces the
stem and layer1: its decoder gives what layer1 gives, 256 channels at a quarter of the resolution.

Architecture after Duan and Zhu, "Efficient Feature Compression for Edge-Cloud Systems" (PCS 2022,
arXiv 2211.09897); `matsubara2022wacv` after Matsubara et al., "Supervised Compression for
Resource-Constrained Edge Computing Systems" (WACV 2022, arXiv 2108.11898).

Always holds: module names are those of the published checkpoints, so a state_dict of theirs fits
a model of ours key by key.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.layers import GDN1
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50


@dataclass(frozen=True)
class ModelSpec:
    """What distinguishes one model from another.

    Attributes:
        blocks: residual blocks in the encoder of an `ours_*` model; None for the Matsubara model.
        frozen_tail: in training the tail always keeps the teacher's weights and stays in eval mode.
        latent_channels: channels of the latent, each with a table of its own.
        stride: input pixels per latent row and column.
        latent_shrink: rows and columns lost at the border: latent side = side / stride - shrink.
    """

    blocks: int | None
    frozen_tail: bool = False
    latent_channels: int = 64
    stride: int = 8
    latent_shrink: int = 0


MODELS: dict[str, ModelSpec] = {
    "ours_n0": ModelSpec(blocks=0),
    "ours_n4": ModelSpec(blocks=4),
    "ours_n8": ModelSpec(blocks=8),
    "ours_n0_enc": ModelSpec(blocks=0, frozen_tail=True),
    "ours_n4_enc": ModelSpec(blocks=4, frozen_tail=True),
    "ours_n8_enc": ModelSpec(blocks=8, frozen_tail=True),
    "matsubara2022wacv": ModelSpec(blocks=None, latent_channels=24, stride=4, latent_shrink=1),
}


class UnknownModelError(ValueError):
    """The name is not one of `MODELS`."""

    def __init__(self, name: str):
        super().__init__(f"unknown model {name!r}; choose one of: {', '.join(MODELS)}")


def model_spec(name: str) -> ModelSpec:
    """Look up a model by name; raises UnknownModelError that lists the known ones."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModelError(name) from None


class ResidualBlock(nn.Module):
    """x + conv_2(gelu(conv_1(gelu(x)))), 3x3 convolutions, shape kept."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_2(nn.functional.gelu(self.conv_1(nn.functional.gelu(x))))


def _ours_encoder(blocks: int, latent_channels: int) -> nn.Sequential:
    middle = [ResidualBlock(128, 64) for _ in range(blocks)] if blocks else [nn.GELU()]
    return nn.Sequential(
        nn.Conv2d(3, 128, 8, stride=8), *middle, nn.Conv2d(128, latent_channels, 1)
    )


def _ours_decoder(latent_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(latent_channels, 256, 5, stride=2, padding=2, output_padding=1),
        nn.GELU(),
        nn.Conv2d(256, 512, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(512, 256, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(256, 256, 1),
    )


def _matsubara_encoder(latent_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 96, 5, stride=2, padding=2, bias=False),
        GDN1(96),
        nn.Conv2d(96, 48, 5, stride=2, padding=2, bias=False),
        GDN1(48),
        nn.Conv2d(48, latent_channels, 2, bias=False),
    )


def _matsubara_decoder(latent_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(latent_channels, 512, 2, padding=1, bias=False),
        GDN1(512, inverse=True),
        nn.Conv2d(512, 256, 2, bias=False),
        GDN1(256, inverse=True),
        nn.Conv2d(256, 256, 2, padding=1, bias=False),
    )


class Bottleneck(nn.Module):
    """Encoder, entropy model and decoder.

    The quantiles' middle, the median, is what symbols are counted from:
    symbols = round_half_even(latent - median), and the decoder is fed symbols + median.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        channels = spec.latent_channels
        if spec.blocks is None:
            self.encoder, self.decoder = _matsubara_encoder(channels), _matsubara_decoder(channels)
        else:
            self.encoder, self.decoder = (
                _ours_encoder(spec.blocks, channels),
                _ours_decoder(channels),
            )
        self.entropy_bottleneck = EntropyBottleneck(channels)

    @property
    def medians(self) -> Tensor:
        """float32 [channels, 1, 1]."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach().reshape(-1, 1, 1)

    def symbols(self, image: Tensor) -> Tensor:
        """Normalised image float [N, 3, H, W] -> integer-valued float [N, channels, H', W']."""
        return torch.round(self.encoder(image) - self.medians)

    def decode(self, symbols: Tensor) -> Tensor:
        """Symbols [N, channels, H', W'] -> features float [N, 256, H/4, W/4]."""
        return self.decoder(symbols + self.medians)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 256, H/4, W/4] and the estimated bits of the whole batch (a scalar).

        In training the rate is estimated under uniform noise and the decoder is fed rounded
        latents with a straight-through gradient (Minnen and Singh 2020, arXiv 2007.08739): at a
        quarter of a bit per symbol most symbols are zero, and noise would drown them.
        """
        latent = self.encoder(image)
        # The entropy model's products of small matrices and its log of a small difference are
        # not for bfloat16.
        with torch.autocast(image.device.type, enabled=False):
            latent = latent.float()
            quantised, likelihood = self.entropy_bottleneck(latent)
            bits = -likelihood.log().sum() / math.log(2)
            if self.training:
                rounded = torch.round(latent - self.medians) + self.medians
                quantised = latent + (rounded - latent).detach()
        return self.decoder(quantised), bits


class Outputs(NamedTuple):
    """What the loss compares: features after each stage, logits, and the estimated bits.

    features: [N,256,H/4,W/4], [N,512,H/8,W/8], [N,1024,H/16,W/16], [N,2048,H/32,W/32];
    logits: float [N, classes]; bits: scalar, 0 for the teacher.
    """

    features: list[Tensor]
    logits: Tensor
    bits: Tensor


class FeatureCompressionModel(nn.Module):
    """A bottleneck and the ResNet-50 tail behind it."""

    def __init__(self, spec: ModelSpec, num_classes: int):
        super().__init__()
        self.spec = spec
        self.frozen_tail = self.frozen_bottleneck = False
        self.bottleneck_layer = Bottleneck(spec)
        backbone = resnet50(weights=None, num_classes=num_classes)
        self.layer2, self.layer3, self.layer4 = backbone.layer2, backbone.layer3, backbone.layer4
        self.fc = backbone.fc

    def freeze_tail(self) -> None:
        """From now on the tail has no gradient and stays in eval mode."""
        self.frozen_tail = True
        for module in self.tail_modules():
            module.eval().requires_grad_(False)

    def freeze_bottleneck(self) -> None:
        """From now on encoder, entropy model and decoder have no gradient and stay in eval mode."""
        self.frozen_bottleneck = True
        self.bottleneck_layer.eval().requires_grad_(False)

    def tail_modules(self) -> list[nn.Module]:
        return [self.layer2, self.layer3, self.layer4, self.fc]

    def tail(self, features: Tensor) -> Tensor:
        """Decoder output [N, 256, H/4, W/4] -> logits [N, classes]."""
        return classify_features(self, features)[1]

    def logits_of_symbols(self, symbols: Tensor) -> Tensor:
        """All that the cloud does: symbols [N, channels, H', W'] -> logits [N, classes]."""
        return self.tail(self.bottleneck_layer.decode(symbols))

    def train(self, mode: bool = True) -> "FeatureCompressionModel":
        super().train(mode)
        if self.frozen_tail:
            for module in self.tail_modules():
                module.eval()
        if self.frozen_bottleneck:
            self.bottleneck_layer.eval()
        return self

    def forward(self, image: Tensor) -> Outputs:
        """Normalised image float [N, 3, H, W], H and W multiples of 8."""
        features, bits = self.bottleneck_layer(image)
        stages, logits = classify_features(self, features)
        return Outputs([features, *stages], logits, bits)


def classify_features(
    tail: FeatureCompressionModel | ResNet, features: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Run layer2..fc of a ResNet-50 or of a model; gives the three stages' outputs and logits."""
    second = tail.layer2(features)
    third = tail.layer3(second)
    fourth = tail.layer4(third)
    return [second, third, fourth], tail.fc(fourth.mean((2, 3)))


def build_model(name: str, num_classes: int = 1000) -> FeatureCompressionModel:
    """A model with random weights; raises UnknownModelError for an unknown name."""
    spec = model_spec(name)
    model = FeatureCompressionModel(spec, num_classes)
    if spec.frozen_tail:
        model.freeze_tail()
    return model


def fit_quantiles(model: FeatureCompressionModel) -> None:
    """Set the outer quantiles, which bound the tables, from the trained entropy model.

    The reference leaves them at -10 and 10. CompressAI finds all three by bisection; the median
    is put back to 0, the grid that the decoder was trained on.
    """
    entropy = model.bottleneck_layer.entropy_bottleneck
    entropy.update(force=True, update_quantiles=True)
    with torch.no_grad():
        entropy.quantiles[:, :, 0].clamp_(max=-1.0)
        entropy.quantiles[:, :, 1] = 0.0
        entropy.quantiles[:, :, 2].clamp_(min=1.0)


def build_random_model(
    name: str, num_classes: int = 1000, seed: int = 0
) -> FeatureCompressionModel:
    """An untrained model in eval mode, the same for the same seed; for timing and tests only.

    Its latent is scaled to a standard deviation of 0.6 on noise, and its entropy model to a width
    of about one symbol, so that there is something to code and tables to code it with.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(name, num_classes).eval()
        bottleneck = model.bottleneck_layer
        bottleneck.entropy_bottleneck = EntropyBottleneck(
            model.spec.latent_channels, init_scale=1.0
        )
        last = [module for module in bottleneck.encoder.modules() if isinstance(module, nn.Conv2d)][
            -1
        ]
        if last.bias is not None:
            last.bias.zero_()
        last.weight *= 0.6 / bottleneck.encoder(torch.randn(4, 3, 224, 224)).std()
        fit_quantiles(model)
    return model.eval()
