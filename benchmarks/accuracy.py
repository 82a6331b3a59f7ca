"""Top-1 and bpp of a bundle on labelled images, through real feature files.

    python benchmarks/accuracy.py --data DIR [--bundle DIR] [--as-is] [--teacher FILE] [--json]

`python -m training.evaluate` does this for every checkpoint of a model.

DIR has a folder of images for each class. Folders and the bundle's labels are matched by name,
in any order, and DIR may lack some classes: top-1 is then also given among those that it has.
Where no name is a label, as many folders as labels stand for them in order (training/labels.py).
Each image is encoded to the bytes of a feature file, and those bytes are classified, as on a device
and a server; by onnxruntime unless --provider says otherwise. With --teacher, a whole classifier
in torch classifies the same pixels, and the difference is given.

Beside the files of the bundle's own profile, the same symbols are coded in the other profile,
and with the tables of the checkpoint's entropy model, which no counts were fitted to.

Always holds: bpp counts whole feature files, headers and checksums included.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import (
    add_output_options,
    add_threads_option,
    as_json,
    header,
    new_parser,
    progress,
    taken_evenly,
)
from export.images import Reading
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.feature_file import Profile, build, parse
from runtime.errors import EdgeCloudError
from runtime.options import number
from runtime.tasks.classification import require_finite
from training.folders import Damage, DataError, class_folder
from training.labels import match

Encode = Callable[[NDArray[np.int16], int, int], bytes]
# Pixels uint8 [H, W, 3] -> the index of the teacher's class among the bundle's labels.
Judge = Callable[[NDArray[np.uint8]], int]
Z = 1.959964  # half the width of a 95 % interval, in standard deviations


def labelled_images(
    folder: Path, labels: Sequence[str], limit: int | None = None, of: str = "the bundle"
) -> list[tuple[Path, int]]:
    """(path, class index) of the images in the class folders, or of `limit` of them, evenly spread.

    `of` says in messages whose labels they are. Raises DataError, ClassesError.
    """
    there = class_folder(folder, empty=True)
    classes, note = match(there.names, labels, str(folder), of)
    if note:
        progress(f"accuracy: {note}")
    return taken_evenly([(path, classes[index]) for path, index in there.files], limit)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, scale = correct / count, 1 + Z * Z / count
    middle = (share + Z * Z / (2 * count)) / scale
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / scale
    return middle - half, middle + half


def share_of(correct: Sequence[bool]) -> dict[str, float]:
    """The share of correct answers, and its 95 % interval."""
    low, high = wilson(sum(correct), len(correct))
    return {"share": sum(correct) / len(correct), "low": low, "high": high}


def paired(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, float]:
    """Difference of two shares on the same images, and its 95 % interval (normal approximation)."""
    difference: NDArray[np.float64] = ours.astype(float) - theirs
    half = Z * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, 5th and 95th percentile."""
    return {
        "mean": float(np.mean(values)),
        "p5": float(np.percentile(values, 5)),
        "p95": float(np.percentile(values, 95)),
    }


@dataclass
class _Answers:
    """What came of each image that could be read, in order."""

    predictions: list[int] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    correct5: list[bool] = field(default_factory=list)
    correct_among: list[bool] = field(default_factory=list)
    teacher_correct: list[bool] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    bpp: list[float] = field(default_factory=list)
    sizes_by_coding: dict[str, list[int]] = field(default_factory=dict)


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[int]]:
    """The record, and each image's class. Raises DataError, ClassesError, EdgeCloudErrors."""
    engine = {"provider": args.provider, "precision": args.precision}
    encoder = EdgeEncoder(args.bundle, args.threads, **engine)
    decoder = CloudDecoder(args.bundle, args.threads, **engine)
    images = labelled_images(args.data, decoder.labels, args.images)
    judge = _teacher(args.teacher, args.threads, decoder.labels) if args.teacher else None
    damage = Damage(args.skip_damaged, "--skip-damaged")
    rule = encoder.bundle.manifest.preprocessing
    read = Reading(args.as_is, damage, rule).pixels
    batches = _batches(images, read, args.batch_size, args.workers)
    there = sorted({index for _, index in images})
    answers = _answers(encoder, decoder, batches, there, judge)
    damage.report()
    if not answers.correct:
        raise DataError(
            f"none of the {len(images)} images in {args.data} can be read: mend or remove them"
        )
    manifest = decoder.bundle.manifest
    record: dict[str, Any] = {
        **header("accuracy", args.threads),
        "model": manifest.model,
        "lmb": manifest.lmb,
        "weights": manifest.weights,
        "bundle": manifest.fingerprint.hex()[:8],
        "data": "/".join(args.data.resolve().parts[-2:]),
        "images": len(answers.correct),
        **({"left_out": len(damage.files)} if damage.files else {}),
        "as_is": args.as_is,
        "engines": {"edge": str(encoder.engine.choice), "cloud": str(decoder.engine.choice)},
        "profile": encoder.profile.title,
        **_figures(answers),
    }
    if len(there) < len(decoder.labels):
        among = share_of(answers.correct_among)
        record["top1_among"] = {"classes": len(there), **among}
    return record, answers.predictions


def _batches(
    images: list[tuple[Path, int]],
    read: Callable[[Path], NDArray[np.uint8] | None],
    size: int,
    workers: int,
) -> Iterator[tuple[list[NDArray[np.uint8]], list[int]]]:
    """Pixels and labels of a batch of images; those for which `read` gives None are left out."""
    starts = range(0, len(images), size)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in tqdm(starts, unit="batch", disable=not sys.stderr.isatty()):
            paths, labels = zip(*images[start : start + size], strict=True)
            pairs = zip(pool.map(read, paths), labels, strict=True)
            found = [(pixels, label) for pixels, label in pairs if pixels is not None]
            if found:
                yield [pixels for pixels, _ in found], [label for _, label in found]


def _answers(
    encoder: EdgeEncoder,
    decoder: CloudDecoder,
    batches: Iterator[tuple[list[NDArray[np.uint8]], list[int]]],
    there: list[int],
    judge: Judge | None,
) -> _Answers:
    """Encode and classify all batches; `there` are the classes that the images have."""
    codings = _codings(encoder)
    answers = _Answers(sizes_by_coding={name: [] for name in codings})
    for batch, labels in batches:
        files = []
        for pixels in batch:
            symbols, (height, width) = encoder.symbols(pixels[None])[0], pixels.shape[:2]
            files.append(encoder.encode_symbols(symbols, height, width))
            for name, encode in codings.items():
                answers.sizes_by_coding[name].append(len(encode(symbols, height, width)))
        logits = decoder.logits(files)
        order = np.argsort(-logits, axis=1, kind="stable")
        answers.predictions += order[:, 0].tolist()
        answers.correct += (order[:, 0] == labels).tolist()
        answers.correct5 += [label in row[:5] for label, row in zip(labels, order, strict=True)]
        among = np.array(there)[logits[:, there].argmax(1)]
        answers.correct_among += (among == labels).tolist()
        answers.sizes += [len(file) for file in files]
        answers.bpp += [8 * len(file) / parse(file).pixels for file in files]
        if judge:
            answers.teacher_correct += [
                judge(pixels) == label for pixels, label in zip(batch, labels, strict=True)
            ]
    return answers


def _codings(encoder: EdgeEncoder) -> dict[str, Encode]:
    """The profiles and tables with which the same symbols are coded, by name."""
    bundle = encoder.bundle
    codings: dict[str, Encode] = {"plain": partial(bundle.encode, profile=Profile.STATIC)}
    if bundle.tables.contexts:
        own = bundle.compressai_tables()
        codings["small"] = partial(bundle.encode, profile=Profile.CONTEXT)
        codings["plain, the model's own tables"] = lambda symbols, height, width: build(
            bundle.fingerprint, height, width, own.encode(symbols)
        )
    return codings


def _figures(answers: _Answers) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "top1": share_of(answers.correct),
        "top5": {"share": sum(answers.correct5) / len(answers.correct5)},
        "bpp": spread(answers.bpp),
        "bytes": spread(answers.sizes),
        "mean_bytes_by_profile": {
            name: float(np.mean(sizes)) for name, sizes in answers.sizes_by_coding.items()
        },
    }
    if answers.teacher_correct:
        correct, teacher = np.array(answers.correct), np.array(answers.teacher_correct)
        figures["teacher_top1"] = share_of(answers.teacher_correct)
        figures["top1_minus_teacher"] = paired(correct, teacher)
    return figures


def _teacher(path: Path, threads: int, labels: Sequence[str]) -> Judge:
    """The teacher in float32, in torch. Raises ClassesError if its classes are not `labels`."""
    import torch

    from training.data import MEAN, STD
    from training.teachers import load_teacher

    torch.set_num_threads(threads)
    teacher = load_teacher(path)
    classes = teacher.classes
    names = teacher.labels or [f"class {index}" for index in range(classes)]
    ours = match(names, labels, str(path), "the bundle").classes
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def classify(pixels: NDArray[np.uint8]) -> int:
        image = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
        return ours[int(require_finite(teacher(image[None]).logits.numpy()).argmax())]

    return classify


def text(record: dict[str, Any]) -> str:
    """The record's figures, a line each."""

    def interval(entry: dict[str, float], form: str = ".2%") -> str:
        return f"95 % interval {entry['low']:{form}} to {entry['high']:{form}}"

    top1, bpp, size = record["top1"], record["bpp"], record["bytes"]
    lines = [
        f"{record['model']} lmb {record['lmb']}, {record['weights']} weights, "
        f"bundle {record['bundle']}, {record['images']} images",
        f"top-1    {top1['share']:.2%} ({interval(top1)})",
        f"top-5    {record['top5']['share']:.2%}",
        *_among(record),
        f"bpp      {bpp['mean']:.4f} mean, {bpp['p5']:.4f} to {bpp['p95']:.4f} "
        "(5th to 95th percentile)",
        f"bytes    {size['mean']:.0f} mean, {size['p5']:.0f} to {size['p95']:.0f}",
    ]
    for coding, mean in record["mean_bytes_by_profile"].items():
        lines.append(f"bytes    {mean:.1f} mean, {coding}")
    if "teacher_top1" in record:
        teacher, change = record["teacher_top1"], record["top1_minus_teacher"]
        lines += [
            f"teacher  {teacher['share']:.2%} ({interval(teacher)})",
            f"top-1 minus teacher's  {change['mean']:+.2%} ({interval(change, '+.2%')}, paired)",
        ]
    return "\n".join(lines)


def _among(record: dict[str, Any]) -> list[str]:
    """The line on images of some of the classes."""
    if "top1_among" not in record:
        return []
    among = record["top1_among"]
    return [f"top-1    {among['share']:.2%} among the {among['classes']} classes of the images"]


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="a folder of images for each class"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4",
    )
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a ResNet-50 to compare with")
    add_threads_option(parser, "all graphs")
    _add_image_options(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the class index of each image that can be read, one a line, in order",
    )
    parser.add_argument(
        "--provider", default="auto", metavar="NAME", help="engine of both ends, as in edge-encode"
    )
    parser.add_argument(
        "--precision", default="auto", metavar="NAME", help="of both ends, as in edge-encode"
    )
    add_output_options(parser)
    return parser


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    """Which images are taken, and how they are read."""
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="how many images, evenly spread (default: all)",
    )
    parser.add_argument(
        "--batch_size",
        type=number(int, 1, 65536),
        default=8,
        metavar="N",
        help="images of one decoder call (default: 8)",
    )
    parser.add_argument(
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        metavar="N",
        help="threads that decode and resize images (default: 2)",
    )
    parser.add_argument(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record, predictions = measure(args)
        if args.predictions:
            args.predictions.write_text("".join(f"{index}\n" for index in predictions))
    except (DataError, EdgeCloudError, ValueError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
