"""edge-encode: images in, feature files out; one at a time or whole folders.

Always holds: an image that fails stops no other, and leaves no file; reports come in the order of the
images; memory does not grow with their number.
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from . import __version__
from .edge_files import TargetError, plan
from .errors import EdgeCloudError, ImageFileTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from io import BytesIO

    from .edge import EdgeEncoder

T = TypeVar("T")
R = TypeVar("R")
EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
_MAX_STDIN_BYTES = 256 << 20  # larger than any image file that is decoded; more is not read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-encode",
        description="Encode images to feature files.",
        epilog="Exit status: 0 done, 1 an image failed (the others are encoded), 2 wrong usage.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, folder, pattern in quotes, or - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE_OR_DIR",
        help="feature file, folder (gets a NAME.bin for each image, and the tree of a folder that is encoded), or - for standard output",
    )
    parser.add_argument("--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4")
    parser.add_argument("--as-is", action="store_true", help="do not resize to 224x224; crop to multiples of 8")
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write small files: fewer bytes for some microseconds more (default: as the bundle says)",
    )
    parser.add_argument("--resume", action="store_true", help="skip images whose feature files of this bundle are there")
    parser.add_argument("--workers", type=int, metavar="N", help="encode so many of several images at a time (default: one a core)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the encoder graph (default: one a core; one with workers)")
    add_engine_options(parser, "the images are encoded as well if there is an -o")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: bytes, bpp, milliseconds by stage")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_engine_options(parser: argparse.ArgumentParser, after: str | None = None) -> None:
    """Options of all commands; `after` is what a command that has --tune does after it."""
    providers = "cpu, openvino, or another that onnxruntime has here"
    parser.add_argument("--provider", default="auto", metavar="NAME", help=f"{providers} (default: what --tune chose, else cpu)")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="fp32, bf16 or int8 (default: what --tune chose, else fp32)")
    if after:
        parser.add_argument(
            "--tune", action="store_true", help=f"measure what is there on this device and keep the fastest choice; {after}"
        )


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for option, value in (("--threads", args.threads), ("--workers", args.workers)):
        if value is not None and value < 1:
            parser.error(f"{option} {value} is not a number from 1 up")
    if args.output is None and not args.tune:
        parser.error("name where the feature files go with -o")
    if args.output == "-" and args.json:
        parser.error("standard output carries the feature file: use --json with -o FILE")
    try:
        jobs = plan(args.images, args.output) if args.output is not None else []
    except TargetError as error:
        parser.error(str(error))
    except EdgeCloudError as error:
        print(f"edge-encode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    # With the feature file on standard output, the report goes to standard error.
    report: IO[str] = sys.stderr if args.output == "-" else sys.stdout
    # After the usage is checked: numpy and onnxruntime take a while.
    from .edge import EdgeEncoder

    # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    workers = min(args.workers or cores(), len(jobs))
    try:
        if args.tune:
            _tune(args, report)
        threads = args.threads or (1 if workers > 1 else None)
        encoder = EdgeEncoder(args.bundle, threads, args.small, args.provider, args.precision)
    except (EdgeCloudError, OSError) as error:
        print(f"edge-encode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    counts = {"encoded": 0, "skipped": 0, "failed": 0}
    start = time.perf_counter()
    for result in progress(in_order(lambda job: _try(encoder, *job, args.as_is, args.resume), jobs, workers), len(jobs)):
        counts[result["status"]] += 1
        if result["status"] == "failed":
            print(f"edge-encode: {result['error']}", file=sys.stderr)
        if args.json:
            print(json.dumps(result), file=report)
        elif result["status"] == "encoded":
            print(
                f"{result['image']} -> {'standard output' if result['output'] == '-' else result['output']}: {result['bytes']} bytes, "
                f"{result['bpp']:.3f} bpp at {result['width']}x{result['height']}, {result['milliseconds']['total']:.1f} ms",
                file=report,
            )
    if len(jobs) > 1 and not args.json:
        rate = counts["encoded"] / (time.perf_counter() - start)
        print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}; {rate:.1f} images/s", file=report)
    return EXIT_FAILURE if counts["failed"] else EXIT_DONE


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(results: "Iterator[T]", total: int) -> "Iterable[T]":
    """With a bar on a terminal where tqdm is installed, which the edge half does not ask for."""
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        return results
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    return tqdm(results, total=total, unit="image")


def in_order(work: "Callable[[T], R]", jobs: "Sequence[T]", workers: int) -> "Iterator[R]":
    """Results in the order of the jobs, a few of which are under way at a time."""
    if workers < 2:
        yield from map(work, jobs)
        return
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _try(encoder: "EdgeEncoder", image: str, target: Path | None, as_is: bool, resume: bool) -> dict[str, Any]:
    try:
        if resume and target and encoder.wrote(target):
            return {"status": "skipped", "image": image, "output": str(target)}
        return {"status": "encoded", **_encode(encoder, image, target, as_is)}
    except (EdgeCloudError, OSError) as error:
        return {"status": "failed", "image": image, "error": str(error)}


def source_of(image: str) -> "str | BytesIO":
    """What to decode for an argument: itself, or for - what standard input holds. Raises ImageFileTooLargeError."""
    if image != "-":
        return image
    from io import BytesIO

    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise ImageFileTooLargeError(f"standard input has more than {_MAX_STDIN_BYTES} bytes, no image is so large: make it smaller first")
    return BytesIO(data)


def _tune(args: argparse.Namespace, report: IO[str]) -> None:
    from .bundle import Bundle, default_bundle
    from .preprocess import preprocess
    from .tune import table, tune

    bundle = Bundle.load(args.bundle or default_bundle())
    result = tune(bundle, "edge", [preprocess(image, args.as_is)[None] for image in args.images[:8]], args.threads)
    print(json.dumps(result) if args.json else table(result), file=report)


def _encode(encoder: "EdgeEncoder", image: str, target: Path | None, as_is: bool) -> dict[str, Any]:
    from .files import write_atomically
    from .preprocess import preprocess

    clock = [time.perf_counter()]
    pixels = preprocess(source_of(image), as_is)
    clock.append(time.perf_counter())
    symbols = encoder.symbols(pixels[None])[0]
    clock.append(time.perf_counter())
    height, width = pixels.shape[:2]
    data = encoder.pack(symbols, height, width)
    clock.append(time.perf_counter())
    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    clock.append(time.perf_counter())
    stages = [round(1e3 * (after - before), 3) for before, after in itertools.pairwise(clock)]
    milliseconds = dict(zip(("preprocess", "graph", "coder", "write"), stages, strict=True))
    milliseconds["total"] = round(1e3 * (clock[-1] - clock[0]), 3)
    return {
        "image": image,
        "output": "-" if target is None else str(target),
        "bytes": len(data),
        "bpp": 8 * len(data) / (height * width),
        "width": width,
        "height": height,
        "milliseconds": milliseconds,
    }


if __name__ == "__main__":
    sys.exit(main())
