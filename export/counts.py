"""Counts of a model's symbols over real images, and tables fitted to them.

The reference never trains the quantiles that bound its tables, and its tables know nothing of a
symbol's neighbours. Counting what the edge graph really gives mends both: `fit_tables` makes one
static table a channel and, where they pay, tables by context (docs/FORMAT.md, section 3.5).

Counts are kept as JSON beside a checkpoint, FILE.counts.json for FILE.safetensors, so that a clone
without the images exports the same tables.

Always holds: counts are of one bottleneck, named by its SHA-256, and are used for no other; fitted
tables hold whatever the model's own tables hold, and every symbol can be coded.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.codec import strict_json
from runtime.codec.coder import CONTEXTS, LEVELS, Contexts, Tables
from runtime.codec.manifest import STANDARD, Preprocessing
from runtime.engine.onnxruntime import open_session
from runtime.engine.registry import group_by_shape
from training.folders import Damage, NoImagesError

from .images import pixels_of

MAX_ENTRIES = 256  # of a table that the coder can have by context
# Smoothing, in symbols: how many of the model's own belief a static table begins with, and how many
# of the static table's a context begins with. Weights that cost least on images that were not counted.
STATIC_PRIOR = 4096
CONTEXT_PRIOR = 8
MIN_SAVING = 8  # bits an image for which a channel gets context tables
_BATCH = 16

Symbols = NDArray[np.int16]


class CountsError(ValueError):
    """Counts that are not understood, or are of another checkpoint."""


@dataclass(frozen=True)
class ChannelCounts:
    """Of one channel: counts[context][k] symbols `first` + k; thresholds as in runtime.codec.coder.Contexts."""

    first: int
    thresholds: tuple[int, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Of all channels, over `images` images; `source` says which."""

    bottleneck_sha256: str
    images: int
    source: str
    channels: list[ChannelCounts]

    def to_json(self) -> str:
        rows = []
        for channel in self.channels:
            seen = {
                str(context): row.tolist()
                for context, row in enumerate(channel.counts)
                if row.any()
            }
            rows.append(
                json.dumps(
                    {"first": channel.first, "thresholds": channel.thresholds, "counts": seen},
                    allow_nan=False,
                )
            )
        head = json.dumps(
            {
                "bottleneck_sha256": self.bottleneck_sha256,
                "images": self.images,
                "source": self.source,
            },
            allow_nan=False,
        )
        return head[:-1] + ', "channels": [\n ' + ",\n ".join(rows) + "\n]}\n"

    @classmethod
    def read(cls, path: Path, bottleneck_sha256: str) -> "Counts":
        """Raises CountsError, also where they are of another bottleneck; OSError."""
        try:
            content = strict_json.loads(path.read_text(encoding="utf-8"))
            channels = [
                _channel(
                    int(entry["first"]),
                    [int(value) for value in entry["thresholds"]],
                    entry["counts"],
                )
                for entry in content["channels"]
            ]
            counts = cls(
                str(content["bottleneck_sha256"]),
                int(content["images"]),
                str(content["source"]),
                channels,
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise CountsError(
                f"{path} is not understood ({error!r}): count again with --refit DIR --counts {path}"
            ) from error
        if counts.bottleneck_sha256 != bottleneck_sha256:
            raise CountsError(
                f"{path} counts symbols of bottleneck {counts.bottleneck_sha256[:8]}, this checkpoint's is {bottleneck_sha256[:8]}: "
                f"count again with --refit DIR --counts {path}, or use the checkpoint's own tables with --own-tables"
            )
        return counts


def _channel(first: int, thresholds: list[int], rows: dict[str, list[int]]) -> ChannelCounts:
    width = max((len(row) for row in rows.values()), default=1)
    counts = np.zeros((CONTEXTS, width), np.int64)
    for context, row in rows.items():
        if (
            not 0 <= int(context) < CONTEXTS
            or len(row) != width
            or min(row) < 0
            or max(row) > 1 << 48
        ):
            raise ValueError(f"bad counts of context {context}")
        counts[int(context)] = row
    if len(thresholds) != LEVELS - 1:
        raise ValueError(f"{len(thresholds)} thresholds")
    return ChannelCounts(int(first), tuple(int(value) for value in thresholds), counts)


def symbols_of(
    graph: Path,
    paths: Iterable[Path],
    as_is: bool = False,
    damage: Damage | None = None,
    rule: Preprocessing = STANDARD,
) -> Iterator[Symbols]:
    """The edge graph's symbols int16 [N, C, H', W'] of images as edge-encode prepares them, a few at a time.

    `damage` is told of images that cannot be read, which are left out. Raises DamagedImageError where it does.
    """
    damage = damage or Damage(skip=True)
    session = open_session(graph)
    remaining = iter(paths)
    with ThreadPoolExecutor(2) as pool:
        while batch := list(islice(remaining, _BATCH)):
            images = [
                pixels
                for pixels in pool.map(lambda path: pixels_of(path, as_is, damage, rule), batch)
                if pixels is not None
            ]
            for group in group_by_shape([pixels.shape for pixels in images], _BATCH):
                yield session.run(None, {"pixels": np.stack([images[index] for index in group])})[0]


def levels(symbols: NDArray[np.integer], thresholds: Iterable[int]) -> NDArray[np.int64]:
    """How many thresholds each symbol has reached."""
    return sum((symbols >= threshold).astype(np.int64) for threshold in thresholds)  # type: ignore[return-value]


def contexts_of(symbols: NDArray[np.integer], thresholds: Iterable[int]) -> NDArray[np.int64]:
    """The context of each symbol of planes [..., rows, columns]."""
    own = levels(symbols, thresholds)
    above, left = np.full_like(own, levels(np.zeros((), np.int64), thresholds)), np.empty_like(own)
    left[:] = above
    above[..., 1:, :] = own[..., :-1, :]
    left[..., 1:] = own[..., :-1]
    return LEVELS * above + left


def thresholds_for(cdf: NDArray[np.uint32], offset: int) -> tuple[int, ...]:
    """Bounds between five bands around the mode, about as wide as the model's belief is spread."""
    frequencies = np.diff(cdf.astype(np.int64))[:-1]
    symbols = offset + np.arange(len(frequencies))
    mode = int(symbols[frequencies.argmax()])
    # The mean distance, not its square: entries that are there only because none may be 0 weigh little.
    step = max(1, round(float((frequencies * np.abs(symbols - mode)).sum() / frequencies.sum())))
    bounds = [-((3 * step) // 2), -(step // 2), step // 2 + 1, (3 * step) // 2 + 1]
    return tuple(int(np.clip(mode + bound, -32000, 32000)) for bound in bounds)


def count(batches: Iterable[Symbols], own: Tables, bottleneck_sha256: str, source: str) -> Counts:
    """Count symbols int16 [N, C, H', W'], under contexts whose thresholds follow from the model's own tables."""
    thresholds = [
        thresholds_for(cdf, int(offset)) for cdf, offset in zip(own.cdfs, own.offsets, strict=True)
    ]
    found: list[dict[int, NDArray[np.int64]]] = [
        {} for _ in thresholds
    ]  # symbol -> counts by context
    images = 0
    for batch in batches:
        images += len(batch)
        for channel, seen in enumerate(found):
            plane = batch[:, channel]
            context = contexts_of(plane, thresholds[channel])
            for symbol in np.unique(plane):
                counted = np.bincount(context[plane == symbol], minlength=CONTEXTS)
                seen[int(symbol)] = seen.get(int(symbol), np.zeros(CONTEXTS, np.int64)) + counted
    if not images:
        raise NoImagesError("no image could be read: name a folder of JPEG or PNG files")
    channels = []
    for seen, bounds in zip(found, thresholds, strict=True):
        first, last = min(seen), max(seen)
        columns = [
            seen.get(symbol, np.zeros(CONTEXTS, np.int64)) for symbol in range(first, last + 1)
        ]
        channels.append(ChannelCounts(first, bounds, np.stack(columns, 1)))
    return Counts(bottleneck_sha256, images, source, channels)


def fit_tables(own: Tables, counts: Counts) -> Tables:
    """Tables fitted to the counts; `own` are the model's. Raises CountsError."""
    if len(counts.channels) != own.channels:
        raise CountsError(
            f"counts of {len(counts.channels)} channels, the model has {own.channels}: count again with --refit DIR"
        )
    cdfs, offsets, contexts = [], [], {}
    for channel, (seen, cdf, offset) in enumerate(
        zip(counts.channels, own.cdfs, own.offsets.tolist(), strict=True)
    ):
        belief = np.diff(cdf.astype(np.int64)) / 65536
        first, last = (
            min(offset, seen.first),
            max(offset + len(belief) - 2, seen.first + seen.counts.shape[1] - 1),
        )
        if (
            last - first + 2 > MAX_ENTRIES
        ):  # what lies outside the model's own table stays an escape
            first, last = offset, offset + len(belief) - 2
        size = last - first + 2
        prior, counted = np.zeros(size), np.zeros((CONTEXTS, size), np.int64)
        prior[offset - first : offset - first + len(belief) - 1] = belief[:-1]
        prior[-1] = belief[-1]
        place = seen.first - first + np.arange(seen.counts.shape[1])
        place[(place < 0) | (place >= size)] = size - 1
        np.add.at(counted.T, place, seen.counts.T)
        static = _smooth(counted.sum(0), prior, STATIC_PRIOR)
        frequencies = _frequencies(static)
        cdfs.append(_cdf(frequencies))
        offsets.append(first)
        if size > MAX_ENTRIES:
            continue
        rows = np.stack([_frequencies(_smooth(row, static, CONTEXT_PRIOR)) for row in counted])
        # Against a static table that the model's belief holds back no more than it does these.
        one = _frequencies(_smooth(counted.sum(0), static, CONTEXT_PRIOR))
        saved = (counted * np.log2(rows / one)).sum()
        # Subtract a BIC penalty to offset overfitting: half a logarithm for each number that was fitted.
        total = counted.sum()
        flattery = 0.5 * np.log2(max(total, 1)) * ((counted > 0).sum() - (counted.sum(0) > 0).sum())
        if saved - flattery >= MIN_SAVING * counts.images:
            contexts[channel] = Contexts(list(seen.thresholds), [_cdf(row) for row in rows])
    return Tables(cdfs, offsets, contexts)


def _smooth(
    counted: NDArray[np.int64], prior: NDArray[np.float64], weight: float
) -> NDArray[np.float64]:
    return (counted + weight * prior) / (counted.sum() + weight * prior.sum())


def _frequencies(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers from 1 up that sum to 2^16, in proportion."""
    frequencies: NDArray[np.int64] = np.maximum(1, np.rint(probabilities * 65536)).astype(np.int64)
    while (excess := int(frequencies.sum()) - 65536) != 0:
        most = frequencies.argmax()
        frequencies[most] -= min(excess, int(frequencies[most]) - 1)
    return frequencies


def _cdf(frequencies: NDArray[np.int64]) -> list[int]:
    return [0, *np.cumsum(frequencies).tolist()]
