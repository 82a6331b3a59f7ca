"""The command-line options of a service, and its settings from them.

`cloud-serve` and the Ray application share them.

Always holds: importing this imports nothing heavy.
"""

import argparse

from ..options import add_engine_options, number, thread_count
from .settings import Settings

LOG_LEVELS = {"requests": "INFO", "refusals": "WARNING", "failures": "ERROR"}  # of --log
_MAX_QUEUE = 1_000_000  # images
_MAX_MS = 86_400_000  # a day


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `settings_of` reads, and --log."""
    parser.add_argument(
        "--bundle",
        action="append",
        metavar="DIR",
        help="a bundle, or a folder of bundles; may be given several times "
        "(default: $EDGECLOUD_BUNDLE, else bundles/ours_n4)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file with one token per line; each request must carry one of them",
    )
    _add_queue_options(parser)
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="threads of the cloud graph (default: one per core)",
    )
    add_engine_options(parser)
    parser.add_argument(
        "--log",
        default="requests",
        choices=LOG_LEVELS,
        help="a log line for each request, for those that are refused or fail, "
        "or only for those that fail (default: requests)",
    )


def _add_queue_options(parser: argparse.ArgumentParser) -> None:
    """Options of the queue, its batches, and its deadlines."""
    parser.add_argument(
        "--max-batch",
        type=number(int, 1, 4096),
        default=8,
        metavar="N",
        help="images in one graph call (default: 8)",
    )
    parser.add_argument(
        "--max-wait-ms",
        type=number(float, 0, _MAX_MS),
        default=2,
        metavar="MS",
        help="when idle, wait this long for more requests (default: 2)",
    )
    parser.add_argument(
        "--max-queue",
        type=number(int, 1, _MAX_QUEUE),
        default=128,
        metavar="N",
        help="images that may be admitted and not yet answered (default: 128)",
    )
    parser.add_argument(
        "--deadline-ms",
        type=number(float, 1, _MAX_MS),
        default=2000,
        metavar="MS",
        help="longest time from the admission of a request to its graph call (default: 2000)",
    )
    parser.add_argument(
        "--drain-ms",
        type=number(float, 0, _MAX_MS),
        default=10_000,
        metavar="MS",
        help="on SIGTERM, time for admitted requests to be answered (default: 10000)",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings from the options of `add_service_options`."""
    return Settings(
        bundles=tuple(args.bundle or ()),
        token_file=args.token_file,
        threads=args.threads,
        provider=args.provider,
        precision=args.precision,
        max_batch=args.max_batch,
        max_wait_ms=args.max_wait_ms,
        max_queue=args.max_queue,
        deadline_ms=args.deadline_ms,
        drain_seconds=args.drain_ms / 1e3,
    )
