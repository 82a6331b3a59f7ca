"""Options that several commands share, and the checks of numbers in options.

Always holds: every number has a range, and a value outside it is a usage error that names it.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress

_MOST_THREADS = 4096


def number(kind: type, least: float, most: float) -> Callable[[str], float]:
    """An argparse type for an int or a float (`kind`) from `least` to `most`, both included."""
    what = "a whole number" if kind is int else "a number"

    def parse(text: str) -> float:
        with suppress(ValueError):
            value: float = kind(text)
            if least <= value <= most:  # not true of nan
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least:,} to {most:,}")

    return parse


def thread_count(text: str) -> int:
    """An argparse type for a number of threads, 1 to 4096."""
    return int(number(int, 1, _MOST_THREADS)(text))


def add_engine_options(parser: argparse.ArgumentParser, after: str | None = None) -> None:
    """Add --provider and --precision; with `after`, also --tune, whose help ends in that text."""
    providers = "cpu, openvino, native, or another provider of an engine"
    parser.add_argument(
        "--provider",
        default="auto",
        metavar="NAME",
        help=f"{providers} (default: what --tune chose, else cpu)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="NAME",
        help="fp32, bf16 or int8 (default: what --tune chose, else fp32)",
    )
    if after:
        parser.add_argument(
            "--tune",
            action="store_true",
            help=f"measure what is there on this device and keep the fastest choice; {after}",
        )
