"""Evaluate every operating point of models on labelled images.

    python -m training.evaluate -d DIR [-m ours_n4 ours_n8] [-b N] [-w N] [--as-is] [--torch]

DIR has one folder of images per class, named as the model's labels, or in their order. An operating
point is a checkpoint checkpoints/MODEL/lmbL.{safetensors,pt} under the current folder. It is
exported, and `benchmarks/accuracy.py` encodes and decodes every image with real feature files and
onnxruntime. Its record is kept as benchmarks/results/accuracy_MODEL_lmbL.json (--out DIR for
elsewhere), from which `benchmarks/rate_accuracy.py` draws. With --torch the torch model runs
instead; its bits are estimates, and no record is kept.

Always holds: the images are checked against every checkpoint's classes before the first is
exported; what is exported here is removed again. This module imports neither export nor the
benchmark: it runs them as their users do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .command import TrainingError, command, number, progress, say
from .files import check_output_folder, write_atomically
from .rates import MEASURED_LEVELS, LmbRange, parse_lmb

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .folders import ClassFolder, Damage

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
_SUFFIXES = (".safetensors", ".pt")


class EvaluationError(TrainingError):
    """There is nothing to evaluate, or a step of it failed."""


class Point(NamedTuple):
    """An operating point: a model's checkpoint for one rate weight, or for a range of them."""

    model: str
    lmb: str
    checkpoint: Path

    @property
    def name(self) -> str:
        """The name of the point's files, without a suffix."""
        return f"{self.model}_lmb{self.lmb}"

    @property
    def levels(self) -> tuple[float | None, ...]:
        """Rate levels to evaluate at; None for a fixed rate."""
        return MEASURED_LEVELS if isinstance(parse_lmb(self.lmb), LmbRange) else (None,)

    @property
    def least_lmb(self) -> float:
        """The smallest rate weight, by which points are sorted."""
        lmb = parse_lmb(self.lmb)
        return lmb.least if isinstance(lmb, LmbRange) else lmb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add(
        "-d",
        "--data",
        "--data_root",
        required=True,
        type=Path,
        metavar="DIR",
        help="one folder of images per class",
    )
    add(
        "-m",
        "--model",
        "--models",
        nargs="+",
        metavar="MODEL",
        help="models, each with checkpoints in checkpoints/MODEL (default: all that have any)",
    )
    add(
        "-b",
        "--batch_size",
        type=number(int, 1, 65536),
        default=8,
        metavar="N",
        help="images per call of the decoder (default: 8)",
    )
    add(
        "-w",
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        metavar="N",
        help="number of images to decode and resize at a time; 0 means 1 (default: 2)",
    )
    _add_images(parser)
    _add_outputs(parser)
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options about which images are taken, and how and by what they are classified."""
    add = parser.add_argument
    add(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )
    add(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the ResNet-50 of checkpoints that hold the bottleneck alone",
    )
    add("--as-is", action="store_true", help="take the images' pixels as they are")
    add(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="a ResNet-50 to compare each model with, on the same images",
    )
    add(
        "--images",
        type=number(int, 2, 10_000_000),
        metavar="N",
        help="number of images, spread evenly over DIR (default: all)",
    )
    add("--smoke", action="store_true", help="ten images, to see that everything works")
    add("--torch", action="store_true", help="run the torch model, which estimates bits")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the records (default: benchmarks/results; with --smoke none are kept)",
    )
    add(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="also write the images' class indexes to DIR/MODEL_lmbL.txt",
    )
    add("--json", action="store_true", help="one JSON object per line instead of the table")


def operating_points(models: list[str] | None) -> list[Point]:
    """The points of `models` in this order, or of all models with checkpoints, sorted by lmb.

    Prints which files are passed over. Raises EvaluationError for a model without checkpoints.
    """
    if models is None:
        models = sorted(
            {
                path.parent.name
                for path in Path("checkpoints").glob("*/lmb*")
                if path.suffix in _SUFFIXES
            }
        )
        if not models:
            raise EvaluationError(
                f"no checkpoint in {Path('checkpoints').resolve()}: "
                "put MODEL/lmbL.safetensors or .pt there"
            )
    points = []
    for model in models:
        folder = Path("checkpoints") / model
        found = {}
        for path in sorted(folder.glob("lmb*")):
            if path.suffix in _SUFFIXES:
                lmb = path.stem.removeprefix("lmb")
                try:
                    parse_lmb(lmb)
                    found[lmb] = path
                except argparse.ArgumentTypeError:
                    say(
                        f"training.evaluate: passed over {path}, "
                        "whose name is not lmb and a number or range",
                        sys.stderr,
                    )
        if not found:
            raise EvaluationError(
                f"no checkpoint in {folder.resolve()}: "
                "put lmbL.safetensors or lmbL.pt there, or train one"
            )
        own = [Point(model, lmb, path) for lmb, path in found.items()]
        points += sorted(own, key=lambda point: point.least_lmb)
    return points


def classes_of(
    points: list[Point], folder: "ClassFolder", backbone: Path | None
) -> list[list[int]]:
    """For each point, the class of each folder of images; prints how they were matched.

    Raises ClassesError, CheckpointError, FileNotFoundError.
    """
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
    """What a command writes to standard output; raises EvaluationError if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EvaluationError(f"{' '.join(command)} ended with status {done.returncode}")
    return done.stdout


def evaluate(point: Point, args: argparse.Namespace) -> dict[str, Any]:
    """One operating point by export, feature files and onnxruntime; gives and keeps the record.

    Raises EvaluationError, WriteError.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        export = [sys.executable, "-m", "export", point.model, "--checkpoint"]
        export += [str(point.checkpoint), "--lmb", point.lmb, "--out", bundle]
        export += ["--backbone", str(args.backbone)] if args.backbone else []
        _run(export)
        if args.predictions:
            args.predictions.mkdir(parents=True, exist_ok=True)
        text = _run(_accuracy_command(point, bundle, args))
    if args.out:
        write_atomically(args.out / f"accuracy_{point.name}.json", text.encode())
    return json.loads(text)


def _accuracy_command(point: Point, bundle: str, args: argparse.Namespace) -> list[str]:
    """The command that evaluates an exported bundle."""
    command = [sys.executable, str(PROJECT / "benchmarks" / "accuracy.py"), "--json"]
    command += ["--data", str(args.data), "--bundle", bundle]
    command += ["--batch_size", str(args.batch_size), "--workers", str(args.workers)]
    command += ["--as-is"] if args.as_is else []
    levels = [f"{level:g}" for level in point.levels if level is not None]
    command += ["--levels", *levels] if levels else []
    command += ["--images", str(args.images)] if args.images else []
    command += ["--skip-damaged"] if args.skip_damaged else []
    command += ["--teacher", str(args.teacher)] if args.teacher else []
    if args.predictions:
        command += ["--predictions", str(args.predictions / f"{point.name}.txt")]
    return command


def evaluate_torch(
    point: Point,
    args: argparse.Namespace,
    folder: "ClassFolder",
    classes: list[int],
    level: float | None = None,
) -> dict[str, Any]:
    """One operating point by the torch model in float32, with its own estimate of the bits.

    `classes` has the class of each folder; a variable rate has a `level`. Raises EvaluationError,
    DataError, DamagedImageError.
    """
    from .folders import Damage, DataError

    files = [(path, classes[index]) for path, index in folder.files]
    damage = Damage(args.skip_damaged, "--skip-damaged")
    predictions, labels, bpp = _classify(point, args, files, damage, level)
    damage.report()
    if not labels:
        raise DataError(
            f"none of the {len(files)} images in {args.data} can be read: mend or remove them"
        )
    if args.predictions:
        lines = "".join(f"{index}\n" for index in predictions)
        name = point.name if level is None else f"{point.name}_level{level:g}"
        write_atomically(args.predictions / f"{name}.txt", lines.encode())
    right = sum(a == b for a, b in zip(predictions, labels, strict=True))
    return {
        "benchmark": "torch",
        "model": point.model,
        "lmb": point.lmb,
        **({} if level is None else {"level": level}),
        "images": len(labels),
        **({"left_out": len(damage.files)} if damage.files else {}),
        "top1": {"share": right / len(labels)},
        "estimated_bpp": bpp,
    }


def _classify(
    point: Point,
    args: argparse.Namespace,
    files: list[tuple[Path, int]],
    damage: "Damage",
    level: float | None,
) -> tuple[list[int], list[int], float]:
    """The predicted and the true classes of the images that can be read, and the estimated bpp."""
    import torch
    from torch.utils.data import Subset

    from .checkpoint import load_model
    from .data import Batched, ReadableImages, as_they_are, evaluation_images

    net = load_model(point.checkpoint, point.model, args.backbone)[0]
    images: Dataset = as_they_are(files) if args.as_is else evaluation_images(files, 224, 256)
    total = len(files)
    if args.images and args.images < total:
        images = Subset(images, [index * total // args.images for index in range(args.images)])
    batch_size = 1 if args.as_is else args.batch_size
    batches = Batched(
        ReadableImages(images), damage, batch_size=batch_size, num_workers=args.workers
    )
    predictions: list[int] = []
    labels: list[int] = []
    bits = pixels = 0.0
    with torch.inference_mode():
        for image, label in progress(batches, point.model):
            out = net(image, level=level)
            if not out.logits.isfinite().all():
                raise EvaluationError(
                    f"{point.checkpoint} gives logits that are not finite: "
                    "the checkpoint is broken, evaluate another"
                )
            predictions += out.logits.argmax(1).tolist()
            labels += label.tolist()
            bits += float(out.bits.sum())
            pixels += image.numel() / 3
    return predictions, labels, bits / pixels if pixels else 0.0


@command("training.evaluate")
def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    from .folders import class_folder

    args = _parser().parse_args(argv)
    if args.smoke:
        args.images = 10
    args.out = args.out or (None if args.smoke else RESULTS)
    for output in (args.out, args.predictions):
        if output:
            check_output_folder(output)
    points = operating_points(args.model)
    folder = class_folder(args.data, empty=True)
    classes = classes_of(points, folder, args.backbone)
    if not args.json:
        say("| model | lmb | images | top-1 | top-5 | bpp |\n|---|--:|--:|--:|--:|--:|", sys.stdout)
    for point, of_folders in zip(points, classes, strict=True):
        for level in point.levels if args.torch else (None,):
            of = (point, args, folder, of_folders, level)
            record = evaluate_torch(*of) if args.torch else evaluate(point, args)
            # A record of a variable rate has several points, and a row in the table for each.
            rows = [record] if args.json else [record | one for one in record.get("points", [{}])]
            for row in rows:
                text = json.dumps(row, allow_nan=False) if args.json else _table_row(point, row)
                say(text, sys.stdout)
    return 0


def _table_row(point: Point, record: dict[str, Any]) -> str:
    top5 = f"{record['top5']['share']:.2%}" if "top5" in record else "-"
    if "estimated_bpp" in record:
        bpp = f"{record['estimated_bpp']:.4f} (estimated)"
    else:
        bpp = "{mean:.4f} ({p5:.4f} to {p95:.4f})".format(**record["bpp"])
    columns = (
        point.model,
        f"{point.lmb} at level {record['level']:g}" if "level" in record else point.lmb,
        record["images"],
        f"{record['top1']['share']:.2%}",
        top5,
        bpp,
    )
    return f"| {' | '.join(map(str, columns))} |"


if __name__ == "__main__":
    sys.exit(main())
