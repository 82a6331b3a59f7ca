"""edge-encode: images in, feature files out, or one Parquet file of them; a single image or whole folders.

Always holds: an image that fails stops no other, and leaves no file and no row; results come in the order of the
images; only as many are under way as the workers need, however many there are; no output takes the place of an input, and
nothing that is reported, or cannot be, stops the work.
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from collections import Counter
from contextlib import closing, nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import __version__
from ..engine.processor import cores
from ..errors import EdgeCloudError, ImageFileTooLargeError, OutputError
from ..files import check_folder, check_output, own_descriptor, refuse_same_files, write_atomically
from ..images.find import Job, TargetError, describe, find, to_files, to_rows
from ..options import add_engine_options, thread_count
from .command import EXIT_DONE, EXIT_FAILURE, command, explain, say, standard_output
from .command import standard_input as open_standard_input
from .progress import Progress
from .workers import map_ordered, without_blas_threads

if TYPE_CHECKING:
    from ..edge import EdgeEncoder

    Result = tuple[
        dict[str, Any], bytes | None
    ]  # what is reported, and the feature file if there is a new one
    Source = str | BytesIO | Exception  # an image's file, its bytes, or why it cannot be read

_MAX_STDIN_BYTES = 256 << 20  # larger than any image file that is decoded; more is not read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-encode",
        description="Encode images to feature files.",
        epilog="Exit status: 0 done, 1 an image failed (the others are encoded), 2 wrong usage.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder, pattern in quotes, or - for standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE_OR_DIR",
        help="feature file, folder (gets a NAME.bin for each image, and the tree of a folder that is encoded), or - for standard output",
    )
    parser.add_argument(
        "--pack",
        metavar="FILE.parquet",
        help="instead of -o: one Parquet file of all feature files, or - for standard output",
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="do not resize as the bundle says (to 224x224, most of them); crop to multiples of 8",
    )
    parser.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: pixels differ a little",
    )
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write small files: fewer bytes for some microseconds more (default: as the bundle says)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="skip images whose feature files of this bundle are there",
    )
    parser.add_argument(
        "--workers",
        type=thread_count,
        metavar="N",
        help="encode so many images at a time (default: the cores and one more)",
    )
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="threads of the encoder graph (default: one a core, shared by the workers)",
    )
    add_engine_options(parser, "the images are encoded as well if there is an -o or --pack")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: bytes, bpp, milliseconds by stage",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


@command("edge-encode")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    to_stdout = _check_usage(parser, args)
    passed_over: Counter[str] = Counter()
    jobs: list[Job] = []
    found = find(args.images, passed_over)
    try:
        if args.pack is not None:
            jobs = to_rows(found)
        elif args.output is not None:
            jobs = to_files(args.images, found, args.output)
    except TargetError as error:
        parser.error(str(error))
    if passed_over:
        say(
            json.dumps({"passed_over": passed_over}, allow_nan=False)
            if args.json
            else f"edge-encode: {describe(passed_over)}",
            sys.stderr,
        )
    # After the usage is checked: numpy and onnxruntime take a while.
    without_blas_threads()
    from ..codec.feature_file import Profile
    from ..edge import EdgeEncoder

    _check_outputs(args, [image for image, _ in found], [output for _, output in jobs])
    # With the feature file on standard output, the report goes to standard error.
    report: IO[str] | None = sys.stderr if to_stdout else sys.stdout
    # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    # One more than the cores: now and then a worker waits for the disk.
    workers = max(1, min(args.workers or cores() + 1, len(jobs)))
    threads = args.threads or (max(1, cores() // workers) if workers > 1 else None)
    if args.tune:
        _tune(args, [image for image, _ in found], report)
    profile = None if args.small is None else Profile.CONTEXT if args.small else Profile.STATIC
    encoder = EdgeEncoder(
        args.bundle, threads, profile, args.provider, args.precision, args.fast_jpeg, workers
    )
    start = time.perf_counter()
    counts = encode_all(
        encoder, jobs, workers, report, args.as_is, args.resume, args.pack, args.json
    )
    if len(jobs) > 1:
        rate = counts["encoded"] / (time.perf_counter() - start)
        summary = f"{', '.join(f'{count} {status}' for status, count in counts.items())}; {rate:.1f} images/s"
        say(summary, sys.stderr if args.json else report)
    return EXIT_FAILURE if counts["failed"] else EXIT_DONE


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether standard output carries what is encoded. Raises ClosedStreamError."""
    if args.output is None and args.pack is None and not args.tune:
        parser.error("name where the feature files go with -o or --pack")
    if args.pack is not None and (args.output is not None or args.resume):
        parser.error("--pack writes one file, whole or not at all: leave out -o and --resume")
    if "" in (args.output, args.pack):
        parser.error("the name of the output is empty: name a file or a folder")
    args.pack = "/dev/stdout" if args.pack == "-" else args.pack
    to_stdout = args.output == "-" or any(
        name and own_descriptor(name) == 1 for name in (args.output, args.pack)
    )
    if to_stdout and args.json:
        parser.error("standard output carries the feature file: use --json with -o FILE")
    if to_stdout:
        standard_output()
    return to_stdout


def _check_outputs(args: argparse.Namespace, images: list[str], targets: list[str]) -> None:
    """Before any work: that outputs replace no image and no file of the bundle, and can be written. Raises the OutputErrors."""
    from ..codec.bundle import bundle_files

    outputs = [args.pack] if args.pack is not None else targets
    refuse_same_files(outputs, [*images, *bundle_files(args.bundle)])
    if args.pack is not None or (len(targets) == 1 and targets[0] in (args.output, "-")):
        if outputs[0] != "-":
            check_output(outputs[0])
    elif args.output is not None:
        check_folder(args.output)


def encode_all(
    encoder: "EdgeEncoder",
    jobs: list[Job],
    workers: int,
    report: IO[str] | None,
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
        from ..bulk.parquet import pack_writer

        Path(pack).parent.mkdir(parents=True, exist_ok=True)
        packing = pack_writer(pack, encoder.bundle)
    counts = {"encoded": 0, "skipped": 0, "failed": 0}
    work = partial(_try, encoder, as_is=as_is, resume=resume, to_file=pack is None)
    with (
        packing as write_row,
        Progress(len(jobs), "image") as progress,
        closing(
            map_ordered(work, ((image, output, _source(image)) for image, output in jobs), workers)
        ) as results,
    ):
        for result, data in results:
            counts[result["status"]] += 1
            progress.advance()
            if write_row and data is not None:
                write_row(result["output"], data, result["width"], result["height"])
            if result["status"] == "failed":
                progress.say(f"edge-encode: {result['error']}", sys.stderr)
            if as_json:
                progress.say(json.dumps(result, allow_nan=False), report)
            elif result["status"] == "encoded" and not progress.hides(report):
                progress.say(_line(result), report)
    return counts


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result['image']} -> {'standard output' if result['output'] == '-' else result['output']}: {result['bytes']} bytes, "
        f"{result['bpp']:.3f} bpp at {result['width']}x{result['height']}, {result['milliseconds']['total']:.1f} ms"
    )


def _source(image: str) -> "Source":
    """Pipes and devices are read here, in the main thread: one that waits in another could not be interrupted."""
    try:
        return readable(image)
    except (EdgeCloudError, OSError, MemoryError) as error:
        return error


def _try(
    encoder: "EdgeEncoder", job: "tuple[str, str, Source]", as_is: bool, resume: bool, to_file: bool
) -> "Result":
    image, output, source = job
    try:
        if resume and Path(output).is_file() and encoder.is_current(output, as_is):
            return {"status": "skipped", "image": image, "output": output}, None
        if isinstance(source, Exception):
            raise source
        return _encode(encoder, image, source, output, as_is, to_file)
    except (EdgeCloudError, OSError, MemoryError) as error:
        reason = (
            f"{image} does not fit the memory: make it smaller first"
            if isinstance(error, MemoryError)
            else explain(error)
        )
        # Errors of a graph, an array or the output say nothing of the image.
        name = "standard input" if image == "-" else image
        return {
            "status": "failed",
            "image": image,
            "error": reason if name in reason else f"{name}: {reason}",
        }, None


def _tune(args: argparse.Namespace, images: list[str], report: IO[str] | None) -> None:
    from ..codec.bundle import Bundle, default_bundle
    from ..engine.tune import changed_symbols, readable_inputs, table, tune
    from ..images.preprocess import preprocess

    bundle = Bundle.load(args.bundle or default_bundle())
    inputs = readable_inputs(
        images,
        lambda image: preprocess(image, args.as_is, rule=bundle.manifest.preprocessing)[None],
    )
    result = tune(bundle, "edge", inputs, "symbols", changed_symbols, args.threads)
    say(json.dumps(result, allow_nan=False) if args.json else table(result), report)


def _encode(
    encoder: "EdgeEncoder",
    image: str,
    source: str | BytesIO,
    output: str,
    as_is: bool,
    to_file: bool,
) -> "Result":
    from ..images.preprocess import preprocess

    clock = [time.perf_counter()]
    pixels = preprocess(source, as_is, encoder.fast_jpeg, encoder.bundle.manifest.preprocessing)
    clock.append(time.perf_counter())
    symbols = encoder.symbols(pixels[None])[0]
    clock.append(time.perf_counter())
    height, width = pixels.shape[:2]
    data = encoder.encode_symbols(symbols, height, width)
    clock.append(time.perf_counter())
    if to_file:
        _write(output, data)
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


def _write(output: str, data: bytes) -> None:
    try:
        if output == "-":
            stream = standard_output()
            stream.write(data)
            stream.flush()
        else:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, data)
    except OSError as error:
        what = "standard output" if output == "-" else output
        reason = explain(error)
        raise OutputError(
            f"cannot write {reason if what in reason else f'{what}: {reason}'}"
        ) from error


def readable(image: str) -> str | BytesIO:
    """An image as its decoder can read it: a file by its name; and what is none, a pipe say, by what it holds.

    Raises ImageFileTooLargeError, ClosedStreamError, OSError.
    """
    if image == "-":
        return standard_input()
    # Not of Path, which raises for names that no file can have.
    if not os.path.exists(image) or Path(image).is_file() or Path(image).is_dir():  # noqa: PTH110
        return image
    with open(image, "rb", buffering=0) as stream:
        return _read_all(stream, image)


def standard_input() -> BytesIO:
    """All that standard input holds. Raises ImageFileTooLargeError, ClosedStreamError."""
    return _read_all(open_standard_input(), "standard input")


def _read_all(stream: IO[bytes], name: str) -> BytesIO:
    data = BytesIO()
    while more := stream.read(min(_MAX_STDIN_BYTES + 1 - data.tell(), 1 << 20)):
        data.write(more)
        if data.tell() > _MAX_STDIN_BYTES:
            raise ImageFileTooLargeError(
                f"{name} has more than {_MAX_STDIN_BYTES} bytes, no image is so large: make it smaller first"
            )
    data.seek(0)
    return data


if __name__ == "__main__":
    sys.exit(main())
