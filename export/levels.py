"""What a variable-rate bundle codes with, made from a model and, if there are any, counts.

Counts are kept as those of a fixed rate are, FILE.counts.json, with the channels of 16 levels in
the place of one's.

Always holds: the tables of a level are fitted to the symbols that the runtime gives at that level,
which has the same gains.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from runtime.codec import strict_json
from runtime.codec.coder import Tables
from runtime.codec.rates import LEVELS, STEPS_PER_LEVEL, Rates
from runtime.codec.variable_rate import VariableRate
from training.bottleneck import VariableBottleneck
from training.models import FeatureCompressionModel

from .counts import Counter, Counts, CountsError, fit_tables, read_channels, read_head, understood
from .tables import make_level_tables

_LITTLE = 0.01  # of what the channel that carries most carries


@dataclass(frozen=True)
class LevelCounts:
    """Counts of the symbols of the same images at each whole level."""

    levels: Sequence[Counts]

    @property
    def images(self) -> int:
        """How many images were counted."""
        return self.levels[0].images

    @property
    def source(self) -> str:
        """Which images they were."""
        return self.levels[0].source

    def to_json(self) -> str:
        """The text of a file of counts, a line a level and channel."""
        rows = ",\n".join(counts.channels_json() for counts in self.levels)
        return f'{self.levels[0].head_json()[:-1]}, "levels": [\n{rows}\n]}}\n'

    @classmethod
    def read(cls, path: Path, bottleneck_sha256: str) -> "LevelCounts":
        """Read a file of counts.

        Raises CountsError where it makes no sense or belongs to another bottleneck, and OSError.
        """
        with understood(path):
            content = strict_json.loads(path.read_text(encoding="utf-8"))
            head = read_head(content)
            found = cls([Counts(*head, read_channels(level)) for level in content["levels"]])
        found.levels[0].require(bottleneck_sha256, path)
        if len(found.levels) != LEVELS:
            raise CountsError(
                f"{path} counts {len(found.levels)} levels, this release has {LEVELS}: "
                f"count again with --refit DIR --counts {path}"
            )
        return found


def count_levels(
    latents: Iterable[NDArray[np.float32]],
    coding: VariableRate,
    bottleneck_sha256: str,
    source: str,
) -> LevelCounts:
    """Count the symbols of latents float32 [N, C, H', W'] at each whole level.

    Args:
        coding: the model's own tables, which give the thresholds of the contexts, and its rates.
        source: says in the manifest which images these are.

    Raises NoImagesError where there are no latents, NotANumberError.
    """
    counters = [Counter(tables) for tables in coding.levels]
    for batch in latents:
        for level, counter in enumerate(counters):
            step = level * STEPS_PER_LEVEL
            counter.add(np.stack([coding.rates.symbols(latent, step) for latent in batch]))
    return LevelCounts([counter.counts(bottleneck_sha256, source) for counter in counters])


def own_coding(model: FeatureCompressionModel) -> VariableRate:
    """The rates and the own tables of a variable-rate model.

    Raises RatesError, QuantilesError, TablesError.
    """
    return _coding(model, [make_level_tables(model, level) for level in range(LEVELS)])


def fit_levels(
    model: FeatureCompressionModel, own: VariableRate, counts: LevelCounts
) -> VariableRate:
    """Tables fitted to the counts of each level, as wide as its own. Raises CountsError.

    In 16 levels of tables, rare symbols would take most of the space.
    """
    pairs = zip(own.levels, counts.levels, strict=True)
    return _coding(model, [fit_tables(tables, counted, widen=False) for tables, counted in pairs])


def _coding(model: FeatureCompressionModel, levels: Sequence[Tables]) -> VariableRate:
    bottleneck = model.bottleneck_layer
    assert isinstance(bottleneck, VariableBottleneck)
    gains, inverses = (
        table.detach().exp().numpy() for table in (bottleneck.log_gain, bottleneck.log_inverse_gain)
    )
    order = channel_order(bottleneck.decoder, levels[0], inverses[0])
    return VariableRate(Rates(gains, inverses, order), levels)


def channel_order(decoder: nn.Module, tables: Tables, inverse_gain: NDArray[Any]) -> list[int]:
    """Channels in the order in which a cut file keeps them.

    Those that carry something come first, the one with the fewest bits at their head: several small
    channels fit where the largest does not, and together say more about an image. The rest follow
    by what they carry.

    A channel carries the mean square of what the decoder's first layer makes of it: that of its
    values under its table, times the sum of its squared weights there. That much the layer's output
    changes if the channel is left out.

    Args:
        tables, inverse_gain: of the level; inverse gains are [C].
    """
    first = next(decoder.children())
    assert isinstance(first, nn.Conv2d | nn.ConvTranspose2d)
    inputs = 0 if isinstance(first, nn.ConvTranspose2d) else 1
    others = [axis for axis in range(4) if axis != inputs]
    weights = first.weight.detach().double().square().sum(others).numpy()
    carried, bits = [], []
    for cdf, offset in zip(tables.cdfs, tables.offsets, strict=True):
        frequencies = np.diff(cdf.astype(np.float64))[:-1]
        symbols = int(offset) + np.arange(len(frequencies))
        carried.append((frequencies * symbols**2).sum())
        shares = frequencies[frequencies > 0] / frequencies.sum()
        bits.append(-(shares * np.log2(shares)).sum())
    importance = np.array(carried) * inverse_gain.astype(np.float64) ** 2 * weights
    little = importance < _LITTLE * importance.max()
    return np.lexsort((np.where(little, -importance, bits), little)).tolist()
