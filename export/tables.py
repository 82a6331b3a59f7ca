"""From a trained entropy model to integer tables, once; and what identifies a bottleneck.

Always holds: neither end recomputes a table. The floating-point part happens here, and what both
ends read are its integers.
"""

import hashlib

import torch

from runtime.codec.coder import Tables
from training.checkpoint import TABLE_BUFFERS
from training.models import FeatureCompressionModel

_MAX_QUANTILE = 16_000.0  # a table holds at most 32,001 symbols


class QuantilesError(ValueError):
    """The checkpoint's quantiles do not bound a table."""


def make_tables(model: FeatureCompressionModel) -> Tables:
    """CompressAI's quantised CDFs of the model's entropy bottleneck, as Tables.

    A table spans the symbols between the channel's outer quantiles; the last entry is the mass of
    all others. Raises QuantilesError, TablesError.
    """
    entropy = model.bottleneck_layer.entropy_bottleneck
    quantiles = entropy.quantiles.detach()
    good = (quantiles.abs() <= _MAX_QUANTILE).all(2) & (quantiles.diff(dim=2) >= 0).all(2)
    if not good.all():
        first = int(good.flatten().int().argmin())
        raise QuantilesError(
            f"the checkpoint's quantiles are out of order or beyond {_MAX_QUANTILE:g} (channel {first}: "
            f"{quantiles[first, 0].tolist()}): train the entropy model longer"
        )
    entropy.update(force=True)
    lengths = entropy.cdf_length.tolist()
    cdfs = [
        row[:length].tolist() for row, length in zip(entropy.quantized_cdf, lengths, strict=True)
    ]
    return Tables(cdfs, entropy.offset.tolist())


def bottleneck_sha256(model: FeatureCompressionModel) -> str:
    """SHA-256, in hex, over names, shapes and values of all weights of the bottleneck, medians included."""
    return weights_sha256(model, "bottleneck_layer.")


def weights_sha256(model: FeatureCompressionModel, prefix: str = "") -> str:
    """The same over all weights whose name begins with `prefix`; batches that batch norm counted are left out."""
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
