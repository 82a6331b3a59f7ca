"""Are byte budgets held, and what does holding them cost: a variable-rate bundle's edge half alone.

    python benchmarks/budgets.py --data DIR [--bundle bundles/ours_n4_vr] [--as-is] [--keep]

The edge graph runs once for each image. Its output then becomes a feature file at every whole
level, at every --max-bytes, and at every --target-bytes, in the order of the files. Given are

- for a level: the files' bytes, and how many files have fewer than at the level before;
- for the most bytes: the largest file, the mean, how many files are cut, which lack channels, and
  the milliseconds that the search takes on top of coding its result's level alone, one right after
  the other, in one thread;
- for a target: the mean.

`benchmarks/accuracy.py` says how many images are classified correctly at each of them.

Always holds: every file is decoded, and gives the symbols of its level and channels; no file has
more than the most bytes. The benchmark stops where this is not so.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import (
    RESULTS,
    BenchmarkError,
    add_output_options,
    as_json,
    header,
    markdown,
    new_parser,
    taken_evenly,
    write_record,
)
from benchmarks.shares import spread
from benchmarks.timing import milliseconds
from export.images import Reading, unlabelled_paths
from runtime import EdgeEncoder
from runtime.codec.budget import LatentCoder
from runtime.codec.bundle import Bundle
from runtime.codec.feature_file import MAX_LEVEL, parse
from runtime.codec.rates import step_of
from runtime.errors import EdgeCloudError
from runtime.options import number
from training.folders import Damage, DataError

MOST_BYTES = (51, *range(100, 1201, 100))
TARGETS = (250, 425, 535, 700, 860, 1140)
_LARGEST = 1 << 20  # to ask for


@dataclass
class _Found:
    """The files of one level or budget: their bytes, how many are cut, and a search's seconds."""

    sizes: list[int] = field(default_factory=list)
    cut: int = 0
    on_top: list[float] = field(default_factory=list)

    def add(self, bundle: Bundle, latent: NDArray[np.float32], data: bytes) -> None:
        """Count a file. Raises BenchmarkError if it does not hold the image's symbols."""
        file = parse(data)
        assert bundle.rates is not None
        assert file.step is not None
        symbols, decoded = bundle.rates.symbols(latent, file.step), bundle.decode(data)
        if file.kept is not None:
            symbols[~decoded.any((1, 2))] = 0
            self.cut += 1
        if not np.array_equal(decoded, symbols):
            raise BenchmarkError(f"a file of {len(data)} bytes does not hold the image's symbols")
        self.sizes.append(len(data))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record. Raises BenchmarkError, DataError, EdgeCloudErrors, OSError."""
    streams = {size: EdgeEncoder(args.bundle, 1, target_bytes=size) for size in args.target_bytes}
    encoder = next(iter(streams.values()))
    bundle, profile = encoder.bundle, encoder.profile
    levels = {level: _Found() for level in range(MAX_LEVEL + 1)}
    most, targets = ({size: _Found() for size in of} for of in (args.max_bytes, streams))
    reading = Reading(args.as_is, Damage(False), bundle.manifest.preprocessing)
    paths = taken_evenly(unlabelled_paths(args.data), args.images)
    for path in tqdm(paths, unit="image", disable=not sys.stderr.isatty()):
        pixels = reading.pixels(path)
        assert pixels is not None  # a damaged image has ended the command
        latent, (height, width, _) = encoder.graph_output(pixels[None])[0], pixels.shape
        coder = LatentCoder(bundle, latent, height, width, profile)
        for level, found in levels.items():
            found.add(bundle, latent, coder.at(step_of(level)))
        for size, found in most.items():
            found.add(bundle, latent, _search(coder, size, found))
        for size, found in targets.items():
            found.add(bundle, latent, streams[size].encode_output(latent, height, width))
    manifest = bundle.manifest
    return {
        **header("budgets", 1),
        "model": manifest.model,
        "lmb": manifest.lmb,
        "weights": manifest.weights,
        "bundle": manifest.fingerprint.hex()[:8],
        "data": "/".join(args.data.resolve().parts[-2:]),
        "images": len(paths),
        "as_is": args.as_is,
        "profile": profile.title,
        "levels": _levels(levels),
        "max_bytes": [_most(size, found) for size, found in most.items()],
        "target_bytes": [
            {"target_bytes": size, "mean": float(np.mean(found.sizes))}
            for size, found in targets.items()
        ],
    }


def _search(coder: LatentCoder, most: int, found: _Found) -> bytes:
    """The file of at most `most` bytes; notes what it takes on top of its level alone.

    Raises BenchmarkError for a file that is too large.
    """
    start = time.perf_counter()
    data = coder.within(most)
    searched = time.perf_counter()
    file = parse(data)
    assert file.step is not None
    again = time.perf_counter()
    coder.at(file.step)
    found.on_top.append((searched - start) - (time.perf_counter() - again))
    if len(data) > most:
        raise BenchmarkError(f"a file of {len(data)} bytes where {most} were allowed")
    return data


def _levels(found: dict[int, _Found]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    before: Sequence[int] = ()
    for level, files in found.items():
        smaller = sum(now < then for now, then in zip(files.sizes, before, strict=False))
        rows.append({"level": level, "bytes": spread(files.sizes), "smaller": smaller})
        before = files.sizes
    return rows


def _most(size: int, found: _Found) -> dict[str, Any]:
    return {
        "max_bytes": size,
        "largest": max(found.sizes),
        "mean": float(np.mean(found.sizes)),
        "cut": found.cut,
        "on_top_ms": milliseconds(found.on_top),
    }


def text(record: dict[str, Any]) -> str:
    """The record as two tables and a line."""
    targets = "; ".join(
        f"{one['mean']:.1f} for {one['target_bytes']}" for one in record["target_bytes"]
    )
    return f"{levels_table(record)}\n\n{most_table(record)}\n\nmean bytes: {targets}"


def levels_table(record: dict[str, Any]) -> str:
    """The levels as a Markdown table."""
    return markdown(
        ["level", "mean bytes", "5th to 95th percentile", "files smaller than a level lower"],
        [
            [
                f"{one['level']}",
                f"{one['bytes']['mean']:.0f}",
                f"{one['bytes']['p5']:.0f} to {one['bytes']['p95']:.0f}",
                f"{one['smaller']}",
            ]
            for one in record["levels"]
        ],
        align="r",
    )


def most_table(record: dict[str, Any]) -> str:
    """The budgets of --max-bytes as a Markdown table."""
    return markdown(
        ["most bytes", "largest file", "mean", "cut files", "search, ms on top", "p95", "p99"],
        [
            [
                f"{one['max_bytes']}",
                f"{one['largest']}",
                f"{one['mean']:.0f}",
                f"{one['cut']}",
                *(f"{one['on_top_ms'][key]:.2f}" for key in ("median", "p95", "p99")),
            ]
            for one in record["max_bytes"]
        ],
        align="r",
    )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="DIR", help="a folder of images")
    add(
        "--bundle",
        type=Path,
        default=Path("bundles/ours_n4_vr"),
        metavar="DIR",
        help="a variable-rate one (default: bundles/ours_n4_vr)",
    )
    add("--as-is", action="store_true", help="take the images' pixels as they are")
    add(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="how many images, evenly spread (default: all)",
    )
    for name, default in (("max", MOST_BYTES), ("target", TARGETS)):
        add(
            f"--{name}-bytes",
            type=number(int, 1, _LARGEST),
            nargs="+",
            default=default,
            metavar="N",
            help=f"default: {', '.join(str(size) for size in default)}",
        )
    add_output_options(parser, "budgets.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record = measure(args)
        if args.keep:
            write_record(RESULTS / "budgets.json", record)
    except (BenchmarkError, DataError, EdgeCloudError, ValueError, OSError) as error:
        print(f"budgets: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
