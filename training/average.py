"""Average the tails of checkpoints that share a bottleneck: often better than each, at no cost.

    python -m training.average ours_n4 FIRST.safetensors SECOND.safetensors --data DIR --out FILE

Made for a checkpoint and what `training.train --frozen_bottleneck` made of it. The mean of the
weights before and after fine-tuning is often better than both (Wortsman et al. 2022, arXiv
2109.01903). The statistics of batch norm fit neither tail's, so they are measured again on training
images, as in Izmailov et al. 2018 (arXiv 1803.05407).

Always holds: the bottleneck is bit for bit the checkpoints' one, so edge devices stay as they are.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import Subset

from .checkpoint import TABLE_BUFFERS, check_checkpoint_output, load_model, save_model
from .command import command, number, part, progress, say
from .data import Batched, SeededImages, split_held_out, training_images
from .folders import Damage, class_folder
from .models import MODELS, FeatureCompressionModel
from .options import parse_stages


class AverageError(ValueError):
    """Checkpoints that have no average."""


def average(models: list[FeatureCompressionModel], names: list[str]) -> FeatureCompressionModel:
    """The model whose tail has the mean of the tails' weights; `names` are for messages.

    The models have one architecture. The first is changed in place and returned. The statistics of
    batch norm are averaged too, and have to be measured again (`_renew_statistics`). Raises
    AverageError if bottlenecks or numbers of classes differ.
    """
    first = models[0]
    states = [model.state_dict() for model in models]
    bottleneck = [
        key for key in states[0] if key.startswith("bottleneck_layer.") and key not in TABLE_BUFFERS
    ]
    for model, state, name in zip(models[1:], states[1:], names[1:], strict=True):
        if not all(torch.equal(state[key], states[0][key]) for key in bottleneck):
            raise AverageError(
                f"{name} has another bottleneck than {names[0]}: "
                "average checkpoints that --frozen_bottleneck made of the same one"
            )
        if model.classes != first.classes:
            raise AverageError(
                f"{name} has {model.classes} classes, {names[0]} has {first.classes}"
            )
    for key, value in states[0].items():
        if not key.startswith("bottleneck_layer.") and value.is_floating_point():
            value.copy_(torch.stack([state[key] for state in states]).mean(0))
    first.freeze_bottleneck()
    return first


def _renew_statistics(model: FeatureCompressionModel, args: argparse.Namespace) -> int:
    """Measure batch norm's statistics on training images; gives their number.

    Raises DataError, DamagedImageError.
    """
    folder, damage = class_folder(args.data), Damage(args.skip_damaged)
    images = split_held_out(
        training_images(folder.files, args.train_size, args.crop_area),
        args.held_out,
        keep_held_out=False,
    )
    chosen = min(args.images, len(images))
    some = Subset(images, [index * len(images) // chosen for index in range(chosen)])
    batches = Batched(
        SeededImages(some, 0),
        damage,
        batch_size=min(32, chosen),
        num_workers=args.workers,
        drop_last=True,
    )
    model.to(memory_format=torch.channels_last)
    update_bn(progress(batches, "batch norm"), model)
    damage.report()
    return chosen


def _side(text: str) -> int:
    """An argparse type: one size as in training.train's --train_size, without epochs."""
    (stage, *more) = parse_stages(text, 1)
    if more or ":" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a schedule: give one size")
    return stage.size


def _recipe(metadata: dict[str, str]) -> Any:
    """How a checkpoint was trained: parsed if it is JSON, as ours is, otherwise the text itself."""
    try:
        return json.loads(metadata.get("recipe", "null"))
    except ValueError:
        return metadata["recipe"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.average", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("model", choices=[name for name, spec in MODELS.items() if not spec.frozen_tail])
    add(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="two or more; labels and lmb are taken from the first",
    )
    add(
        "--data",
        required=True,
        type=Path,
        help="training images to measure batch norm's statistics on, one folder per class",
    )
    add("--out", required=True, type=Path, metavar="FILE", help="the average")
    add(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the ResNet-50 of checkpoints that hold the bottleneck alone",
    )
    _add_images(parser)
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options about the images that the statistics are measured on."""
    add = parser.add_argument
    add(
        "--images",
        type=number(int, 2, 10_000_000),
        default=2000,
        metavar="N",
        help="number of images to measure on, spread evenly over --data (default: 2000)",
    )
    add(
        "--train_size",
        type=_side,
        default=224,
        metavar="SIZE",
        help="side of their random crops, as in the last epochs of training (default: 224)",
    )
    add(
        "--crop_area",
        type=part,
        default=0.08,
        metavar="PART",
        help="smallest part of an image that a crop covers (default: 0.08)",
    )
    add(
        "--held_out",
        type=number(int, 0, 10_000_000),
        default=500,
        metavar="N",
        help="number of images that training held out, left out here too (default: 500)",
    )
    add(
        "-w",
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        help="processes that load images; 0 loads them in this process (default: 2)",
    )
    add(
        "--skip_damaged",
        "--skip-damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )


@command("training.average")
def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    if len(args.checkpoints) < 2:
        raise AverageError("one checkpoint is its own average: name two or more")
    check_checkpoint_output(
        args.out, [*args.checkpoints, *([args.backbone] if args.backbone else [])]
    )
    loaded = [load_model(file, args.model, args.backbone) for file in args.checkpoints]
    model = average([model for model, _ in loaded], [str(file) for file in args.checkpoints])
    images = _renew_statistics(model, args)
    about = {
        "average_of": [_recipe(metadata) for _, metadata in loaded],
        "images": images,
        "train_size": args.train_size,
        "crop_area": args.crop_area,
    }
    save_model(args.out, model, loaded[0][1] | {"recipe": json.dumps(about)})
    say(f"wrote {args.out}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
