"""What tables chosen by already coded neighbours would save, on real symbols: entropies, not files.

    python benchmarks/contexts.py --train DIR --held DIR [--as-is] [--images N] [--json] [--keep]

For each way to choose a symbol's table, tables are fitted to the images of one folder and the mean
ideal code length of an image is taken over the images of another, against one static table for each
channel. Small files (docs/FORMAT.md) choose by "5 levels above x 5 left".

Always holds: a channel whose symbols are nearly all zero (fewer than one in 2,000 is not) keeps its
static table. Give two folders that share no image.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import (
    RESULTS,
    add_output_options,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from export.counts import symbols_of
from export.images import Reading
from runtime.codec.bundle import EDGE_GRAPH, default_bundle
from runtime.errors import EdgeCloudError
from runtime.options import number
from training.folders import images_below

REACH = 40  # larger symbols are counted as this
PRIOR = 8  # symbols' worth of the static table in each table, as in export.counts
LIVE = 0.0005  # share of symbols that are not zero, in channels whose table is chosen
Planes = NDArray[np.int32]  # a channel's symbols, [images, rows, columns]
# A channel's planes and those of the live channel before it -> the number of each symbol's table.
Choose = Callable[[Planes, Planes], Planes]


def moved(planes: Planes, down: int, right: int) -> Planes:
    """The symbol `down` rows above and `right` columns left (-1: to the right); 0 outside."""
    out = np.zeros_like(planes)
    rows, columns = planes.shape[1:]
    out[:, down:, max(right, 0) : columns + min(right, 0)] = planes[
        :, : rows - down, max(-right, 0) : columns - max(right, 0)
    ]
    return out


def banded(values: Planes, *bounds: int) -> Planes:
    """The number of each value's band; bands end at -bounds and at bounds, and one is around 0."""
    return np.digitize(values, sorted([-b + 1 for b in bounds] + list(bounds))).astype(np.int32)


def choices() -> dict[str, Choose]:
    """The compared ways to choose a table, by name; the first is one static table."""

    def above(x: Planes) -> Planes:
        return moved(x, 1, 0)

    def left(x: Planes) -> Planes:
        return moved(x, 0, 1)

    def size(x: Planes) -> Planes:
        return np.abs(above(x)) + np.abs(left(x))

    def grid(x: Planes, *bounds: int) -> Planes:
        return (2 * len(bounds) + 1) * banded(above(x), *bounds) + banded(left(x), *bounds)

    return {
        "one table": lambda x, p: np.zeros_like(x),
        "sizes above + left, 2 classes": lambda x, p: np.digitize(size(x), [1]),
        "sizes above + left, 3 classes": lambda x, p: np.digitize(size(x), [1, 3]),
        "sizes above + left, 4 classes": lambda x, p: np.digitize(size(x), [1, 2, 4]),
        "previous channel, 3 classes": lambda x, p: banded(p, 1),
        "above + left, 3 classes": lambda x, p: banded(above(x) + left(x), 1),
        "above + left, 5 classes": lambda x, p: banded(above(x) + left(x), 1, 2),
        "above + left, 7 classes": lambda x, p: banded(above(x) + left(x), 1, 2, 3),
        "3 levels above x 3 left": lambda x, p: grid(x, 1),
        "5 levels above x 5 left": lambda x, p: grid(x, 1, 2),
        "7 levels above x 7 left": lambda x, p: grid(x, 1, 2, 3),
        "5 x 5, x 3 above to the right": lambda x, p: (
            3 * grid(x, 1, 2) + banded(moved(x, 1, -1), 1)
        ),
        "5 x 5, x 3 previous channel": lambda x, p: 3 * grid(x, 1, 2) + banded(p, 1),
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
    """Mean bytes an image for each choice; both are symbols [images, channels, rows, columns]."""
    live = [c for c in range(train.shape[1]) if (train[:, c] != 0).mean() > LIVE]
    rows: list[dict[str, float | str]] = []
    for name, choose in choices().items():
        bits = 0.0
        for channel in range(train.shape[1]):
            planes = [one[:, channel].astype(np.int32) for one in (train, held)]
            before = max((c for c in live if c < channel), default=None)
            numbers = []
            for own, one in zip(planes, (train, held), strict=True):
                previous = np.zeros_like(own) if before is None else one[:, before].astype(np.int32)
                numbers.append(choose(own, previous) if channel in live else np.zeros_like(own))
            bits += code_length((numbers[0], planes[0]), (numbers[1], planes[1]))
        size = bits / 8 / len(held)
        first = float(rows[0]["ideal_bytes"]) if rows else size
        rows.append({"tables": name, "ideal_bytes": size, "change": size / first - 1})
    return rows


def table(rows: list[dict[str, float | str]]) -> str:
    """The choices as a Markdown table."""
    cells = [
        [str(row["tables"]), f"{row['ideal_bytes']:.1f}", f"{row['change']:+.1%}"] for row in rows
    ]
    return markdown(["tables chosen by", "ideal bytes an image", "change"], cells)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
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
        help="at most so many of each folder, evenly spread (default: 1000)",
    )
    add_output_options(parser, keep="contexts.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    record = header("contexts", 1)
    symbols = []
    try:
        for folder in (args.train, args.held):
            paths = images_below(folder)
            paths = paths[:: -(-len(paths) // args.images)]
            progress = tqdm(paths, folder.name, unit="image", disable=not sys.stderr.isatty())
            planes = symbols_of(args.bundle / EDGE_GRAPH, progress, Reading(args.as_is))
            symbols.append(np.concatenate(list(planes)))
        counts = {"train": len(symbols[0]), "held": len(symbols[1])}
        record |= {"images": counts, "results": measure(*symbols)}
        if args.keep:
            write_record(RESULTS / "contexts.json", record)
    except (EdgeCloudError, ValueError, OSError) as error:
        print(f"contexts: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(as_json(record))
        return 0
    print(f"tables fitted to {counts['train']} images, judged on {counts['held']} others\n")
    print(table(record["results"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
