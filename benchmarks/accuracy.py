"""Top-1 and bpp of a bundle on labelled images, through real feature files, by onnxruntime unless told otherwise.

    python benchmarks/accuracy.py --data DIR [--bundle DIR] [--as-is] [--teacher FILE] [--provider NAME --precision NAME] [--json]

`python -m training.evaluate` does this for every checkpoint of a model.

DIR has one folder of images a class, matched with the bundle's labels by name, in any order and for a part of them;
where no name is a label's, as many folders as labels stand for them in order (training/labels.py).
Every image becomes the bytes of a feature file, and those bytes logits, as on a device and a
server. With --teacher, a ResNet-50 in torch sees the same pixels and the difference is given.

Beside the files of the bundle's own profile, the same symbols are coded in the other, and under
the tables that the checkpoint's entropy model gives by itself, before any fitting.

Always holds: bpp counts whole feature files, headers and checksums included.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.machine import commit, cores, describe
from export.images import Reading
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.codec.feature_file import Profile, pack, parse
from runtime.errors import EdgeCloudError
from runtime.options import number
from runtime.tasks.classification import require_finite
from training.folders import Damage, DataError, class_folder
from training.labels import match


def labelled_images(
    folder: Path, labels: Sequence[str], limit: int | None = None, of: str = "the bundle"
) -> list[tuple[Path, int]]:
    """(path, class index) of all images in the class folders, or of `limit` taken evenly; raises DataError, ClassesError."""
    there = class_folder(folder, empty=True)
    classes, note = match(there.names, labels, str(folder), of)
    if note:
        print(f"accuracy: {note}", file=sys.stderr)
    found = [(path, classes[index]) for path, index in there.files]
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    z = 1.959964
    share, scale = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return middle - half, middle + half


def paired(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, float]:
    """Difference of two shares on the same images, with its 95 % interval (normal approximation)."""
    difference: NDArray[np.float64] = ours.astype(float) - theirs
    half = 1.959964 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def measure(
    data: Path,
    bundle: Path | None,
    as_is: bool,
    teacher: Path | None,
    threads: int,
    batch_size: int = 8,
    workers: int = 2,
    limit: int | None = None,
    provider: str = "auto",
    precision: str = "auto",
    skip_damaged: bool = False,
) -> tuple[dict[str, Any], list[int]]:
    """All figures, as the JSON has them, and each image's class."""
    encoder = EdgeEncoder(bundle, threads, provider=provider, precision=precision)
    decoder = CloudDecoder(bundle, threads, provider=provider, precision=precision)
    images = labelled_images(data, decoder.labels, limit)
    judge = _teacher(teacher, threads, decoder.labels) if teacher else None
    damage = Damage(skip_damaged, "--skip-damaged")
    right: list[bool] = []
    right5: list[bool] = []
    predictions: list[int] = []
    teacher_right: list[bool] = []
    sizes, bpp = [], []
    used = encoder.bundle
    ways: dict[str, Callable[[NDArray[np.int16], int, int], bytes]] = {
        "plain": partial(used.encode, profile=Profile.STATIC)
    }
    if used.tables.contexts:
        ways["small"] = partial(used.encode, profile=Profile.CONTEXT)
        own = used.compressai_tables()
        ways["plain, the model's own tables"] = lambda symbols, height, width: pack(
            used.fingerprint, height, width, own.encode(symbols)
        )
    by_way: dict[str, list[int]] = {way: [] for way in ways}
    pool = ThreadPoolExecutor(max(1, workers))
    for start in tqdm(
        range(0, len(images), batch_size), unit="batch", disable=not sys.stderr.isatty()
    ):
        batch = images[start : start + batch_size]
        read = list(pool.map(lambda one: Reading(as_is, damage).pixels(one[0]), batch))
        pixels = [one for one in read if one is not None]
        if not pixels:
            continue
        files = []
        for one in pixels:
            symbols, (height, width) = encoder.symbols(one[None])[0], one.shape[:2]
            files.append(encoder.pack(symbols, height, width))
            for way, encode in ways.items():
                by_way[way].append(len(encode(symbols, height, width)))
        labels = [label for one, (_, label) in zip(read, batch, strict=True) if one is not None]
        order = np.argsort(-decoder.logits(files), axis=1, kind="stable")
        predictions += order[:, 0].tolist()
        right += (order[:, 0] == labels).tolist()
        right5 += [label in row[:5] for label, row in zip(labels, order, strict=True)]
        sizes += [len(file) for file in files]
        bpp += [8 * len(file) / parse(file).pixels for file in files]
        if judge:
            teacher_right += [
                judge(one) == label for one, label in zip(pixels, labels, strict=True)
            ]
    damage.report()
    if not right:
        raise DataError(
            f"none of the {len(images)} images in {data} can be read: mend or remove them"
        )
    manifest = decoder.bundle.manifest
    low, high = wilson(sum(right), len(right))
    result: dict[str, Any] = {
        "benchmark": "accuracy",
        "machine": describe(threads),
        "commit": commit(),
        "model": manifest.model,
        "lmb": manifest.lmb,
        "weights": manifest.weights,
        "bundle": manifest.fingerprint.hex()[:8],
        "data": "/".join(data.resolve().parts[-2:]),
        "images": len(right),
        **({"left_out": len(damage.files)} if damage.files else {}),
        "as_is": as_is,
        "top1": {"share": sum(right) / len(right), "low": low, "high": high},
        "top5": {"share": sum(right5) / len(right5)},
        "bpp": {
            "mean": float(np.mean(bpp)),
            "p5": float(np.percentile(bpp, 5)),
            "p95": float(np.percentile(bpp, 95)),
        },
        "engines": {"edge": str(encoder.engine.choice), "cloud": str(decoder.engine.choice)},
        "profile": encoder.profile.title,
        "mean_bytes_by_profile": {way: float(np.mean(counted)) for way, counted in by_way.items()},
        "bytes": {
            "mean": float(np.mean(sizes)),
            "p5": float(np.percentile(sizes, 5)),
            "p95": float(np.percentile(sizes, 95)),
        },
    }
    if judge:
        low, high = wilson(sum(teacher_right), len(teacher_right))
        result["teacher_top1"] = {
            "share": sum(teacher_right) / len(teacher_right),
            "low": low,
            "high": high,
        }
        result["top1_minus_teacher"] = paired(np.array(right), np.array(teacher_right))
    return result, predictions


def _teacher(path: Path, threads: int, labels: Sequence[str]) -> Any:
    """A function from pixels uint8 [H, W, 3] to the place of the teacher's class in `labels`, in float32.

    Raises ClassesError where its classes are others.
    """
    import torch

    from training.data import MEAN, STD
    from training.loss import load_teacher

    torch.set_num_threads(threads)
    teacher = load_teacher(path)
    classes = teacher.backbone.fc.out_features
    ours = match(
        teacher.labels or [f"class {index}" for index in range(classes)],
        labels,
        str(path),
        "the bundle",
    ).classes
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def classify(pixels: NDArray[np.uint8]) -> int:
        image = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
        return ours[int(require_finite(teacher(image[None]).logits.numpy()).argmax())]

    return classify


def text(result: dict[str, Any]) -> str:
    def share(entry: dict[str, float]) -> str:
        return f"{entry['share']:.2%} (95 % interval {entry['low']:.2%} to {entry['high']:.2%})"

    lines = [
        f"{result['model']} lmb {result['lmb']}, {result['weights']} weights, bundle {result['bundle']}, {result['images']} images",
        f"top-1    {share(result['top1'])}",
        f"top-5    {result['top5']['share']:.2%}",
        "bpp      {mean:.4f} mean, {p5:.4f} to {p95:.4f} (5th to 95th percentile)".format(
            **result["bpp"]
        ),
        "bytes    {mean:.0f} mean, {p5:.0f} to {p95:.0f}".format(**result["bytes"]),
    ]
    lines += [
        f"bytes    {mean:.1f} mean, {way}" for way, mean in result["mean_bytes_by_profile"].items()
    ]
    if "teacher_top1" in result:
        difference = result["top1_minus_teacher"]
        lines += [
            f"teacher  {share(result['teacher_top1'])}",
            "top-1 minus teacher's  {mean:+.2%} (95 % interval {low:+.2%} to {high:+.2%}, paired)".format(
                **difference
            ),
        ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="one folder of images a class"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4",
    )
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a ResNet-50 to compare with")
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help="default: one a core",
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
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="so many images, taken evenly (default: all)",
    )
    parser.add_argument(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the class index of each image that can be read, a line each, in order",
    )
    parser.add_argument(
        "--provider",
        default="auto",
        metavar="NAME",
        help="engine of both ends, as edge-encode has it",
    )
    parser.add_argument(
        "--precision", default="auto", metavar="NAME", help="of both ends, as edge-encode has it"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        result, predictions = measure(
            args.data,
            args.bundle,
            args.as_is,
            args.teacher,
            args.threads,
            args.batch_size,
            args.workers,
            args.images,
            args.provider,
            args.precision,
            args.skip_damaged,
        )
        if args.predictions:
            args.predictions.write_text("".join(f"{index}\n" for index in predictions))
    except (DataError, EdgeCloudError, ValueError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1, allow_nan=False) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
