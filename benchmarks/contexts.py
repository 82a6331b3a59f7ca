"""What tables chosen by already coded neighbours would save, on real symbols: entropies, not files.

    python benchmarks/contexts.py --train DIR --held DIR [--as-is] [--images N] [--json]

Tables are fitted to images from one folder and judged on images from another: for each way to
choose a symbol's table, the mean ideal code length of an image over all channels, against one
static table a channel. Small files (docs/FORMAT.md) are coded the way "5 levels above x 5 left".

Always holds: the two folders share no file; a channel whose symbols are nearly all zero (under one
in 2,000 others) keeps its static table, whatever the way.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.machine import describe
from export.counts import symbols_of
from export.images import Reading
from runtime import __version__
from runtime.codec.bundle import EDGE_GRAPH, default_bundle
from runtime.errors import EdgeCloudError
from runtime.options import number
from training.folders import images_below

REACH = 40  # symbols beyond are counted as this
PRIOR = 8  # as in export.counts
Planes = NDArray[np.int32]  # [images, rows, columns]


def moved(planes: Planes, down: int, right: int) -> Planes:
    """The symbol so far above and to the left (right: -1 is above to the right); 0 outside."""
    out = np.zeros_like(planes)
    rows, columns = planes.shape[1:]
    out[:, down:, max(right, 0) : columns + min(right, 0)] = planes[
        :, : rows - down, max(-right, 0) : columns - max(right, 0)
    ]
    return out


def banded(values: Planes, *bounds: int) -> Planes:
    """Bands between -bounds and +bounds, around 0."""
    return np.digitize(values, sorted([-b + 1 for b in bounds] + list(bounds))).astype(np.int32)


def ways() -> dict[str, Callable[[Planes, Planes], Planes]]:
    """From a channel's planes and those of the live channel before it to the number of each symbol's table."""

    def above(x: Planes) -> Planes:
        return moved(x, 1, 0)

    def left(x: Planes) -> Planes:
        return moved(x, 0, 1)

    def size(x: Planes) -> Planes:
        return np.abs(above(x)) + np.abs(left(x))

    def both(x: Planes) -> Planes:
        return 5 * banded(above(x), 1, 2) + banded(left(x), 1, 2)

    return {
        "one table": lambda x, p: np.zeros_like(x),
        "sizes above + left, 2 classes": lambda x, p: np.digitize(size(x), [1]),
        "sizes above + left, 3 classes": lambda x, p: np.digitize(size(x), [1, 3]),
        "sizes above + left, 4 classes": lambda x, p: np.digitize(size(x), [1, 2, 4]),
        "previous channel, 3 classes": lambda x, p: banded(p, 1),
        "above + left, 3 classes": lambda x, p: banded(above(x) + left(x), 1),
        "above + left, 5 classes": lambda x, p: banded(above(x) + left(x), 1, 2),
        "above + left, 7 classes": lambda x, p: banded(above(x) + left(x), 1, 2, 3),
        "3 levels above x 3 left": lambda x, p: 3 * banded(above(x), 1) + banded(left(x), 1),
        "5 levels above x 5 left": lambda x, p: both(x),
        "7 levels above x 7 left": lambda x, p: (
            7 * banded(above(x), 1, 2, 3) + banded(left(x), 1, 2, 3)
        ),
        "5 x 5, x 3 above to the right": lambda x, p: 3 * both(x) + banded(moved(x, 1, -1), 1),
        "5 x 5, x 3 previous channel": lambda x, p: 3 * both(x) + banded(p, 1),
    }


def code_length(train: tuple[Planes, Planes], held: tuple[Planes, Planes]) -> float:
    """Bits of all held symbols; each pair is (numbers of tables, symbols)."""
    tables = 1 + max(int(train[0].max()), int(held[0].max()))
    counts = np.zeros((tables, 2 * REACH + 1))
    np.add.at(counts, (train[0].ravel(), np.clip(train[1], -REACH, REACH).ravel() + REACH), 1)
    static = counts.sum(0) + 0.05
    counts += PRIOR * static / static.sum()
    bits = -np.log2(counts / counts.sum(1, keepdims=True))
    return float(bits[held[0].ravel(), np.clip(held[1], -REACH, REACH).ravel() + REACH].sum())


def measure(train: NDArray[np.int16], held: NDArray[np.int16]) -> list[dict[str, float | str]]:
    """Mean bytes an image by way; train and held are symbols [images, channels, rows, columns]."""
    live = [c for c in range(train.shape[1]) if (train[:, c] != 0).mean() > 0.0005]
    rows: list[dict[str, float | str]] = []
    for name, way in ways().items():
        total = 0.0
        for channel in range(train.shape[1]):
            planes, none = (
                [one[:, channel].astype(np.int32) for one in (train, held)],
                channel not in live,
            )
            before = [c for c in live if c < channel]
            previous = [
                one[:, before[-1]].astype(np.int32) if before else np.zeros_like(own)
                for one, own in zip((train, held), planes, strict=True)
            ]
            numbers = [
                np.zeros_like(own) if none else way(own, p)
                for own, p in zip(planes, previous, strict=True)
            ]
            total += code_length((numbers[0], planes[0]), (numbers[1], planes[1]))
        size = total / 8 / len(held)
        rows.append(
            {
                "tables": name,
                "ideal_bytes": size,
                "change": size / float(rows[0]["ideal_bytes"]) - 1 if rows else 0.0,
            }
        )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--train", required=True, type=Path, metavar="DIR", help="images to fit tables to"
    )
    parser.add_argument(
        "--held", required=True, type=Path, metavar="DIR", help="images to judge them on"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=default_bundle(),
        metavar="DIR",
        help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4",
    )
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument(
        "--images",
        type=number(int, 1, 10_000_000),
        default=1000,
        metavar="N",
        help="of each folder at most, evenly spread (default: 1000)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    symbols, reading = [], Reading(args.as_is)
    try:
        for folder in (args.train, args.held):
            paths = images_below(folder)
            paths = paths[:: -(-len(paths) // args.images)]
            progress = tqdm(paths, folder.name, unit="image", disable=not sys.stderr.isatty())
            symbols.append(
                np.concatenate(list(symbols_of(args.bundle / EDGE_GRAPH, progress, reading)))
            )
        rows = measure(*symbols)
    except (EdgeCloudError, ValueError, OSError) as error:
        print(f"contexts: {error}", file=sys.stderr)
        return 1
    counts = {"train": len(symbols[0]), "held": len(symbols[1])}
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "contexts",
                    "machine": describe(1),
                    "images": counts,
                    "results": rows,
                },
                indent=1,
                allow_nan=False,
            )
        )
    else:
        print(f"tables fitted to {counts['train']} images, judged on {counts['held']} others\n")
        print("| tables | ideal bytes an image | change |\n|---|--:|--:|")
        for row in rows:
            print(f"| {row['tables']} | {row['ideal_bytes']:.1f} | {row['change']:+.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
