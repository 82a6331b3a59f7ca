"""edge-encode: images in, feature files out, or one Parquet file of them; a single image or whole folders.

Always holds: an image that fails stops no other, and leaves no file and no row; results come in the order of the
images; only as many are under way as the workers need, however many there are.
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from collections import deque
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

from . import __version__
from .command import command
from .edge_files import Job, TargetError, find, printable, to_files, to_rows
from .errors import EdgeCloudError, ImageFileTooLargeError
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .edge import EdgeEncoder

    Result = tuple[dict[str, Any], bytes | None]  # what is reported, and the feature file if there is a new one

T = TypeVar("T")
R = TypeVar("R")
EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
_MAX_STDIN_BYTES = 256 << 20  # larger than any image file that is decoded; more is not read
_AHEAD = 4  # images under way for each worker, so that a large one does not keep the others waiting


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
    parser.add_argument("--pack", metavar="FILE.parquet", help="instead of -o: one Parquet file of all feature files")
    parser.add_argument("--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4")
    parser.add_argument("--as-is", action="store_true", help="do not resize to 224x224; crop to multiples of 8")
    parser.add_argument("--fast-jpeg", action="store_true", help="decode large JPEGs at a fraction of their size: pixels differ a little")
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write small files: fewer bytes for some microseconds more (default: as the bundle says)",
    )
    parser.add_argument("--resume", action="store_true", help="skip images whose feature files of this bundle are there")
    parser.add_argument("--workers", type=int, metavar="N", help="encode so many images at a time (default: the cores and one more)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of the encoder graph (default: one a core, shared by the workers)"
    )
    add_engine_options(parser, "the images are encoded as well if there is an -o or --pack")
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


@command("edge-encode")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for option, value in (("--threads", args.threads), ("--workers", args.workers)):
        if value is not None and value < 1:
            parser.error(f"{option} {value} is not a number from 1 up")
    if args.output is None and args.pack is None and not args.tune:
        parser.error("name where the feature files go with -o or --pack")
    if args.pack is not None and (args.output is not None or args.resume):
        parser.error("--pack writes one file, whole or not at all: leave out -o and --resume")
    if args.output == "-" and args.json:
        parser.error("standard output carries the feature file: use --json with -o FILE")
    jobs: list[Job] = []
    try:
        found = find(args.images)
        if args.pack is not None:
            jobs = to_rows(found)
        elif args.output is not None:
            jobs = to_files(args.images, found, args.output)
    except TargetError as error:
        parser.error(str(error))
    except (EdgeCloudError, OSError) as error:
        print(f"edge-encode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    # With the feature file on standard output, the report goes to standard error.
    report: IO[str] = sys.stderr if args.output == "-" else sys.stdout
    # After the usage is checked: numpy and onnxruntime take a while.
    without_blas_threads()
    from .edge import EdgeEncoder

    # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    # One more than the cores: now and then a worker waits for the disk.
    workers = max(1, min(args.workers or cores() + 1, len(jobs)))
    threads = args.threads or (max(1, cores() // workers) if workers > 1 else None)
    try:
        if args.tune:
            _tune(args, [image for image, _ in found[:8]], report)
        encoder = EdgeEncoder(args.bundle, threads, args.small, args.provider, args.precision, args.fast_jpeg, workers)
        start = time.perf_counter()
        counts = encode_all(encoder, jobs, workers, report, args.as_is, args.resume, args.pack, args.json)
    except (EdgeCloudError, OSError) as error:
        print(f"edge-encode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    if len(jobs) > 1:
        rate = counts["encoded"] / (time.perf_counter() - start)
        summary = f"{', '.join(f'{count} {status}' for status, count in counts.items())}; {rate:.1f} images/s"
        print(summary, file=sys.stderr if args.json else report)
    return EXIT_FAILURE if counts["failed"] else EXIT_DONE


def encode_all(
    encoder: "EdgeEncoder",
    jobs: list[Job],
    workers: int,
    report: IO[str],
    as_is: bool = False,
    resume: bool = False,
    pack: str | None = None,
    as_json: bool = False,
) -> dict[str, int]:
    """Encode to files, or to a pack, and report each image; gives how many were encoded, skipped, and failed.

    Raises MissingExtraError, and OSError for a pack that cannot be written.
    """
    packing: Any = nullcontext()
    if pack is not None:
        from .parquet import pack_writer

        Path(pack).parent.mkdir(parents=True, exist_ok=True)
        packing = pack_writer(pack, encoder.bundle)
    counts = {"encoded": 0, "skipped": 0, "failed": 0}
    work = partial(_try, encoder, as_is=as_is, resume=resume, to_file=pack is None)
    with packing as write_row, Progress(len(jobs), "image") as progress:
        for result, data in in_order(work, jobs, workers):
            counts[result["status"]] += 1
            progress.advance()
            if write_row and data is not None:
                write_row(result["output"], data, result["width"], result["height"])
            if result["status"] == "failed":
                progress.say(f"edge-encode: {printable(result['error'])}", sys.stderr)
            if as_json:
                progress.say(json.dumps(result), report)
            elif result["status"] == "encoded" and not (progress.shown and report.isatty()):
                progress.say(printable(_line(result)), report)
    return counts


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result['image']} -> {'standard output' if result['output'] == '-' else result['output']}: {result['bytes']} bytes, "
        f"{result['bpp']:.3f} bpp at {result['width']}x{result['height']}, {result['milliseconds']['total']:.1f} ms"
    )


def without_blas_threads() -> None:
    """Before numpy is imported: nothing here multiplies matrices in it, and its threads for that spin as they start."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: "Callable[[T], R]", jobs: "Sequence[T]", workers: int) -> "Iterator[R]":
    """Results in the order of the jobs, a few of which are under way at a time."""
    if workers < 2:
        yield from map(work, jobs)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _try(encoder: "EdgeEncoder", job: Job, as_is: bool, resume: bool, to_file: bool) -> "Result":
    image, output = job
    try:
        if resume and encoder.wrote(output, as_is):
            return {"status": "skipped", "image": image, "output": output}, None
        return _encode(encoder, image, output, as_is, to_file)
    except (EdgeCloudError, OSError) as error:
        return {"status": "failed", "image": image, "error": str(error)}, None
    except MemoryError:
        return {"status": "failed", "image": image, "error": f"{image} does not fit the memory: make it smaller first"}, None


def _tune(args: argparse.Namespace, images: list[str], report: IO[str]) -> None:
    from .bundle import Bundle, default_bundle
    from .preprocess import preprocess
    from .tune import table, tune

    bundle = Bundle.load(args.bundle or default_bundle())
    result = tune(bundle, "edge", [preprocess(image, args.as_is)[None] for image in images], args.threads)
    print(json.dumps(result) if args.json else table(result), file=report)


def _encode(encoder: "EdgeEncoder", image: str, output: str, as_is: bool, to_file: bool) -> "Result":
    from .files import write_atomically
    from .preprocess import preprocess

    clock = [time.perf_counter()]
    pixels = preprocess(standard_input() if image == "-" else image, as_is, encoder.fast_jpeg)
    clock.append(time.perf_counter())
    symbols = encoder.symbols(pixels[None])[0]
    clock.append(time.perf_counter())
    height, width = pixels.shape[:2]
    data = encoder.pack(symbols, height, width)
    clock.append(time.perf_counter())
    if to_file and output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif to_file:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, data)
    clock.append(time.perf_counter())
    stages = [round(1e3 * (after - before), 3) for before, after in itertools.pairwise(clock)]
    milliseconds = dict(zip(("preprocess", "graph", "coder", "write"), stages, strict=True))
    milliseconds["total"] = round(1e3 * (clock[-1] - clock[0]), 3)
    result = {
        "status": "encoded",
        "image": image,
        "output": output,
        "bytes": len(data),
        "bpp": 8 * len(data) / (height * width),
        "width": width,
        "height": height,
        "milliseconds": milliseconds,
    }
    return result, data


def standard_input() -> BinaryIO:
    """All that standard input holds. Raises ImageFileTooLargeError."""
    from io import BytesIO

    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise ImageFileTooLargeError(f"standard input has more than {_MAX_STDIN_BYTES} bytes, no image is so large: make it smaller first")
    return BytesIO(data)


if __name__ == "__main__":
    sys.exit(main())
