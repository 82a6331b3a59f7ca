"""What every benchmark shares: paths, options, records, and Markdown tables.

Always holds: a record names its benchmark, machine, threads and commit, and says whether the commit
had uncommitted changes. It is written whole or not at all.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.machine import commit, cores, describe
from runtime import __version__
from runtime.codec import strict_json
from runtime.files import write_atomically
from runtime.options import number

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
PICTURE = PROJECT / "docs" / "demo" / "golf_ball.jpg"

T = TypeVar("T")


class BenchmarkError(RuntimeError):
    """An output is wrong, or something that the benchmark needs is missing."""


def image_size(text: str) -> str:
    """An argparse type: 640x480, at most 16384 a side."""
    if re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", text) and all(
        1 <= side <= 16384 for side in width_and_height(text)
    ):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not like 640x480, from 1 to 16,384 a side")


def width_and_height(size: str) -> tuple[int, int]:
    """`640x480` -> (640, 480)."""
    width, _, height = size.partition("x")
    return int(width), int(height)


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser described by the first paragraph of a script's docstring."""
    return argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])


def add_threads_option(parser: argparse.ArgumentParser, of: str) -> None:
    """`--threads N`: the threads `of` something; one for each core unless given."""
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help=f"threads of {of} (default: one for each core)",
    )


def add_runs_option(
    parser: argparse.ArgumentParser, of: str, default: int, least: int, name: str = "--runs"
) -> None:
    """`--runs N`: how often each of something is timed."""
    parser.add_argument(
        name,
        type=number(int, least, 1_000_000),
        default=default,
        metavar="N",
        help=f"timed runs of each {of} (default: {default})",
    )


def add_output_options(parser: argparse.ArgumentParser, keep: str | None = None) -> None:
    """`--keep` (for a benchmark that writes the files `keep`), `--json` and `--version`."""
    if keep:
        parser.add_argument("--keep", action="store_true", help=f"write benchmarks/results/{keep}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def header(benchmark: str, threads: int) -> dict[str, Any]:
    """What every record begins with."""
    return {"benchmark": benchmark, "machine": describe(threads), "commit": commit()}


def as_json(record: dict[str, Any]) -> str:
    """A record as its file has it. Raises ValueError for a number that is not finite."""
    return json.dumps(record, indent=1, allow_nan=False)


def read_record(name: str) -> dict[str, Any]:
    """A kept record by its name, `latency` for results/latency.json. Raises OSError, ValueError."""
    record: dict[str, Any] = strict_json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return record


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a record, and say so if its commit had uncommitted changes. Raises OSError."""
    write_atomically(file, f"{as_json(record)}\n".encode())
    if (record.get("commit") or "").endswith("+"):
        progress(f"note: uncommitted changes, so {file.name} has the commit {record['commit']}")


def progress(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def taken_evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items, evenly spread; all if there are no more, or without a limit."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """A Markdown table; `align` has an l or r for each column, and r for those beyond its end."""
    rule = "".join("|---" if side == "l" else "|--:" for side in align.ljust(len(heads), "r"))
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], f"{rule}|", *lines[1:]])
