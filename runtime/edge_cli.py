"""edge-encode: images in, feature files out."""

import argparse
import itertools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import __version__
from .errors import EdgeCloudError, ImageFileTooLargeError

if TYPE_CHECKING:
    from .edge import EdgeEncoder

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
_MAX_STDIN_BYTES = 256 << 20  # larger than any image file that is decoded; more is not read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-encode",
        description="Encode images to feature files.",
        epilog="Exit status: 0 done, 1 an image failed (the others are encoded), 2 wrong usage.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE_OR_DIR",
        help="feature file, folder (gets a NAME.bin for each image), or - for standard output",
    )
    parser.add_argument("--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4")
    parser.add_argument("--as-is", action="store_true", help="do not resize to 224x224; crop to multiples of 8")
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write small files: fewer bytes for some microseconds more (default: as the bundle says)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the encoder graph (default: one a core)")
    add_engine_options(parser, "the images are encoded as well if there is an -o")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: bytes, bpp, milliseconds by stage")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_engine_options(parser: argparse.ArgumentParser, after: str) -> None:
    """Options of both commands."""
    providers = "cpu, openvino, or another that onnxruntime has here"
    parser.add_argument("--provider", default="auto", metavar="NAME", help=f"{providers} (default: what --tune chose, else cpu)")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="fp32, bf16 or int8 (default: what --tune chose, else fp32)")
    parser.add_argument("--tune", action="store_true", help=f"measure what is there on this device and keep the fastest choice; {after}")


def _plan(parser: argparse.ArgumentParser, images: list[str], output: str) -> list[Path | None]:
    """Where each image's feature file goes; None is standard output."""
    if output == "-":
        if len(images) > 1:
            parser.error("standard output takes one feature file: name a folder with -o for several images")
        return [None]
    folder = Path(output)
    if len(images) == 1 and not folder.is_dir() and not output.endswith("/"):
        return [folder]
    if folder.exists() and not folder.is_dir():
        parser.error(f"-o {output} is a file: name a folder for several images")
    targets = [folder / ("stdin.bin" if image == "-" else Path(image).with_suffix(".bin").name) for image in images]
    twice = {str(target) for target in targets if targets.count(target) > 1}
    if twice:
        parser.error(f"several images would be written to {', '.join(sorted(twice))}: encode them to different folders")
    return list(targets)


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads {args.threads} is not a number from 1 up")
    if args.output == "-" and args.json:
        parser.error("standard output carries the feature file: use --json with -o FILE")
    if args.output is None and not args.tune:
        parser.error("name where the feature files go with -o")
    targets = _plan(parser, args.images, args.output) if args.output is not None else []
    # With the feature file on standard output, the report goes to standard error.
    report: IO[str] = sys.stderr if args.output == "-" else sys.stdout
    # After the usage is checked: numpy and onnxruntime take a while.
    from .edge import EdgeEncoder

    # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    try:
        if args.tune:
            _tune(args, report)
        encoder = EdgeEncoder(args.bundle, args.threads, args.small, args.provider, args.precision)
    except (EdgeCloudError, OSError) as error:
        print(f"edge-encode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    status = EXIT_DONE
    for image, target in zip(args.images, targets, strict=bool(targets)):
        try:
            result = _encode(encoder, image, target, args.as_is)
        except (EdgeCloudError, OSError) as error:
            print(f"edge-encode: {error}", file=sys.stderr)
            status = EXIT_FAILURE
            continue
        if args.json:
            print(json.dumps(result), file=report)
        else:
            name = "standard output" if target is None else target
            print(
                f"{image} -> {name}: {result['bytes']} bytes, {result['bpp']:.3f} bpp at {result['width']}x{result['height']}, "
                f"{result['milliseconds']['total']:.1f} ms",
                file=report,
            )
    return status


def _tune(args: argparse.Namespace, report: IO[str]) -> None:
    from .bundle import Bundle, default_bundle
    from .preprocess import preprocess
    from .tune import table, tune

    bundle = Bundle.load(args.bundle or default_bundle())
    result = tune(bundle, "edge", [preprocess(image, args.as_is)[None] for image in args.images[:8]], args.threads)
    print(json.dumps(result) if args.json else table(result), file=report)


def _encode(encoder: "EdgeEncoder", image: str, target: Path | None, as_is: bool) -> dict[str, Any]:
    from io import BytesIO

    from .files import write_atomically
    from .preprocess import preprocess

    clock = [time.perf_counter()]
    source: BytesIO | str = image
    if image == "-":
        source = BytesIO(sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1))
        if source.getbuffer().nbytes > _MAX_STDIN_BYTES:
            raise ImageFileTooLargeError(
                f"standard input has more than {_MAX_STDIN_BYTES} bytes, no image is so large: make it smaller first"
            )
    pixels = preprocess(source, as_is)
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
