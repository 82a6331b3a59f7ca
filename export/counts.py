"""Counts of a model's symbols over real images, and tables fitted to them.

The reference never trains the quantiles that bound its tables, and its tables do not depend on a
symbol's neighbours. Tables that are fitted to counts of the edge graph's symbols give smaller
files: `fit_tables` makes one static table a channel and, where that saves enough, tables by context
(docs/FORMAT.md, section 3.5).

Counts are kept as JSON beside a checkpoint, FILE.counts.json for FILE.safetensors, so that a clone
without the images exports the same tables.

Always holds: counts belong to one bottleneck, named by its SHA-256, and are used for no other.
Fitted tables code every symbol that the model's own tables code without an escape, and every other
symbol with one.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.codec import strict_json
from runtime.codec.coder import CONTEXTS, LEVELS, Contexts, Tables
from runtime.engine.onnxruntime import open_session
from runtime.engine.registry import group_by_shape
from training.folders import NoImagesError

from .images import Reading

MAX_ENTRIES = 256  # the most entries that the coder takes in a table by context
# The weight of a prior, in symbols: that of the model's own table in a static table, and that of
# the static table in a table by context. These values gave the smallest files on other images.
STATIC_PRIOR = 4096
CONTEXT_PRIOR = 8
MIN_SAVING = 8  # bits an image that context tables must save, or a channel gets none
_BATCH = 16

Symbols = NDArray[np.int16]


class CountsError(ValueError):
    """Counts that make no sense, or belong to another checkpoint."""


@dataclass(frozen=True)
class ChannelCounts:
    """Counts of one channel's symbols.

    Attributes:
        first: the symbol of the first column.
        thresholds: between the bands of a neighbour, as in runtime.codec.coder.Contexts.
        counts: [contexts, symbols]: how often symbol `first` + k came in each context.
    """

    first: int
    thresholds: tuple[int, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts of all channels' symbols over `images` images; `source` says which images."""

    bottleneck_sha256: str
    images: int
    source: str
    channels: list[ChannelCounts]

    def to_json(self) -> str:
        """The text of a file of counts, a line a channel."""
        return f'{self.head_json()[:-1]}, "channels": {self.channels_json()}}}\n'

    def head_json(self) -> str:
        """What the counts belong to, as a JSON object."""
        head = {
            "bottleneck_sha256": self.bottleneck_sha256,
            "images": self.images,
            "source": self.source,
        }
        return json.dumps(head, allow_nan=False)

    def channels_json(self) -> str:
        """The channels as a JSON array; `read_channels` reads it back."""
        rows = []
        for channel in self.channels:
            seen = {
                str(context): row.tolist()
                for context, row in enumerate(channel.counts)
                if row.any()
            }
            entry = {"first": channel.first, "thresholds": channel.thresholds, "counts": seen}
            rows.append(json.dumps(entry, allow_nan=False))
        return "[\n " + ",\n ".join(rows) + "\n]"

    @classmethod
    def read(cls, path: Path, bottleneck_sha256: str) -> "Counts":
        """Read a file of counts.

        Raises CountsError where it makes no sense or belongs to another bottleneck, and OSError.
        """
        with understood(path):
            content = strict_json.loads(path.read_text(encoding="utf-8"))
            counts = cls(*read_head(content), read_channels(content["channels"]))
        counts.require(bottleneck_sha256, path)
        return counts

    def require(self, bottleneck_sha256: str, path: Path) -> None:
        """Raises CountsError unless the counts, of file `path`, are of this bottleneck."""
        if self.bottleneck_sha256 != bottleneck_sha256:
            raise CountsError(
                f"{path} counts symbols of bottleneck {self.bottleneck_sha256[:8]}, "
                f"this checkpoint's is {bottleneck_sha256[:8]}: "
                f"count again with --refit DIR --counts {path}, "
                "or use the checkpoint's own tables with --own-tables"
            )


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Raises CountsError for whatever a file of counts that makes no sense leads to."""
    try:
        yield
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


def read_head(content: dict[str, Any]) -> tuple[str, int, str]:
    """Bottleneck, number of images and their source from the JSON of a file of counts."""
    return str(content["bottleneck_sha256"]), int(content["images"]), str(content["source"])


def read_channels(entries: list[dict[str, Any]]) -> list[ChannelCounts]:
    """Channels from the JSON of a file of counts. Raises ValueError and others."""
    return [
        _channel(
            int(entry["first"]), [int(value) for value in entry["thresholds"]], entry["counts"]
        )
        for entry in entries
    ]


def _channel(first: int, thresholds: list[int], rows: dict[str, list[int]]) -> ChannelCounts:
    """A channel's counts from JSON: context, as text -> counts. Raises ValueError."""
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
    graph: Path, paths: Iterable[Path], reading: Reading | None = None
) -> Iterator[NDArray[Any]]:
    """The edge graph's symbols int16 [N, C, H', W'] of images, a few images at a time.

    Of a variable-rate model they are latents float32, of the same shape.
    By default, images are read as edge-encode reads them, and damaged ones are left out. Raises
    DamagedImageError where `reading` does not leave them out.
    """
    reading = reading or Reading()
    session = open_session(graph)
    remaining = iter(paths)
    with ThreadPoolExecutor(2) as pool:
        while batch := list(islice(remaining, _BATCH)):
            images = [pixels for pixels in pool.map(reading.pixels, batch) if pixels is not None]
            for group in group_by_shape([pixels.shape for pixels in images], _BATCH):
                yield session.run(None, {"pixels": np.stack([images[index] for index in group])})[0]


def levels(symbols: NDArray[np.integer], thresholds: Iterable[int]) -> NDArray[np.int64]:
    """The band of each symbol: how many thresholds are not above it."""
    return sum((symbols >= threshold).astype(np.int64) for threshold in thresholds)  # type: ignore[return-value]


def contexts_of(symbols: NDArray[np.integer], thresholds: Iterable[int]) -> NDArray[np.int64]:
    """The context of each symbol of planes [..., rows, columns]; outside, neighbours are 0."""
    own = levels(symbols, thresholds)
    above, left = np.full_like(own, levels(np.zeros((), np.int64), thresholds)), np.empty_like(own)
    left[:] = above
    above[..., 1:, :] = own[..., :-1, :]
    left[..., 1:] = own[..., :-1]
    return LEVELS * above + left


def thresholds_for(cdf: NDArray[np.uint32], offset: int) -> tuple[int, ...]:
    """Bounds between five bands around the mode of a table.

    Inner bands are as wide as the mean distance of a symbol from the mode, under the table.
    """
    frequencies = np.diff(cdf.astype(np.int64))[:-1]
    symbols = offset + np.arange(len(frequencies))
    mode = int(symbols[frequencies.argmax()])
    # The mean distance and not its square: entries of 1, there because none may be 0, count little.
    step = max(1, round(float((frequencies * np.abs(symbols - mode)).sum() / frequencies.sum())))
    bounds = [-((3 * step) // 2), -(step // 2), step // 2 + 1, (3 * step) // 2 + 1]
    return tuple(int(np.clip(mode + bound, -32000, 32000)) for bound in bounds)


def count(batches: Iterable[Symbols], own: Tables, bottleneck_sha256: str, source: str) -> Counts:
    """Count symbols int16 [N, C, H', W'] by channel and context.

    Args:
        own: the model's own tables, which give the thresholds of the contexts.
        source: says in the manifest which images these are.

    Raises NoImagesError where there are no symbols.
    """
    counter = Counter(own)
    for batch in batches:
        counter.add(batch)
    return counter.counts(bottleneck_sha256, source)


class Counter:
    """Counts symbols by channel and context, batch by batch; `own` as for `count`."""

    def __init__(self, own: Tables):
        self.thresholds = [
            thresholds_for(cdf, int(offset))
            for cdf, offset in zip(own.cdfs, own.offsets, strict=True)
        ]
        # For each channel: symbol -> counts by context.
        self.found: list[dict[int, NDArray[np.int64]]] = [{} for _ in self.thresholds]
        self.images = 0

    def add(self, batch: Symbols) -> None:
        """Count the symbols int16 [N, C, H', W'] of some images."""
        self.images += len(batch)
        for channel, seen in enumerate(self.found):
            plane = batch[:, channel].astype(np.int64)
            context = contexts_of(plane, self.thresholds[channel])
            first = int(plane.min())
            # One number for each pair of symbol and context.
            pairs = np.bincount(((plane - first) * CONTEXTS + context).ravel())
            pairs.resize(-(-len(pairs) // CONTEXTS), CONTEXTS)
            for index in np.flatnonzero(pairs.any(1)):
                symbol = first + int(index)
                seen[symbol] = seen.get(symbol, np.zeros(CONTEXTS, np.int64)) + pairs[index]

    def counts(self, bottleneck_sha256: str, source: str) -> Counts:
        """What was counted. Raises NoImagesError where there were no symbols."""
        if not self.images:
            raise NoImagesError("no image could be read: name a folder of JPEG or PNG files")
        channels = []
        for seen, bounds in zip(self.found, self.thresholds, strict=True):
            first, last = min(seen), max(seen)
            columns = [
                seen.get(symbol, np.zeros(CONTEXTS, np.int64)) for symbol in range(first, last + 1)
            ]
            channels.append(ChannelCounts(first, bounds, np.stack(columns, 1)))
        return Counts(bottleneck_sha256, self.images, source, channels)


def fit_tables(own: Tables, counts: Counts, widen: bool = True) -> Tables:
    """Tables fitted to the counts; `own` are the model's own. Raises CountsError.

    They have all symbols that were counted, where that is possible; if not to `widen`, the symbols
    of the model's own tables alone.
    """
    if len(counts.channels) != own.channels:
        raise CountsError(
            f"counts of {len(counts.channels)} channels, the model has {own.channels}: "
            "count again with --refit DIR"
        )
    cdfs, offsets, contexts = [], [], {}
    for channel, (seen, cdf, offset) in enumerate(
        zip(counts.channels, own.cdfs, own.offsets.tolist(), strict=True)
    ):
        belief = np.diff(cdf.astype(np.int64)) / 65536
        first, prior, counted = _aligned(seen, belief, offset, widen)
        static = _smooth(counted.sum(0), prior, STATIC_PRIOR)
        cdfs.append(_cdf(_frequencies(static)))
        offsets.append(first)
        if len(prior) <= MAX_ENTRIES:
            rows = np.stack([_frequencies(_smooth(row, static, CONTEXT_PRIOR)) for row in counted])
            if _saved_bits(counted, rows, static) >= MIN_SAVING * counts.images:
                contexts[channel] = Contexts(list(seen.thresholds), [_cdf(row) for row in rows])
    return Tables(cdfs, offsets, contexts)


def _aligned(
    seen: ChannelCounts, belief: NDArray[np.float64], offset: int, widen: bool
) -> tuple[int, NDArray[np.float64], NDArray[np.int64]]:
    """A channel's own table and its counts over the same symbols, the escape last.

    Args:
        belief: the probabilities of the model's own table, which begins with symbol `offset`.

    Gives the first symbol, the probabilities [entries], and the counts [contexts, entries].
    """
    first = min(offset, seen.first)
    last = max(offset + len(belief) - 2, seen.first + seen.counts.shape[1] - 1)
    if not widen or last - first + 2 > MAX_ENTRIES:
        # Symbols outside the model's own table stay escapes.
        first, last = offset, offset + len(belief) - 2
    size = last - first + 2
    prior, counted = np.zeros(size), np.zeros((CONTEXTS, size), np.int64)
    prior[offset - first : offset - first + len(belief) - 1] = belief[:-1]
    prior[-1] = belief[-1]
    place = seen.first - first + np.arange(seen.counts.shape[1])
    place[(place < 0) | (place >= size)] = size - 1
    np.add.at(counted.T, place, seen.counts.T)
    return first, prior, counted


def _saved_bits(
    counted: NDArray[np.int64], rows: NDArray[np.int64], static: NDArray[np.float64]
) -> float:
    """Bits that tables by context save on the counted images.

    Args:
        counted: [contexts, entries]; rows: the frequencies of the tables by context, likewise.
        static: probabilities [entries] of the static table.
    """
    # The static table is smoothed as weakly as those by context, so that the comparison is fair.
    one = _frequencies(_smooth(counted.sum(0), static, CONTEXT_PRIOR))
    saved = (counted * np.log2(rows / one)).sum()
    # Subtract a BIC penalty to offset overfitting: log2(n) / 2 bits for each fitted number.
    fitted = (counted > 0).sum() - (counted.sum(0) > 0).sum()
    return float(saved - 0.5 * np.log2(max(counted.sum(), 1)) * fitted)


def _smooth(
    counted: NDArray[np.int64], prior: NDArray[np.float64], weight: float
) -> NDArray[np.float64]:
    """Probabilities of counts, with `weight` symbols of a prior added."""
    return (counted + weight * prior) / (counted.sum() + weight * prior.sum())


def _frequencies(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers in proportion to probabilities, each 1 or more, with the sum 2^16."""
    frequencies: NDArray[np.int64] = np.maximum(1, np.rint(probabilities * 65536)).astype(np.int64)
    while (excess := int(frequencies.sum()) - 65536) != 0:
        most = frequencies.argmax()
        frequencies[most] -= min(excess, int(frequencies[most]) - 1)
    return frequencies


def _cdf(frequencies: NDArray[np.int64]) -> list[int]:
    return [0, *np.cumsum(frequencies).tolist()]
