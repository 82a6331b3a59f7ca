"""The integer tables of a trained entropy model, what codes with them, and hashes of weights.

Always holds: tables are computed once, here, in floating point. Both ends read their integers, and
never compute one.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile, build
from runtime.codec.manifest import ShapeRule
from training.checkpoint import TABLE_BUFFERS
from training.models import FeatureCompressionModel

_MAX_QUANTILE = 16_000.0  # a table holds at most 32,001 symbols


class QuantilesError(ValueError):
    """The checkpoint's quantiles do not bound a table."""


@dataclass(frozen=True)
class Coder:
    """Makes feature files as the finished bundle will.

    Attributes:
        fingerprint: 32 bytes.
        profile: which of the tables are used.
    """

    fingerprint: bytes
    tables: Tables
    profile: Profile

    def encode(self, symbols: NDArray[np.int16], height: int, width: int) -> bytes:
        """Symbols int16 [C, H', W'] of an image of height x width pixels -> feature file."""
        payload = self.tables.encode(symbols, self.profile)
        return build(self.fingerprint, height, width, payload, self.profile)


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
    quantiles = entropy.quantiles.detach()
    good = (quantiles.abs() <= _MAX_QUANTILE).all(2) & (quantiles.diff(dim=2) >= 0).all(2)
    if not good.all():
        first = int(good.flatten().int().argmin())
        raise QuantilesError(
            f"the checkpoint's quantiles are out of order or beyond {_MAX_QUANTILE:g} "
            f"(channel {first}: {quantiles[first, 0].tolist()}): train the entropy model longer"
        )
    entropy.update(force=True)
    lengths = entropy.cdf_length.tolist()
    cdfs = [
        row[:length].tolist() for row, length in zip(entropy.quantized_cdf, lengths, strict=True)
    ]
    return Tables(cdfs, entropy.offset.tolist())


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
