"""The integer tables of a trained entropy model, what codes with them, and hashes of weights.

Always holds: tables are computed once, here, in floating point. Both ends read their integers, and
never compute one.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from compressai.entropy_models.entropy_models import pmf_to_quantized_cdf
from numpy.typing import NDArray
from torch import Tensor

from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile, build
from runtime.codec.manifest import ShapeRule
from runtime.codec.variable_rate import VariableRate
from training.bottleneck import VariableBottleneck
from training.checkpoint import TABLE_BUFFERS
from training.models import FeatureCompressionModel

from .link import Link

_MAX_QUANTILE = 16_000.0  # a table holds at most 32,001 symbols
_CDF_BITS = 16
_RAREST = 2.0 ** -(_CDF_BITS + 1)  # less than half of what the smallest entry of a table stands for


class QuantilesError(ValueError):
    """The checkpoint's quantiles do not bound a table."""


@dataclass(frozen=True)
class Coder:
    """Makes feature files as the finished bundle will.

    Attributes:
        fingerprint: 32 bytes.
        tables: with their rates, if the rate varies.
        profile: which of the tables are used.
    """

    fingerprint: bytes
    tables: Tables | VariableRate
    profile: Profile

    @property
    def link(self) -> Link:
        """What lies between the graphs."""
        return link_of(self.tables)

    def encode(
        self, symbols: NDArray[np.int16], height: int, width: int, step: int | None = None
    ) -> bytes:
        """Symbols int16 [C, H', W'] of an image of height x width pixels -> feature file.

        The `step` is that of the symbols, None at a fixed rate.
        """
        payload = tables_at(self.tables, step).encode(symbols, self.profile)
        return build(self.fingerprint, height, width, payload, self.profile, step)


def link_of(tables: Tables | VariableRate) -> Link:
    """What lies between the graphs of a bundle with these tables."""
    return Link(tables.rates) if isinstance(tables, VariableRate) else Link()


def tables_at(tables: Tables | VariableRate, step: int | None) -> Tables:
    """The tables that symbols of a step are coded with; at a fixed rate all there are."""
    if isinstance(tables, VariableRate):
        assert step is not None
        return tables.tables_at(step)
    return tables


def shape_rule(model: FeatureCompressionModel) -> ShapeRule:
    """From pixels to symbols, as the model's encoder does it."""
    spec = model.spec
    return ShapeRule(spec.latent_channels, spec.stride, spec.latent_shrink)


def make_tables(model: FeatureCompressionModel) -> Tables:
    """The model's own tables: CompressAI's quantised CDFs of its entropy model.

    A table spans the symbols between the channel's outer quantiles. Its last entry is the mass of
    all other symbols. Raises QuantilesError, TablesError.
    """
    entropy = model.bottleneck_layer.entropy_bottleneck
    _check_quantiles(entropy.quantiles.detach()[:, 0])
    entropy.update(force=True)
    lengths = entropy.cdf_length.tolist()
    cdfs = [
        row[:length].tolist() for row, length in zip(entropy.quantized_cdf, lengths, strict=True)
    ]
    return Tables(cdfs, entropy.offset.tolist())


def _check_quantiles(quantiles: Tensor) -> None:
    """Raises QuantilesError unless quantiles [C, 3] bound a table, in symbols, for each channel."""
    good = (quantiles.abs() <= _MAX_QUANTILE).all(1) & (quantiles.diff(dim=1) >= 0).all(1)
    if not good.all():
        first = int(good.int().argmin())
        raise QuantilesError(
            f"the checkpoint's quantiles are out of order or beyond {_MAX_QUANTILE:g} "
            f"(channel {first}: {quantiles[first].tolist()}): train the entropy model longer"
        )


@torch.no_grad()
def make_level_tables(model: FeatureCompressionModel, level: int) -> Tables:
    """A variable-rate model's own tables of a whole level: quantised probabilities of symbols.

    A table spans the symbols between the outer quantiles, scaled as symbols are, but those at its
    ends that are rarer than a table can say. Raises QuantilesError, TablesError.
    """
    bottleneck = model.bottleneck_layer
    assert isinstance(bottleneck, VariableBottleneck)
    gain, _ = bottleneck.gains(float(level), 1)
    quantiles = bottleneck.entropy_bottleneck.quantiles[:, 0] * gain[0, :, 0]
    _check_quantiles(quantiles)
    lowest = quantiles[:, 0].floor().clamp(max=-1).int().tolist()
    highest = quantiles[:, 2].ceil().clamp(min=1).int().tolist()
    symbols = torch.arange(min(lowest), max(highest) + 1).float()
    found = bottleneck.likelihood(symbols.expand(1, len(gain[0]), 1, -1), gain)[0, :, 0].double()
    cdfs, offsets = [], []
    for probabilities, low, high in zip(found, lowest, highest, strict=True):
        first, last = low - min(lowest), high - min(lowest)
        while first < -1 - min(lowest) and probabilities[first] < _RAREST:
            first += 1
        while last > 1 - min(lowest) and probabilities[last] < _RAREST:
            last -= 1
        kept = probabilities[first : last + 1]
        rest = (1 - kept.sum()).clamp(min=0).reshape(1)
        cdf = pmf_to_quantized_cdf(torch.cat([kept, rest]).float(), _CDF_BITS)
        cdfs.append(cdf.tolist())
        offsets.append(first + min(lowest))
    return Tables(cdfs, offsets)


def bottleneck_sha256(model: FeatureCompressionModel) -> str:
    """SHA-256, in hexadecimal, of the bottleneck's weights, medians included.

    docs/BUNDLE.md, section 4, says what is hashed.
    """
    return weights_sha256(model, "bottleneck_layer.")


def weights_sha256(model: FeatureCompressionModel, prefix: str = "") -> str:
    """The same over all weights whose names begin with `prefix`."""
    sha = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if (
            key.startswith(prefix)
            and key not in TABLE_BUFFERS
            and not key.endswith("num_batches_tracked")
        ):
            sha.update(f"{key} {list(value.shape)};".encode())
            sha.update(value.to(torch.float32).contiguous().numpy().astype("<f4").tobytes())
    return sha.hexdigest()
