"""Top-1 and bpp of a bundle on labelled images, through real feature files.

    python benchmarks/accuracy.py --data DIR [--bundle DIR] [--as-is] [--teacher FILE] [--json]
    python benchmarks/accuracy.py --data DIR --bundle bundles/ours_n4_vr --levels 0 5 10 15
    python benchmarks/accuracy.py --data DIR --bundle bundles/ours_n4_vr --max-bytes 100 400

`python -m training.evaluate` does this for every checkpoint of a model.

DIR has a folder of images for each class. Folders and the bundle's labels are matched by name,
in any order, and DIR may lack some classes: top-1 is then also given among those that it has.
Where no name is a label, as many folders as labels stand for them in order (training/labels.py).
Each image is encoded to the bytes of a feature file, and those bytes are classified, as on a device
and a server; by onnxruntime unless --provider says otherwise. With --teacher, a whole classifier
in torch classifies the same pixels, and the difference is given.

Beside the files of the bundle's own profile, the same symbols are coded in the other profile,
and with the tables of the checkpoint's entropy model, which no counts were fitted to.

A variable-rate bundle is measured at each of --levels, --max-bytes and --target-bytes (its default
level without them), on the same images in one pass. Its record has the figures of each in `points`.
A point of --max-bytes also counts the cut files, which lack channels. `benchmarks/budgets.py` says
whether budgets are held, and is faster, since it classifies nothing.

Always holds: bpp counts whole feature files, headers and checksums included.
"""

import argparse
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

from benchmarks.accuracy_text import text
from benchmarks.common import (
    add_output_options,
    add_threads_option,
    as_json,
    header,
    new_parser,
    progress,
    taken_evenly,
)
from benchmarks.shares import paired, share_of, spread
from export.images import Reading
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.budget import Budget
from runtime.codec.bundle import Bundle
from runtime.codec.feature_file import MAX_LEVEL, STEPS_PER_LEVEL, Profile, build, parse
from runtime.codec.rates import step_of
from runtime.errors import EdgeCloudError
from runtime.options import number
from runtime.tasks.classification import require_finite
from training.folders import Damage, DataError, class_folder
from training.labels import match

Encode = Callable[[NDArray[np.int16], int, int], bytes]
Step = int | None  # a rate level in sixteenths; None of a bundle with one rate
_MOST_BYTES = 1 << 20  # to ask for
# Pixels uint8 [H, W, 3] -> the teacher's logits [classes], in the order of the bundle's labels.
Judge = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


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


@dataclass
class _Answers:
    """What came of each image that could be read, in order."""

    predictions: list[int] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    correct5: list[bool] = field(default_factory=list)
    classes: int = 0  # among which `correct_among` chooses
    correct_among: list[bool] = field(default_factory=list)
    teacher_correct: list[bool] = field(default_factory=list)
    teacher_correct_among: list[bool] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    cut: int = 0  # files that lack channels
    bpp: list[float] = field(default_factory=list)
    sizes_by_coding: dict[str, list[int]] = field(default_factory=dict)


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[int]]:
    """The record, and each image's class, at the lowest level if there are several.

    Raises DataError, ClassesError, EdgeCloudErrors.
    """
    engine = {"provider": args.provider, "precision": args.precision}
    encoders = {
        budget: EdgeEncoder(
            args.bundle,
            args.threads,
            rate=budget.rate,
            max_bytes=budget.max_bytes,
            target_bytes=budget.target_bytes,
            **engine,
        )
        for budget in _budgets(args)
    }
    encoder = next(iter(encoders.values()))
    decoder = CloudDecoder(args.bundle, args.threads, **engine)
    images = labelled_images(args.data, decoder.labels, args.images)
    judge = _teacher(args.teacher, args.threads, decoder.labels) if args.teacher else None
    damage = Damage(args.skip_damaged, "--skip-damaged")
    rule = encoder.bundle.manifest.preprocessing
    read = Reading(args.as_is, damage, rule).pixels
    batches = _batches(images, read, args.batch_size, args.workers)
    there = sorted({index for _, index in images})
    among = there if len(there) < len(decoder.labels) else []
    answers = _answers(encoders, decoder, batches, judge, among)
    damage.report()
    first = next(iter(answers.values()))
    if not first.correct:
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
        "images": len(first.correct),
        **({"left_out": len(damage.files)} if damage.files else {}),
        "as_is": args.as_is,
        "engines": {"edge": str(encoder.engine.choice), "cloud": str(decoder.engine.choice)},
        "profile": encoder.profile.title,
    }
    if encoder.bundle.variable is None:
        record |= _figures(first)
    else:
        default = encoder.bundle.default_step / STEPS_PER_LEVEL
        record["points"] = _points(answers, default)
    return record, first.predictions


def _budgets(args: argparse.Namespace) -> list[Budget]:
    """At which the bundle is measured, each once, levels as feature files have them."""
    steps = sorted(step_of(level) for level in args.levels or ())
    asked = [Budget(rate=step / STEPS_PER_LEVEL) for step in steps]
    asked += [Budget(max_bytes=most) for most in args.max_bytes or ()]
    asked += [Budget(target_bytes=target) for target in args.target_bytes or ()]
    return list(dict.fromkeys(asked or [Budget()]))


def _points(answers: dict[Budget, _Answers], default: float) -> list[dict[str, Any]]:
    """The figures of each budget of a variable-rate bundle whose default level is `default`."""
    points: list[dict[str, Any]] = []
    for budget, found in answers.items():
        if budget.max_bytes is not None:
            about: dict[str, Any] = {"max_bytes": budget.max_bytes, "cut": found.cut}
        elif budget.target_bytes is not None:
            about = {"target_bytes": budget.target_bytes}
        else:
            about = {"level": default if budget.rate is None else budget.rate}
        points.append({**about, **_figures(found)})
    return points


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
    encoders: dict[Budget, EdgeEncoder],
    decoder: CloudDecoder,
    batches: Iterator[tuple[list[NDArray[np.uint8]], list[int]]],
    judge: Judge | None,
    among: list[int],
) -> dict[Budget, _Answers]:
    """Encode and classify all batches with each encoder; the first one runs the graph.

    Args:
        among: the classes that the images have, where these are not all; else empty.
    """
    answers = {budget: _Answers(classes=len(among)) for budget in encoders}
    first = next(iter(encoders.values()))
    for batch, labels in batches:
        outputs = [first.graph_output(pixels[None])[0] for pixels in batch]
        theirs = np.stack([judge(pixels) for pixels in batch]) if judge else None
        for budget, found in answers.items():
            files = [
                _code(encoders[budget], output, pixels.shape[:2], found)
                for pixels, output in zip(batch, outputs, strict=True)
            ]
            logits = decoder.logits(files)
            order = np.argsort(-logits, axis=1, kind="stable")
            found.predictions += order[:, 0].tolist()
            found.correct += (order[:, 0] == labels).tolist()
            found.correct5 += [label in row[:5] for label, row in zip(labels, order, strict=True)]
            if among:
                best = np.array(among)[logits[:, among].argmax(1)]
                found.correct_among += (best == labels).tolist()
            if theirs is not None:
                found.teacher_correct += (theirs.argmax(1) == labels).tolist()
            if theirs is not None and among:
                best = np.array(among)[theirs[:, among].argmax(1)]
                found.teacher_correct_among += (best == labels).tolist()
    return answers


def _code(
    encoder: EdgeEncoder, output: NDArray[Any], sides: tuple[int, ...], found: _Answers
) -> bytes:
    """The feature file of one image. Its size goes into `found`, and those in other codings."""
    bundle, symbols, (height, width) = encoder.bundle, output, sides
    data = encoder.encode_output(output, height, width)
    file = parse(data)
    found.sizes.append(len(data))
    found.bpp.append(8 * len(data) / file.pixels)
    found.cut += file.kept is not None
    if encoder.budget.max_bytes is None and encoder.budget.target_bytes is None:
        if bundle.rates is not None and file.step is not None:
            symbols = bundle.rates.symbols(output, file.step)
        for name, encode in _codings(bundle, file.step).items():
            found.sizes_by_coding.setdefault(name, []).append(len(encode(symbols, height, width)))
    return data


def _codings(bundle: Bundle, step: Step) -> dict[str, Encode]:
    """The profiles and tables with which the same symbols are coded, by name."""
    codings: dict[str, Encode] = {
        "plain": partial(bundle.encode, profile=Profile.STATIC, step=step)
    }
    if bundle.has_contexts:
        codings["small"] = partial(bundle.encode, profile=Profile.CONTEXT, step=step)
    if bundle.has_contexts and step is None:
        own = bundle.compressai_tables()
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
    }
    if answers.sizes_by_coding:
        figures["mean_bytes_by_profile"] = {
            name: float(np.mean(sizes)) for name, sizes in answers.sizes_by_coding.items()
        }
    if answers.classes:
        figures["top1_among"] = {"classes": answers.classes, **share_of(answers.correct_among)}
    if answers.teacher_correct:
        correct, teacher = np.array(answers.correct), np.array(answers.teacher_correct)
        figures["teacher_top1"] = share_of(answers.teacher_correct)
        figures["top1_minus_teacher"] = paired(correct, teacher)
    if answers.teacher_correct_among:
        figures["teacher_top1_among"] = share_of(answers.teacher_correct_among)
    return figures


def _teacher(source: str, threads: int, labels: Sequence[str]) -> Judge:
    """The teacher in float32, in torch: a ResNet-50's file, `timm:NAME` or `torchvision:NAME`.

    Raises ClassesError if its classes are not `labels`, and what loading raises.
    """
    import torch

    from training.teachers import load_teacher, pretrained, uncut

    torch.set_num_threads(threads)
    named = source.startswith(("timm:", "torchvision:"))
    teacher = pretrained(uncut(source)) if named else load_teacher(source)
    names = teacher.labels or [f"class {index}" for index in range(teacher.classes)]
    ours = match(names, labels, source, "the bundle").classes
    mean, std = teacher.normalisation.tensors()

    @torch.inference_mode()
    def logits(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
        found = np.empty(len(labels), np.float32)
        found[ours] = require_finite(teacher.backbone(image[None]).numpy())[0]
        return found

    return logits


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
    parser.add_argument(
        "--teacher",
        metavar="FILE|LIBRARY:NAME",
        help="to compare with: a ResNet-50, or timm:NAME or torchvision:NAME",
    )
    parser.add_argument(
        "--levels",
        type=number(float, 0, MAX_LEVEL),
        nargs="+",
        metavar="LEVEL",
        help=f"rate levels of a variable-rate bundle, 0 to {MAX_LEVEL} (default: the bundle's)",
    )
    for name, what in (("max", "most bytes of each file"), ("target", "mean bytes of all files")):
        parser.add_argument(
            f"--{name}-bytes",
            type=number(int, 1, _MOST_BYTES),
            nargs="+",
            metavar="N",
            help=f"of a variable-rate bundle: {what}",
        )
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
