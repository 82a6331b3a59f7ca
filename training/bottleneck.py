"""Bottlenecks: encoder, factorized entropy model and decoder, of one rate or of any.

A variable-rate bottleneck has gain units after Cui et al., "Asymmetric Gained Deep Image
Compression With Continuous Rate Adaptation" (CVPR 2021, arXiv 2003.02012). Each rate level has a
gain for each channel of the latent, and an inverse gain for each channel of what the decoder is
fed. Between whole levels their logarithms are interpolated. The encoder does not know the level: it
runs once, and its latent is scaled and rounded at as many levels as one likes.

Always holds: a fixed-rate bottleneck has the names of the published checkpoints; a variable-rate
one has log_gain and log_inverse_gain besides, and medians of 0.
"""

import math

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from .architectures import Architecture
from .backbones import Backbone
from .rates import LEVELS, TOP_LEVEL

Level = Tensor | float | None
"""Rate levels from 0 to 15: float [N], one for all images, or None for the middle one.

Fixed-rate bottlenecks take no notice of it."""

# Errors that weigh the same at each level have steps in proportion to the root of the rate weight,
# which falls by 2^(1/3) a level. That is where the gains start.
_LADDER_STEP = math.log(2) / 6


class Bottleneck(nn.Module):
    """Encoder, entropy model and decoder, for one rate.

    The quantiles' middle, the median, is what symbols are counted from:
    symbols = round_half_even(latent - median), and the decoder is fed symbols + median.
    """

    def __init__(self, architecture: Architecture, backbone: Backbone):
        super().__init__()
        self.encoder = architecture.encoder()
        self.decoder = architecture.decoder(backbone)
        self.entropy_bottleneck = EntropyBottleneck(architecture.latent_channels)

    @property
    def medians(self) -> Tensor:
        """float32 [channels, 1, 1]."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach().reshape(-1, 1, 1)

    def symbols(self, image: Tensor, level: Level = None) -> Tensor:
        """Normalised image float [N, 3, H, W] -> integer-valued float [N, channels, H', W']."""
        return torch.round(self.encoder(image) - self.medians)

    def decode(self, symbols: Tensor, level: Level = None) -> Tensor:
        """Symbols [N, channels, H', W'] -> features float [N, C, H/S, W/S], as at the cut."""
        return self.decoder(symbols + self.medians)

    def forward(self, image: Tensor, level: Level = None) -> tuple[Tensor, Tensor]:
        """Features as at the cut, and the estimated bits of the whole batch (a scalar).

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


class VariableBottleneck(Bottleneck):
    """Encoder, entropy model and decoder, for any rate between level 0 and level 15.

    symbols = round_half_even(latent * gain), and the decoder is fed symbols * inverse gain. The
    entropy model has one density for each channel of the latent itself, which serves all levels.
    """

    def __init__(self, architecture: Architecture, backbone: Backbone):
        super().__init__(architecture, backbone)
        shape = (LEVELS, architecture.latent_channels)
        self.log_gain = nn.Parameter(torch.empty(shape))
        self.log_inverse_gain = nn.Parameter(torch.empty(shape))
        self.set_ladder(TOP_LEVEL / 2)

    def set_ladder(self, level: float) -> None:
        """Start with gains in a geometric series that are 1 at `level`, and their inverses."""
        with torch.no_grad():
            self.log_gain.copy_((torch.arange(LEVELS) - level)[:, None] * _LADDER_STEP)
            self.log_inverse_gain.copy_(-self.log_gain)

    def gains(self, level: Level, images: int) -> tuple[Tensor, Tensor]:
        """Gains and inverse gains of `images` images at their levels, float [N, channels, 1, 1]."""
        level = TOP_LEVEL / 2 if level is None else level
        at = torch.as_tensor(level, dtype=torch.float32, device=self.log_gain.device)
        at = at.expand(images)
        low = at.floor().long().clamp(0, TOP_LEVEL - 1)
        part = (at - low)[:, None]
        gain, inverse = (
            table[low].lerp(table[low + 1], part).exp()[:, :, None, None]
            for table in (self.log_gain, self.log_inverse_gain)
        )
        return gain, inverse

    def symbols(self, image: Tensor, level: Level = None) -> Tensor:
        """Normalised image float [N, 3, H, W] -> integer-valued float [N, channels, H', W']."""
        latent = self.encoder(image)
        return torch.round(latent * self.gains(level, len(latent))[0])

    def decode(self, symbols: Tensor, level: Level = None) -> Tensor:
        """Symbols [N, channels, H', W'] -> features float [N, C, H/S, W/S], as at the cut."""
        return self.decoder(symbols * self.gains(level, len(symbols))[1])

    def likelihood(self, symbols: Tensor, gain: Tensor) -> Tensor:
        """The probability of each symbol, float [N, channels, H', W'], at the images' gains.

        A symbol s is a latent from (s - 1/2) / gain to (s + 1/2) / gain.
        """

        def logits(edges: Tensor) -> Tensor:
            """Of the cumulative distribution, there; the entropy model takes [channels, 1, all]."""
            rows = (edges / gain).transpose(0, 1)
            found = self.entropy_bottleneck._logits_cumulative(rows.flatten(1)[:, None], False)
            return found.reshape(rows.shape).transpose(0, 1)

        lower, upper = logits(symbols - 0.5), logits(symbols + 0.5)
        # Two numbers near 1 have no exact difference: on that side take the distances from 1.
        sign = torch.where(lower + upper > 0, -1.0, 1.0)
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def forward(self, image: Tensor, level: Level = None) -> tuple[Tensor, Tensor]:
        """Features as at the cut, and the estimated bits of each image, float [N].

        Trained as a fixed-rate bottleneck: noise for the rate, rounding for the decoder.
        """
        latent = self.encoder(image)
        with torch.autocast(image.device.type, enabled=False):
            gain, inverse = self.gains(level, len(image))
            scaled = latent.float() * gain
            rounded = torch.round(scaled)
            coded = scaled + torch.rand_like(scaled) - 0.5 if self.training else rounded
            likelihood = self.entropy_bottleneck.likelihood_lower_bound(
                self.likelihood(coded, gain)
            )
            bits = -likelihood.log().sum((1, 2, 3)) / math.log(2)
            values = (scaled + (rounded - scaled).detach()) * inverse
        return self.decoder(values), bits


def random_levels(images: int, device: torch.device) -> Tensor:
    """Levels to train a batch at, float [images]: spread evenly from 0 to 15, in random order.

    Each whole level counts the same, the first and the last too.
    """
    spread = (torch.randperm(images) + torch.rand(images)) / images
    return (spread * LEVELS - 0.5).clamp(0, TOP_LEVEL).to(device)


def is_rate_parameter(name: str) -> bool:
    """Whether a parameter of a bottleneck belongs to the entropy model or the gains."""
    return name.startswith(("entropy_bottleneck.", "log_"))
