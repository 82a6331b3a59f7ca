"""Evaluate every operating point of models on labelled images.

    python -m training.evaluate -d DIR [-m ours_n4 ours_n8] [-b N] [-w N] [--as-is] [--torch]

DIR has one folder of images a class, named as the model's labels, or in their order. For each
checkpoints/MODEL/lmbL.{safetensors,pt} under the current folder: the checkpoint is exported, and every
image goes through a real feature file and onnxruntime, by `benchmarks/accuracy.py`, whose record is
kept as benchmarks/results/accuracy_MODEL_lmbL.json (--out DIR for elsewhere), where
`benchmarks/rate_accuracy.py` draws it from. With --torch the torch model is run instead; its bits are
estimates then, and nothing is kept.

Always holds: the images are held against every checkpoint's classes before the first is exported;
what is exported here is removed again. This module imports neither export nor the
benchmark: it runs them as their users do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import TrainingError, command, number, progress, say
from .files import check_output_folder, write_atomically

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .folders import ClassFolder

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
_LMB = number(float, 0, 1_000_000)


class EvaluationError(TrainingError):
    """There is nothing to evaluate, or a step of it failed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "-d",
        "--data",
        "--data_root",
        required=True,
        type=Path,
        metavar="DIR",
        help="one folder of images a class",
    )
    parser.add_argument(
        "-m",
        "--model",
        "--models",
        nargs="+",
        metavar="MODEL",
        help="models, each with checkpoints in checkpoints/MODEL (default: all that have any)",
    )
    parser.add_argument(
        "-b",
        "--batch_size",
        type=number(int, 1, 65536),
        default=8,
        metavar="N",
        help="images of one decoder call (default: 8)",
    )
    parser.add_argument(
        "-w",
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        metavar="N",
        help="decode and resize so many images at a time; 0 as 1 (default: 2)",
    )
    parser.add_argument(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the ResNet-50 of checkpoints that hold the bottleneck alone",
    )
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="a ResNet-50 to compare each model with, on the same images",
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="so many images, taken evenly (default: all)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="ten images, to see that everything works"
    )
    parser.add_argument("--torch", action="store_true", help="the torch path, with estimated bits")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the records go (default: benchmarks/results; with --smoke nowhere)",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="also write the images' class indexes to DIR/MODEL_lmbL.txt",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line instead of the table"
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('edgecloud-features')}"
    )
    return parser


def operating_points(models: list[str] | None) -> list[tuple[str, str, Path]]:
    """(model, lmb, checkpoint), by model as given, or all that have checkpoints, and by lmb.

    Says which files are passed over. Raises EvaluationError for a model without checkpoints.
    """
    if models is None:
        models = sorted(
            {
                path.parent.name
                for path in Path("checkpoints").glob("*/lmb*")
                if path.suffix in (".safetensors", ".pt")
            }
        )
        if not models:
            raise EvaluationError(
                f"no checkpoint in {Path('checkpoints').resolve()}: put MODEL/lmbL.safetensors or .pt there"
            )
    points = []
    for model in models:
        folder = Path("checkpoints") / model
        found = {}
        for path in sorted(folder.glob("lmb*")):
            if path.suffix in (".safetensors", ".pt"):
                lmb = path.stem.removeprefix("lmb")
                try:
                    _LMB(lmb)
                    found[lmb] = path
                except argparse.ArgumentTypeError:
                    say(
                        f"training.evaluate: passed over {path}, whose name is not lmb and a number",
                        sys.stderr,
                    )
        if not found:
            raise EvaluationError(
                f"no checkpoint in {folder.resolve()}: put lmbL.safetensors or lmbL.pt there, or train one"
            )
        points += [(model, lmb, found[lmb]) for lmb in sorted(found, key=float)]
    return points


def classes_of(
    points: list[tuple[str, str, Path]], folder: "ClassFolder", backbone: Path | None
) -> list[list[int]]:
    """For each checkpoint, the class of each folder of images. Raises ClassesError, CheckpointError, FileNotFoundError."""
    from .checkpoint import load_model
    from .labels import match, stored_labels

    found, notes = [], set()
    for model, _, checkpoint in points:
        net, metadata = load_model(checkpoint, model, backbone)
        labels = stored_labels(metadata, net.classes)
        classes, note = match(
            folder.names, labels or net.classes, str(folder.root), str(checkpoint)
        )
        found.append(classes)
        notes |= {note} if note and labels else set()
    for note in sorted(notes):
        say(f"training.evaluate: {note}", sys.stderr)
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EvaluationError(f"{' '.join(command)} ended with status {done.returncode}")
    return done.stdout


def evaluate(
    model: str, lmb: str, checkpoint: Path, args: argparse.Namespace, *_: object
) -> dict[str, Any]:
    """One operating point through export, feature files and onnxruntime; gives accuracy.py's record, and keeps it."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        backbone = ["--backbone", str(args.backbone)] if args.backbone else []
        _run(
            [
                sys.executable,
                "-m",
                "export",
                model,
                "--checkpoint",
                str(checkpoint),
                "--lmb",
                lmb,
                "--out",
                bundle,
                *backbone,
            ]
        )
        command = [
            sys.executable,
            str(PROJECT / "benchmarks" / "accuracy.py"),
            "--data",
            str(args.data),
            "--bundle",
            bundle,
            "--json",
        ]
        command += [
            "--batch_size",
            str(args.batch_size),
            "--workers",
            str(args.workers),
            *(["--as-is"] if args.as_is else []),
        ]
        command += ["--images", str(args.images)] if args.images else []
        command += ["--skip-damaged"] if args.skip_damaged else []
        command += ["--teacher", str(args.teacher)] if args.teacher else []
        if args.predictions:
            args.predictions.mkdir(parents=True, exist_ok=True)
            command += ["--predictions", str(args.predictions / f"{model}_lmb{lmb}.txt")]
        text = _run(command)
    if args.out:
        write_atomically(args.out / f"accuracy_{model}_lmb{lmb}.json", text.encode())
    return json.loads(text)


def evaluate_torch(
    model: str,
    lmb: str,
    checkpoint: Path,
    args: argparse.Namespace,
    folder: "ClassFolder",
    classes: list[int],
) -> dict[str, Any]:
    """One operating point by the torch model in float32, with its own estimate of the bits. Raises DamagedImageError."""
    import torch
    from torch.utils.data import Subset

    from .checkpoint import load_model
    from .data import Batched, ReadableImages, as_they_are, evaluation_images
    from .folders import Damage, DataError

    net = load_model(checkpoint, model, args.backbone)[0]
    files = [(path, classes[index]) for path, index in folder.files]
    images: Dataset = as_they_are(files) if args.as_is else evaluation_images(files, 224, 256)
    total = len(files)
    if args.images and args.images < total:
        images = Subset(images, [index * total // args.images for index in range(args.images)])
    damage = Damage(args.skip_damaged, "--skip-damaged")
    batch_size = 1 if args.as_is else args.batch_size
    batches = Batched(
        ReadableImages(images), damage, batch_size=batch_size, num_workers=args.workers
    )
    predictions: list[int] = []
    labels: list[int] = []
    bits = pixels = 0.0
    with torch.inference_mode():
        for image, label in progress(batches, model):
            out = net(image)
            if not out.logits.isfinite().all():
                raise EvaluationError(
                    f"{checkpoint} gives logits that are not finite numbers: it is broken, evaluate another"
                )
            predictions += out.logits.argmax(1).tolist()
            labels += label.tolist()
            bits += float(out.bits)
            pixels += image.numel() / 3
    damage.report()
    if not labels:
        raise DataError(
            f"none of the {total} images in {args.data} can be read: mend or remove them"
        )
    if args.predictions:
        lines = "".join(f"{index}\n" for index in predictions)
        write_atomically(args.predictions / f"{model}_lmb{lmb}.txt", lines.encode())
    right = sum(a == b for a, b in zip(predictions, labels, strict=True))
    return {
        "benchmark": "torch",
        "model": model,
        "lmb": lmb,
        "images": len(labels),
        **({"left_out": len(damage.files)} if damage.files else {}),
        "top1": {"share": right / len(labels)},
        "estimated_bpp": bits / pixels,
    }


@command("training.evaluate")
def main(argv: list[str] | None = None) -> int:
    from .folders import class_folder

    args = _parser().parse_args(argv)
    if args.smoke:
        args.images = 10
    args.out = args.out or (None if args.smoke else RESULTS)
    for folder in (args.out, args.predictions):
        if folder:
            check_output_folder(folder)
    points = operating_points(args.model)
    folder = class_folder(args.data, empty=True)
    classes = classes_of(points, folder, args.backbone)
    if not args.json:
        say("| model | lmb | images | top-1 | top-5 | bpp |\n|---|--:|--:|--:|--:|--:|", sys.stdout)
    for (model, lmb, checkpoint), found in zip(points, classes, strict=True):
        record = (evaluate_torch if args.torch else evaluate)(
            model, lmb, checkpoint, args, folder, found
        )
        top5 = f"{record['top5']['share']:.2%}" if "top5" in record else "-"
        bpp = (
            f"{record['estimated_bpp']:.4f} (estimated)"
            if args.torch
            else "{mean:.4f} ({p5:.4f} to {p95:.4f})".format(**record["bpp"])
        )
        row = f"| {model} | {lmb} | {record['images']} | {record['top1']['share']:.2%} | {top5} | {bpp} |"
        say(json.dumps(record, allow_nan=False) if args.json else row, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
