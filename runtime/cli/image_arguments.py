"""The images that edge-encode and edge-send are given: options, workers, pipes and standard input.

Always holds: of a pipe or of standard input no more is read than any image file has.
"""

import argparse
import os
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ..codec.feature_file import MAX_FEATURE_FILE_BYTES, MAX_STEP, STEPS_PER_LEVEL
from ..engine.processor import cores
from ..errors import ImageFileTooLargeError
from ..options import number, thread_count
from .command import standard_input

MAX_IMAGE_BYTES = 256 << 20  # larger than any image file that is decoded


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how images are encoded."""
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="do not resize as the bundle says (usually to 224x224); crop to multiples of 8",
    )
    parser.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: pixels differ a little",
    )
    parser.add_argument(
        "--workers",
        type=thread_count,
        metavar="N",
        help="images to encode at a time (default: the number of cores plus one)",
    )
    _add_rate_options(parser)


def _add_rate_options(parser: argparse.ArgumentParser) -> None:
    highest = MAX_STEP // STEPS_PER_LEVEL
    parser.add_argument(
        "--rate",
        type=number(float, 0, highest),
        metavar="LEVEL",
        help=f"with a variable-rate bundle: the rate level, 0 (fewest bytes) to {highest} "
        "(default: as the bundle says)",
    )
    parser.add_argument(
        "--max-bytes",
        type=number(int, 1, MAX_FEATURE_FILE_BYTES),
        metavar="N",
        help="with a variable-rate bundle: no feature file has more bytes; the highest level that "
        "fits is taken, but none above --rate",
    )
    parser.add_argument(
        "--target-bytes",
        type=number(float, 1, MAX_FEATURE_FILE_BYTES),
        metavar="N",
        help="with a variable-rate bundle: the mean of all feature files, which the level follows",
    )


def rate_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """What the options of the rate are to an EdgeEncoder; it is wrong usage if they contradict."""
    if args.rate is not None and args.target_bytes is not None:
        parser.error("--rate and --target-bytes each choose the level: leave out one of both")
    most, target = args.max_bytes, args.target_bytes
    if most is not None and target is not None and most < target:
        parser.error("--max-bytes is below --target-bytes: the mean cannot be above the most")
    return {"rate": args.rate, "max_bytes": most, "target_bytes": target}


def worker_count(workers: int | None, images: int) -> int:
    """How many workers encode `images` images; `workers` is the option's value."""
    # One more than the cores, because a worker waits for the disk now and then.
    return max(1, min(workers or cores() + 1, images))


def readable(image: str) -> str | BytesIO:
    """An image as a decoder can read it: the name of a file, or the content of anything else.

    Args:
        image: a name; "-" for standard input.

    Raises ImageFileTooLargeError, ClosedStreamError, OSError.
    """
    if image == "-":
        return _read_all(standard_input(), "standard input")
    # os.path.exists, because Path.exists raises an error for names that no file can have.
    if not os.path.exists(image) or Path(image).is_file() or Path(image).is_dir():  # noqa: PTH110
        return image
    with open(image, "rb", buffering=0) as stream:
        return _read_all(stream, image)


def read_descriptor() -> bytes:
    """All of standard input, for a thread that may still wait for input when the process ends.

    It reads the descriptor: a thread that reads sys.stdin would hold its buffer's lock at the end.

    Raises ClosedStreamError, ImageFileTooLargeError, OSError.
    """
    with open(standard_input().fileno(), "rb", buffering=0, closefd=False) as stream:
        return _read_all(stream, "standard input").getvalue()


def _read_all(stream: IO[bytes], name: str) -> BytesIO:
    data = BytesIO()
    while more := stream.read(min(MAX_IMAGE_BYTES + 1 - data.tell(), 1 << 20)):
        data.write(more)
        if data.tell() > MAX_IMAGE_BYTES:
            raise ImageFileTooLargeError(
                f"{name} has more than {MAX_IMAGE_BYTES} bytes, no image is so large: "
                "make it smaller first"
            )
    data.seek(0)
    return data
