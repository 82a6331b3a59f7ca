"""edge-encode: images in, feature files out, or one Parquet file of them.

Always holds: an image that fails stops no other, and leaves no file and no row. Results come in the
order of the images. Only as many images are under way as the workers need, however many there are.
No output replaces an input. A report that cannot be printed does not stop the work.
"""

import argparse
import itertools
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import __version__
from ..engine.processor import cores
from ..errors import EdgeCloudError, OutputError
from ..files import check_folder, check_output, own_descriptor, refuse_same_files, write_atomically
from ..images.find import Job, TargetError, describe, find, to_files, to_rows
from ..options import add_engine_options, thread_count
from .command import EXIT_DONE, EXIT_FAILURE, Parser, command, explain, say, standard_output
from .image_arguments import add_image_options, rate_arguments, readable, worker_count
from .progress import Progress
from .workers import map_ordered, without_blas_threads

if TYPE_CHECKING:
    from ..edge import EdgeEncoder

    _Result = tuple[dict[str, Any], bytes | None]  # the report, and the new feature file if any
    _Source = str | BytesIO | Exception  # an image's file, its bytes, or why it cannot be read

_FAILURES = (EdgeCloudError, OSError, MemoryError)  # of one image, which stop no other


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
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
        help="feature file, or - for standard output, or folder: it gets a NAME.bin for each "
        "image, in the same subfolders as the images",
    )
    parser.add_argument(
        "--pack",
        metavar="FILE.parquet",
        help="instead of -o: one Parquet file of all feature files, or - for standard output",
    )
    add_image_options(parser)
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write smaller files, which take some microseconds more (default: as the bundle says)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="skip images whose feature files exist already and are of this bundle and rate",
    )
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="threads of the encoder graph (default: one for each core, shared by the workers)",
    )
    add_engine_options(parser, "with -o or --pack the images are encoded afterwards")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each image: bytes, bpp, milliseconds by stage",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


@command("edge-encode")
def main(argv: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    to_stdout, asked = _check_usage(parser, args), rate_arguments(parser, args)
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
    # Imported after the usage is checked, because numpy and onnxruntime take a while to load.
    without_blas_threads()
    from ..codec.feature_file import Profile
    from ..edge import EdgeEncoder

    _check_outputs(args, [image for image, _ in found], [output for _, output in jobs])
    # With the feature file on standard output, the report goes to standard error.
    report: IO[str] | None = sys.stderr if to_stdout else sys.stdout
    # Pillow warns of images above half of its size limit, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    workers = worker_count(args.workers, len(jobs))
    threads = args.threads or (max(1, cores() // workers) if workers > 1 else None)
    if args.tune:
        _tune(args, [image for image, _ in found], report)
    profile = None if args.small is None else Profile.CONTEXT if args.small else Profile.STATIC
    encoder = EdgeEncoder(
        args.bundle,
        threads,
        profile,
        args.provider,
        args.precision,
        args.fast_jpeg,
        workers,
        **asked,
    )
    start = time.perf_counter()
    counts = encode_all(
        encoder, jobs, workers, report, args.as_is, args.resume, args.pack, args.json
    )
    if len(jobs) > 1:
        rate = counts["encoded"] / (time.perf_counter() - start)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        say(f"{summary}; {rate:.1f} images/s", sys.stderr if args.json else report)
    return EXIT_FAILURE if counts["failed"] else EXIT_DONE


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether the encoded data go to standard output. Raises ClosedStreamError."""
    if args.output is None and args.pack is None and not args.tune:
        parser.error("say where the feature files go, with -o or --pack")
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
    """Check before any work that outputs can be written, and replace no image or bundle file.

    Raises OutputError and its subclasses.
    """
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
    """Encode images to files, or to a pack, and report each.

    Args:
        jobs: images and their outputs; with `pack`, the keys of their rows.
        workers: images that are encoded at a time.
        report: the stream for the reports of images; None if it is closed.
        pack: the Parquet file to write instead of feature files.

    Returns how many images were "encoded", "skipped" and "failed".

    Raises MissingExtraError, and OSError for a pack that cannot be written.
    """
    pack_file: Any = nullcontext()
    if pack is not None:
        from ..bulk.parquet import pack_writer

        Path(pack).parent.mkdir(parents=True, exist_ok=True)
        pack_file = pack_writer(pack, encoder.bundle)
    counts = {"encoded": 0, "skipped": 0, "failed": 0}
    work = partial(_try, encoder, as_is=as_is, resume=resume, to_file=pack is None)
    with (
        pack_file as write_row,
        Progress(len(jobs), "image") as progress,
        closing(
            map_ordered(work, ((image, output, _source(image)) for image, output in jobs), workers)
        ) as results,
    ):
        for finish in results:
            result, data = finish()
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
    output = "standard output" if result["output"] == "-" else result["output"]
    level = f"level {result['level']:g}, " if "level" in result else ""
    return (
        f"{result['image']} -> {output}: {level}{result['bytes']} bytes, {result['bpp']:.3f} bpp "
        f"at {result['width']}x{result['height']}, {result['milliseconds']['total']:.1f} ms"
    )


def _source(image: str) -> "_Source":
    """An image to be encoded in a worker.

    Pipes and devices are read here, in the main thread, because a worker that waits for one could
    not be interrupted.
    """
    try:
        return readable(image)
    except (EdgeCloudError, OSError, MemoryError) as error:
        return error


def _try(
    encoder: "EdgeEncoder",
    job: "tuple[str, str, _Source]",
    as_is: bool,
    resume: bool,
    to_file: bool,
) -> "Callable[[], _Result]":
    """Encode one image, unless it is done already; call what it gives in the images' order.

    With a mean to keep, that order matters, and coding and writing come then.
    """
    image, output, source = job

    def begin() -> "Callable[[], _Result]":
        if resume and Path(output).is_file() and encoder.is_current(output, as_is):
            skipped = {"status": "skipped", "image": image, "output": output}, None
            return lambda: skipped
        if isinstance(source, Exception):
            raise source
        finish = partial(_guarded, image, _prepare(encoder, image, source, output, as_is, to_file))
        if encoder.budget.target_bytes is not None:
            return finish
        done = finish()
        return lambda: done

    try:
        return begin()
    except _FAILURES as error:
        failed = _failure(image, error)
        return lambda: failed


def _guarded(image: str, work: "Callable[[], _Result]") -> "_Result":
    """What `work` gives; an error becomes a report."""
    try:
        return work()
    except _FAILURES as error:
        return _failure(image, error)


def _failure(image: str, error: Exception) -> "_Result":
    reason = (
        f"{image} does not fit into memory: make it smaller first"
        if isinstance(error, MemoryError)
        else explain(error)
    )
    # Errors of a graph, an array or the output do not name the image.
    name = "standard input" if image == "-" else image
    return {
        "status": "failed",
        "image": image,
        "error": reason if name in reason else f"{name}: {reason}",
    }, None


def _tune(args: argparse.Namespace, images: list[str], report: IO[str] | None) -> None:
    from ..codec.bundle import Bundle, default_bundle
    from ..engine.tune import edge_deviation, readable_inputs, table, tune
    from ..images.preprocess import preprocess

    bundle = Bundle.load(args.bundle or default_bundle())
    rule = bundle.manifest.preprocessing
    inputs = readable_inputs(images, lambda image: preprocess(image, args.as_is, rule=rule)[None])
    result = tune(bundle, "edge", inputs, edge_deviation(bundle), args.threads)
    say(json.dumps(result, allow_nan=False) if args.json else table(result), report)


def _prepare(
    encoder: "EdgeEncoder",
    image: str,
    source: str | BytesIO,
    output: str,
    as_is: bool,
    to_file: bool,
) -> "Callable[[], _Result]":
    """Decode an image and run the graph; what it gives codes and writes the feature file."""
    from ..images.preprocess import preprocess

    clock = [time.perf_counter()]
    pixels = preprocess(source, as_is, encoder.fast_jpeg, encoder.bundle.manifest.preprocessing)
    clock.append(time.perf_counter())
    computed = encoder.graph_output(pixels[None])[0]
    clock.append(time.perf_counter())
    height, width = pixels.shape[:2]

    def finish() -> "_Result":
        waited = time.perf_counter() - clock[-1]  # for the images before, which counts for none
        data = encoder.encode_output(computed, height, width)
        clock.append(time.perf_counter() - waited)
        if to_file:
            _write(output, data)
        clock.append(time.perf_counter() - waited)
        return _report(image, output, data, clock), data

    return finish


def _report(image: str, output: str, data: bytes, clock: list[float]) -> dict[str, Any]:
    """The report of an image that is encoded; `clock` has the times between its stages."""
    from ..codec.feature_file import parse

    stages = [round(1e3 * (after - before), 3) for before, after in itertools.pairwise(clock)]
    milliseconds = dict(zip(("preprocess", "graph", "coder", "write"), stages, strict=True))
    milliseconds["total"] = round(1e3 * (clock[-1] - clock[0]), 3)
    file = parse(data)
    return {
        "status": "encoded",
        "image": image,
        "output": output,
        "bytes": len(data),
        "bpp": 8 * len(data) / file.pixels,
        "width": file.width,
        "height": file.height,
        **file.describe_level(),
        "milliseconds": milliseconds,
    }


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


if __name__ == "__main__":
    sys.exit(main())
