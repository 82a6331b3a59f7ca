"""The options that every training run has, and which of them make up its recipe.

Always holds: the recipe has every option that changes a run's result, except the data and the
weights that it starts from (state.py identifies those by content). A run's state and the finished
checkpoint record the recipe, so the names and the text of its values must not change.
"""

import argparse
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .checkpoint import check_checkpoint_output
from .command import number, part
from .files import check_output_folder

SMOKE_IMAGES = 8
SIDES = (32, 4096)  # of training images, in pixels
MOST_EPOCHS = 100_000
MOST_LR = 1_000_000

# Options whose values are recorded by content, not by name.
INPUTS = ("data", "backbone", "weights", "pretrain", "teacher", "behind")

_NOT_RECIPE = {
    *("run_dir", "resume", "out", "workers", "labels", "device", "ddp_find", "eval_first"),
    *("eval_per", "bottleneck_only", "lr_sched", "skip_damaged", "wbmode", "wbproject", "wbgroup"),
}


@dataclass(frozen=True)
class Stage:
    """`epochs` epochs on crops of `size` pixels a side."""

    size: int
    epochs: int


def parse_stages(text: str, epochs: int) -> list[Stage]:
    """The stages of a schedule; raises argparse.ArgumentTypeError.

    '224' is `epochs` epochs at 224 pixels; '112:8,160:4' is 8 epochs at 112, then 4 at 160.
    """
    stages = []
    for stage in text.split(","):
        size, colon, count = stage.partition(":")
        well_formed = _digits(size) and (_digits(count) if colon else "," not in text)
        if not well_formed:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither SIZE nor SIZE:EPOCHS,SIZE:EPOCHS,..."
            )
        if not SIDES[0] <= int(size) <= SIDES[1] or int(size) % 8:
            raise argparse.ArgumentTypeError(
                f"crop size {size} is not a multiple of 8 from {SIDES[0]} to {SIDES[1]:,}"
            )
        if colon and not 1 <= int(count) <= MOST_EPOCHS:
            raise argparse.ArgumentTypeError(
                f"{stage!r}: {count} is not a number of epochs from 1 to {MOST_EPOCHS:,}"
            )
        stages.append(Stage(int(size), int(count) if colon else epochs))
    return stages


def _digits(text: str) -> bool:
    return text.isdecimal() and len(text) < 20


def _schedule(text: str) -> str:
    """The text itself, if it is a schedule: the recipe records it as it was given."""
    parse_stages(text, 1)
    return text


def add_run_options(
    parser: argparse.ArgumentParser,
    epochs: int,
    batch_size: int,
    train_size: str,
    wdecay: float,
    crop_area: float,
    labelled: bool = True,
) -> None:
    """Add the options that every run has, with these defaults.

    Images that are not `labelled` may be in several folders.
    """
    _add_data(parser, labelled)
    _add_schedule(parser, epochs, batch_size, train_size, crop_area)
    _add_optimization(parser, wdecay)
    _add_measuring(parser)
    _add_execution(parser)
    _add_files(parser)
    _add_tracking(parser)
    parser.add_argument(
        "--smoke",
        action="store_true",
        help=f"one epoch of {SMOKE_IMAGES} images at 64 pixels, to see that everything works",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('edgecloud-features')}"
    )


def _add_data(parser: argparse.ArgumentParser, labelled: bool) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        type=Path,
        nargs=None if labelled else "+",
        metavar="DIR",
        help="training images, one folder per class" if labelled else "training pictures",
    )
    add(
        "--skip_damaged",
        "--skip-damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU if there is one)")


def _add_schedule(
    parser: argparse.ArgumentParser,
    epochs: int,
    batch_size: int,
    train_size: str,
    crop_area: float,
) -> None:
    add = parser.add_argument
    add("--epochs", type=number(int, 1, MOST_EPOCHS), default=epochs, help=f"default: {epochs}")
    add(
        "--train_size",
        type=_schedule,
        default=train_size,
        metavar="SIZE[:EPOCHS,...]",
        help=f"crop side, or a schedule that replaces --epochs (default: {train_size})",
    )
    add(
        "--crop_area",
        type=part,
        default=crop_area,
        metavar="PART",
        help=f"smallest part of an image that a training crop covers (default: {crop_area:g})",
    )
    add(
        "--batch_size",
        type=number(int, 1, 65536),
        default=batch_size,
        help=f"images per batch in each process (default: {batch_size})",
    )
    add(
        "--accum_num",
        type=number(int, 1, 65536),
        default=1,
        metavar="N",
        help="batches per optimizer step (default: 1)",
    )


def _add_optimization(parser: argparse.ArgumentParser, wdecay: float) -> None:
    add = parser.add_argument
    add(
        "--lr_sched",
        choices=["cosine"],
        default="cosine",
        help="only cosine: a warm-up, then a cosine down to 1 %% of the rate",
    )
    add(
        "--wdecay",
        type=number(float, 0, 1),
        default=wdecay,
        help=f"weight decay of convolutions and linear layers (default: {wdecay:g})",
    )
    add(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 where it is precise enough (default: on if the processor or GPU has "
        "bfloat16 instructions)",
    )
    add(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure and keep a moving average of the weights",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--held_out",
        type=number(int, 0, 10_000_000),
        default=500,
        metavar="N",
        help="training images set aside to measure on; 0 measures nothing (default: 500)",
    )
    add(
        "--val_size",
        type=number(int, *SIDES),
        default=224,
        help="side of the held-out images' crops (default: 224)",
    )
    add(
        "--val_crop_r",
        type=number(float, 0.1, 1),
        default=0.875,
        help="the crop's part of the short side; 1 for images of its size (default: 0.875)",
    )
    add(
        "--eval_first",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure before the first epoch",
    )
    add(
        "--eval_per",
        type=number(int, 1, MOST_EPOCHS),
        default=1,
        metavar="N",
        help="measure every N epochs (default: 1)",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-w",
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        help="processes that load images; 0 loads them in the training process (default: 2)",
    )
    add(
        "--fixseed",
        type=number(int, 0, 2**32 - 1),
        nargs="?",
        const=0,
        default=0,
        metavar="SEED",
        help="default: 0",
    )
    add(
        "--ddp_find",
        action="store_true",
        help="with torchrun: look for parameters that a step does not use",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--labels",
        type=Path,
        metavar="FILE",
        help="one label per line, in the order of DIR's folders (default: the folders' names)",
    )
    add(
        "--run_dir",
        type=Path,
        help="folder for the run's state, log and plot (default: runs/NAME)",
    )
    add(
        "--resume",
        type=Path,
        metavar="RUN",
        help="the same as --run_dir, but an error if RUN has no state to resume from",
    )
    add("--out", type=Path, help="finished checkpoint (default: in the run's folder)")


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--wbmode",
        choices=["disabled", "offline", "online"],
        default="disabled",
        help="Weights & Biases (default: disabled)",
    )
    add("--wbproject", default="edge-cloud-rac")
    add("--wbgroup", default="default-group")


def shrink_to_smoke(args: argparse.Namespace) -> None:
    """Set the options that --smoke stands for, if it was given."""
    if args.smoke:
        args.train_size, args.batch_size, args.accum_num = "64:1", 2, 1
        args.held_out, args.workers = 2, 0
        args.val_size, args.val_crop_r = 64, 1.0


def crop_sides(args: argparse.Namespace) -> list[int]:
    """The side of the training crops in each epoch of the run."""
    stages = parse_stages(args.train_size, args.epochs)
    return [stage.size for stage in stages for _ in range(stage.epochs)]


def recipe(args: argparse.Namespace, processes: int) -> dict[str, str]:
    """The options that decide a run's result, except the data and weights that it starts from."""
    options = {
        key: str(value)
        for key, value in vars(args).items()
        if key not in _NOT_RECIPE and key not in INPUTS
    }
    return options | {"processes": str(processes)}


def shared_recipe(args: argparse.Namespace, processes: int) -> str:
    """The recipe as JSON for a checkpoint's metadata, which must not hold this machine's paths."""
    return json.dumps(recipe(args, processes))


def check_outputs(args: argparse.Namespace, run: Path, out: Path) -> None:
    """Refuse outputs that cannot be written or would replace an input, before work is done.

    Raises OutputError.
    """
    check_output_folder(run)
    given = [value for key in ("labels", *INPUTS[1:]) if (value := getattr(args, key, None))]
    check_checkpoint_output(
        out, [file for one in given for file in (one if isinstance(one, list) else [one])]
    )
