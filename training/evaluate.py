"""Evaluate every operating point of models on labelled images.

    python -m training.evaluate -d DIR -m ours_n4 ours_n8 [-b N] [-w N] [--as-is] [--torch]

DIR has one folder of images a class. For each checkpoints/MODEL/lmbL.{safetensors,pt} under the
current folder: the checkpoint is exported, and every image goes through a real feature file and
onnxruntime, by `benchmarks/accuracy.py`, whose record is kept as
benchmarks/results/accuracy_MODEL_lmbL.json (--out DIR for elsewhere), where
`benchmarks/rate_accuracy.py` draws it from. With --torch the torch
model is run instead; its bits are estimates then, and nothing is kept.

Always holds: what is exported here is removed again. This module imports neither export nor the
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

from .command import TrainingError, command, say
from .files import check_output_folder, write_atomically

if TYPE_CHECKING:
    from torch.utils.data import Dataset

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"


class EvaluationError(TrainingError):
    """There is nothing to evaluate, or a step of it failed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-d", "--data", required=True, type=Path, metavar="DIR", help="one folder of images a class")
    parser.add_argument(
        "-m", "--model", nargs="+", required=True, metavar="MODEL", help="models, each with checkpoints in checkpoints/MODEL"
    )
    parser.add_argument("-b", "--batch_size", type=int, default=8, metavar="N", help="images of one decoder call (default: 8)")
    parser.add_argument("-w", "--workers", type=int, default=2, metavar="N", help="decode and resize so many images at a time (default: 2)")
    parser.add_argument("--as-is", action="store_true", help="take the images' pixels as they are")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a ResNet-50 to compare each model with, on the same images")
    parser.add_argument("--images", type=int, metavar="N", help="so many images, taken evenly (default: all)")
    parser.add_argument("--smoke", action="store_true", help="ten images, to see that everything works")
    parser.add_argument("--torch", action="store_true", help="the torch path, with estimated bits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the records go (default: benchmarks/results; with --smoke nowhere)")
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="also write each image's class index to DIR/MODEL_lmbL.txt")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


def operating_points(models: list[str]) -> list[tuple[str, str, Path]]:
    """(model, lmb, checkpoint), by model as given and by lmb; raises EvaluationError for a model without any."""
    points = []
    for model in models:
        folder = Path("checkpoints") / model
        found = {path.stem.removeprefix("lmb"): path for path in sorted(folder.glob("lmb*")) if path.suffix in (".safetensors", ".pt")}
        if not found:
            raise EvaluationError(f"no checkpoint in {folder.resolve()}: put lmbL.safetensors or lmbL.pt there, or train one")
        points += [(model, lmb, found[lmb]) for lmb in sorted(found, key=float)]
    return points


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EvaluationError(f"{' '.join(command)} ended with status {done.returncode}")
    return done.stdout


def evaluate(model: str, lmb: str, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One operating point through export, feature files and onnxruntime; gives accuracy.py's record, and keeps it."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        _run([sys.executable, "-m", "export", model, "--checkpoint", str(checkpoint), "--lmb", lmb, "--out", bundle])
        command = [sys.executable, str(PROJECT / "benchmarks" / "accuracy.py"), "--data", str(args.data), "--bundle", bundle, "--json"]
        command += ["--batch_size", str(args.batch_size), "--workers", str(args.workers), *(["--as-is"] if args.as_is else [])]
        command += ["--images", str(args.images)] if args.images else []
        command += ["--teacher", str(args.teacher)] if args.teacher else []
        if args.predictions:
            args.predictions.mkdir(parents=True, exist_ok=True)
            command += ["--predictions", str(args.predictions / f"{model}_lmb{lmb}.txt")]
        text = _run(command)
    if args.out:
        write_atomically(args.out / f"accuracy_{model}_lmb{lmb}.json", text.encode())
    return json.loads(text)


def evaluate_torch(model: str, lmb: str, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One operating point by the torch model in float32, with its own estimate of the bits."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from tqdm import tqdm

    from .checkpoint import load_model
    from .data import as_they_are, evaluation_images

    net = load_model(checkpoint, model)[0]
    images: Dataset = as_they_are(args.data) if args.as_is else evaluation_images(args.data, 224, 256)
    total = len(images)  # type: ignore[arg-type]
    if args.images and args.images < total:
        images = Subset(images, [index * total // args.images for index in range(args.images)])
    loader = DataLoader(images, 1 if args.as_is else args.batch_size, num_workers=args.workers)
    predictions: list[int] = []
    labels: list[int] = []
    bits = pixels = 0.0
    with torch.inference_mode():
        for image, label in tqdm(loader, model, unit="batch", disable=not sys.stderr.isatty()):
            out = net(image)
            predictions += out.logits.argmax(1).tolist()
            labels += label.tolist()
            bits += float(out.bits)
            pixels += image.numel() / 3
    if args.predictions:
        lines = "".join(f"{index}\n" for index in predictions)
        write_atomically(args.predictions / f"{model}_lmb{lmb}.txt", lines.encode())
    right = sum(a == b for a, b in zip(predictions, labels, strict=True))
    return {
        "benchmark": "torch",
        "model": model,
        "lmb": lmb,
        "images": len(labels),
        "top1": {"share": right / len(labels)},
        "estimated_bpp": bits / pixels,
    }


@command("training.evaluate")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if min(args.batch_size, args.workers) < 1:
        parser.error("--batch_size and --workers begin at 1")
    if args.images is not None and args.images < 2:
        parser.error("--images begins at 2")
    if args.smoke:
        args.images = 10
    args.out = args.out or (None if args.smoke else RESULTS)
    for folder in (args.out, args.predictions):
        if folder:
            check_output_folder(folder)
    points = operating_points(args.model)
    if not args.json:
        say("| model | lmb | images | top-1 | top-5 | bpp |\n|---|--:|--:|--:|--:|--:|", sys.stdout)
    for model, lmb, checkpoint in points:
        record = (evaluate_torch if args.torch else evaluate)(model, lmb, checkpoint, args)
        top5 = f"{record['top5']['share']:.2%}" if "top5" in record else "-"
        bpp = f"{record['estimated_bpp']:.4f} (estimated)" if args.torch else "{mean:.4f} ({p5:.4f} to {p95:.4f})".format(**record["bpp"])
        row = f"| {model} | {lmb} | {record['images']} | {record['top1']['share']:.2%} | {top5} | {bpp} |"
        say(json.dumps(record) if args.json else row, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
