"""What one does without this toolkit: the teacher on images sent as JPEG, WebP or AVIF.

    python benchmarks/codecs.py --data DIR --teacher FILE [--as-is] [--json]

Pillow compresses each image at several qualities and decodes it again, and a whole ResNet-50
classifies it. The record, results/accuracy_codecs.json (--out FILE for another place), has the
top-1 and the mean bytes of each quality; rate_accuracy.py draws them beside the models.

Always holds: the pixels before compression are those that the edge encoder sees. Each codec
searches for small files as long as a device might (JPEG with optimised Huffman tables, WebP at
its slowest, AVIF at its default) and writes no metadata.
"""

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.accuracy import labelled_images
from benchmarks.common import (
    RESULTS,
    add_output_options,
    add_threads_option,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.shares import paired, share_of, spread
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess
from runtime.options import number
from runtime.tasks.classification import require_finite
from training.data import MEAN, STD
from training.teachers import Teacher, load_teacher

RECORD = RESULTS / "accuracy_codecs.json"
BATCH = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "WEBP": {"method": 6},
    "AVIF": {"speed": 6},
}
QUALITIES: dict[str, list[int]] = {
    "JPEG": [5, 10, 20, 35, 60],
    "WEBP": [0, 5, 15, 30, 60],
    "AVIF": [5, 15, 25, 35, 55],
}


@dataclass
class _Point:
    """A codec at one quality: bytes, bpp and whether the class is correct, for each image."""

    codec: str
    quality: int
    sizes: list[int] = field(default_factory=list)
    bpp: list[float] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)


def compress(pixels: NDArray[np.uint8], codec: str, quality: int) -> tuple[int, NDArray[np.uint8]]:
    """uint8 [H, W, 3] -> the bytes of the file, and the pixels decoded from it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, codec, quality=quality, **SETTINGS[codec])
    with Image.open(file) as image:
        return len(file.getvalue()), np.asarray(image.convert("RGB"))


@torch.inference_mode()
def classes(teacher: Teacher, images: list[NDArray[np.uint8]], amp: bool) -> list[int]:
    """The teacher's classes of images uint8 [H, W, 3]; images of different sizes run one by one."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    one_size = len({image.shape for image in images}) == 1
    found: list[int] = []
    for batch in [images] if one_size else [[image] for image in images]:
        inputs = (torch.tensor(np.stack(batch)).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = teacher(inputs.contiguous(memory_format=torch.channels_last)).logits
        found += require_finite(logits.float().numpy()).argmax(1).tolist()
    return found


def labels_of(teacher: Teacher) -> list[str]:
    """The teacher's labels, or numbers if it has none."""
    return teacher.labels or [f"class {index}" for index in range(teacher.classes)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record. Raises DataError, ClassesError, EdgeCloudErrors."""
    torch.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher).to(memory_format=torch.channels_last)
    limit = 10 if args.smoke else args.images
    images = labelled_images(args.data, labels_of(teacher), limit, str(args.teacher))
    Image.init()
    points = [
        _Point(codec, quality)
        for codec, qualities in QUALITIES.items()
        for quality in (qualities[-2:-1] if args.smoke else qualities)
        if codec in Image.SAVE
    ]
    teacher_correct: list[bool] = []
    with ThreadPoolExecutor(args.threads) as pool:
        starts = range(0, len(images), BATCH)
        for start in tqdm(starts, unit="batch", disable=not sys.stderr.isatty()):
            paths, labels = zip(*images[start : start + BATCH], strict=True)
            pixels = list(pool.map(partial(preprocess, as_is=args.as_is), paths))
            found = classes(teacher, pixels, args.amp)
            teacher_correct += (np.array(found) == labels).tolist()
            for point in points:
                encode = partial(compress, codec=point.codec, quality=point.quality)
                sent = list(pool.map(encode, pixels))
                point.sizes += [size for size, _ in sent]
                point.bpp += [8 * size / (one.shape[0] * one.shape[1]) for size, one in sent]
                found = classes(teacher, [one for _, one in sent], args.amp)
                point.correct += (np.array(found) == labels).tolist()
    return {
        **header("codecs", args.threads),
        "pillow": PIL.__version__,
        "teacher": args.teacher.name,
        "precision": "bfloat16" if args.amp else "float32",
        "data": "/".join(args.data.resolve().parts[-2:]),
        "images": len(images),
        "as_is": args.as_is,
        "teacher_top1": share_of(teacher_correct),
        "points": [_row(point, teacher_correct) for point in points],
    }


def _row(point: _Point, teacher_correct: list[bool]) -> dict[str, Any]:
    return {
        "codec": point.codec,
        "quality": point.quality,
        "settings": SETTINGS[point.codec],
        "bytes": {"mean": float(np.mean(point.sizes))},
        "bpp": spread(point.bpp),
        "top1": share_of(point.correct),
        "top1_minus_teacher": paired(np.array(point.correct), np.array(teacher_correct)),
    }


def text(record: dict[str, Any]) -> str:
    """The points as a Markdown table, under a line about the teacher."""
    heads = ["codec", "quality", "bytes", "bpp", "top-1", "minus teacher's"]
    rows = [
        [
            point["codec"],
            str(point["quality"]),
            f"{point['bytes']['mean']:.0f}",
            f"{point['bpp']['mean']:.3f}",
            f"{point['top1']['share']:.2%}",
            f"{point['top1_minus_teacher']['mean']:+.2%}",
        ]
        for point in record["points"]
    ]
    top1 = record["teacher_top1"]["share"]
    head = f"teacher {record['teacher']}, {record['images']} images, top-1 {top1:.2%}"
    return f"{head}\n\n{markdown(heads, rows)}"


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="a folder of images for each class"
    )
    parser.add_argument("--teacher", required=True, type=Path, metavar="FILE", help="the ResNet-50")
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="run the teacher in bfloat16: several times faster where the processor has it",
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="how many images, evenly spread (default: all)",
    )
    add_threads_option(parser, "teacher and codecs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the record (default: benchmarks/results/accuracy_codecs.json; with --smoke none)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="ten images, one quality of each codec, to see that everything works",
    )
    add_output_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record = measure(args)
        if out := args.out or (None if args.smoke else RECORD):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_record(out, record)
    except (EdgeCloudError, ValueError, OSError) as error:
        print(f"codecs: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
