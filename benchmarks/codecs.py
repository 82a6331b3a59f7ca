"""What users do today: the teacher on images sent as JPEG, WebP or AVIF.

    python benchmarks/codecs.py --data DIR --teacher FILE [--as-is] [--json]

Every image is compressed by Pillow at several qualities, decoded again and classified by a whole
ResNet-50; its first choice and the bytes of the file are counted. The record,
results/accuracy_codecs.json (--out FILE for elsewhere), is what rate_accuracy.py draws beside the
models.

Always holds: the pixels before compression are those that the edge encoder sees; a codec is set to
search for small files as long as a device might (JPEG with optimised Huffman tables, WebP at its
slowest, AVIF at its default), and writes no metadata.
"""

import argparse
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.accuracy import labelled_images, paired, wilson
from benchmarks.machine import commit, cores, describe
from runtime import __version__
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess
from runtime.options import number
from runtime.tasks.classification import require_finite
from training.data import MEAN, STD
from training.teachers import Teacher, load_teacher

RECORD = Path(__file__).resolve().parent / "results" / "accuracy_codecs.json"
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


def compress(pixels: NDArray[np.uint8], codec: str, quality: int) -> tuple[int, NDArray[np.uint8]]:
    """uint8 [H, W, 3] -> bytes of the file, and the pixels that come out of it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, codec, quality=quality, **SETTINGS[codec])
    with Image.open(file) as image:
        return len(file.getvalue()), np.asarray(image.convert("RGB"))


@torch.inference_mode()
def classes(teacher: Teacher, images: list[NDArray[np.uint8]], amp: bool) -> list[int]:
    """The teacher's first choices for images uint8 [H, W, 3], of one size or one by one."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    together = (
        [images] if len({image.shape for image in images}) == 1 else [[image] for image in images]
    )
    found: list[int] = []
    for batch in together:
        inputs = (torch.tensor(np.stack(batch)).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = teacher(inputs.contiguous(memory_format=torch.channels_last)).logits
        found += require_finite(logits.float().numpy()).argmax(1).tolist()
    return found


def labels_of(teacher: Teacher) -> list[str]:
    """The teacher's labels, or numbers in their place."""
    return teacher.labels or [f"class {index}" for index in range(teacher.classes)]


def measure(
    data: Path,
    teacher_file: Path,
    as_is: bool,
    qualities: dict[str, list[int]],
    limit: int | None,
    threads: int,
    amp: bool,
) -> dict[str, Any]:
    """All figures, as the JSON has them; `limit` images, taken evenly, or all."""
    torch.set_num_threads(threads)
    teacher = load_teacher(teacher_file).to(memory_format=torch.channels_last)
    images = labelled_images(data, labels_of(teacher), limit, str(teacher_file))
    Image.init()
    points = [
        (codec, quality)
        for codec, values in qualities.items()
        for quality in values
        if codec in Image.SAVE
    ]
    right: dict[tuple[str, int] | None, list[bool]] = {point: [] for point in (None, *points)}
    sizes: dict[tuple[str, int], list[int]] = {point: [] for point in points}
    bpp: dict[tuple[str, int], list[float]] = {point: [] for point in points}
    pool = ThreadPoolExecutor(threads)
    for start in tqdm(range(0, len(images), 16), unit="batch", disable=not sys.stderr.isatty()):
        batch = images[start : start + 16]
        labels = [label for _, label in batch]
        pixels = list(pool.map(lambda one: preprocess(one[0], as_is), batch))
        right[None] += (np.array(classes(teacher, pixels, amp)) == labels).tolist()
        for codec, quality in points:
            sent = list(
                pool.map(
                    lambda one, codec=codec, quality=quality: compress(one, codec, quality), pixels
                )
            )
            sizes[codec, quality] += [size for size, _ in sent]
            bpp[codec, quality] += [8 * size / (one.shape[0] * one.shape[1]) for size, one in sent]
            right[codec, quality] += (
                np.array(classes(teacher, [one for _, one in sent], amp)) == labels
            ).tolist()

    def share(point: tuple[str, int] | None) -> dict[str, float]:
        low, high = wilson(sum(right[point]), len(images))
        return {"share": sum(right[point]) / len(images), "low": low, "high": high}

    return {
        "benchmark": "codecs",
        "machine": describe(threads),
        "commit": commit(),
        "pillow": PIL.__version__,
        "teacher": teacher_file.name,
        "precision": "bfloat16" if amp else "float32",
        "data": "/".join(data.resolve().parts[-2:]),
        "images": len(images),
        "as_is": as_is,
        "teacher_top1": share(None),
        "points": [
            {
                "codec": codec,
                "quality": quality,
                "settings": SETTINGS[codec],
                "bytes": {"mean": float(np.mean(sizes[codec, quality]))},
                "bpp": {
                    "mean": float(np.mean(bpp[codec, quality])),
                    "p5": float(np.percentile(bpp[codec, quality], 5)),
                    "p95": float(np.percentile(bpp[codec, quality], 95)),
                },
                "top1": share((codec, quality)),
                "top1_minus_teacher": paired(
                    np.array(right[codec, quality]), np.array(right[None])
                ),
            }
            for codec, quality in points
        ],
    }


def text(result: dict[str, Any]) -> str:
    lines = [
        f"teacher {result['teacher']}, {result['images']} images, top-1 {result['teacher_top1']['share']:.2%}",
        "",
    ]
    lines += [
        "| codec | quality | bytes | bpp | top-1 | minus teacher's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {point['codec']} | {point['quality']} | {point['bytes']['mean']:.0f} | {point['bpp']['mean']:.3f} | "
        f"{point['top1']['share']:.2%} | {point['top1_minus_teacher']['mean']:+.2%} |"
        for point in result["points"]
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="one folder of images a class"
    )
    parser.add_argument("--teacher", required=True, type=Path, metavar="FILE", help="the ResNet-50")
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="the teacher in bfloat16: several times faster where the processor has it",
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="so many images, taken evenly (default: all)",
    )
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help="default: one a core",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: benchmarks/results/accuracy_codecs.json; with --smoke none",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="ten images, one quality a codec, to see that everything works",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    qualities = (
        {codec: values[-2:-1] for codec, values in QUALITIES.items()} if args.smoke else QUALITIES
    )
    try:
        result = measure(
            args.data,
            args.teacher,
            args.as_is,
            qualities,
            10 if args.smoke else args.images,
            args.threads,
            args.amp,
        )
        if out := args.out or (None if args.smoke else RECORD):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    except (EdgeCloudError, ValueError, OSError) as error:
        print(f"codecs: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1, allow_nan=False) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
