"""What a training run is, whatever it trains: options, processes, schedule, state, log and plot.

Used by training.train and training.backbone. A run is a folder: `last.pt`, its state after the last
whole epoch; `log.jsonl`, a line an epoch; `log.png`, the same as curves.

Always holds: an epoch's random numbers depend on the seed and the epoch alone, so a killed run and
an undisturbed one see the same images in the same order; the log is part of the state, and tells of
exactly the epochs that the state has behind it.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from .checkpoint import check_checkpoint_output
from .command import TrainingError, number, on_terminal, part, say
from .data import (
    Batched,
    Batches,
    ReadableImages,
    SeededImages,
    evaluation_images,
    refuse_held_out,
    split_held_out,
    training_images,
)
from .files import atomic_file, check_output_folder, check_space, write_atomically
from .folders import Damage, DataError, class_folder
from .labels import match, read_labels
from .weights import CheckpointError, load_plain

SMOKE_IMAGES = 8
SIDES = (32, 4096)  # of the images that a model takes in training
MOST_EPOCHS = 100_000
MOST_LR = 1_000_000


class StateError(TrainingError):
    """`last.pt` is no state that this run can go on with."""


@dataclass(frozen=True)
class Stage:
    """`epochs` epochs on crops of `size` pixels a side."""

    size: int
    epochs: int


def parse_stages(text: str, epochs: int) -> list[Stage]:
    """'224' -> all epochs at 224; '112:8,160:4' -> 8 epochs at 112, then 4 at 160."""
    stages = []
    for stage in text.split(","):
        size, colon, count = stage.partition(":")
        whole = _digits(size) and (_digits(count) if colon else "," not in text)
        if not whole:
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
    """The text itself if `parse_stages` understands it: that is how a run's options are recorded."""
    parse_stages(text, 1)
    return text


def add_run_options(
    parser: argparse.ArgumentParser,
    epochs: int,
    batch_size: int,
    train_size: str,
    wdecay: float,
    crop_area: float,
) -> None:
    """The options that every run has, with these defaults."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="training images, one folder a class",
    )
    add(
        "--skip_damaged",
        "--skip-damaged",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU if there is one)")
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
        help=f"the least part of an image that a training crop covers (default: {crop_area:g})",
    )
    add(
        "--batch_size",
        type=number(int, 1, 65536),
        default=batch_size,
        help=f"images of a step in each process (default: {batch_size})",
    )
    add(
        "--accum_num",
        type=number(int, 1, 65536),
        default=1,
        metavar="N",
        help="batches that make one step of the optimizer (default: 1)",
    )
    add(
        "--lr_sched",
        choices=["cosine"],
        default="cosine",
        help="the one there is: warm-up, then a cosine to 1 %% of the rate",
    )
    add(
        "--wdecay",
        type=number(float, 0, 1),
        default=wdecay,
        help=f"decay of convolutions and linear layers (default: {wdecay:g})",
    )
    add(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 where it is precise enough (default: on a processor or GPU that computes in it)",
    )
    add(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure and keep a moving average of the weights",
    )
    add(
        "--held_out",
        type=number(int, 0, 10_000_000),
        default=500,
        metavar="N",
        help="training images kept aside to measure on; 0 measures nothing (default: 500)",
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
    add(
        "-w",
        "--workers",
        type=number(int, 0, 1024),
        default=2,
        help="image loading processes; 0 for none beside this (default: 2)",
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
    add(
        "--labels",
        type=Path,
        metavar="FILE",
        help="one label a line, in the order of DIR's folders (default: their names)",
    )
    add("--run_dir", type=Path, help="folder of the run's state, log and plot (default: runs/NAME)")
    add(
        "--resume",
        type=Path,
        metavar="RUN",
        help="as --run_dir, but it is an error if there is nothing to go on with",
    )
    add("--out", type=Path, help="finished checkpoint (default: in the run's folder)")
    add(
        "--wbmode",
        choices=["disabled", "offline", "online"],
        default="disabled",
        help="Weights & Biases (default: disabled)",
    )
    add("--wbproject", default="edge-cloud-rac")
    add("--wbgroup", default="default-group")
    add(
        "--smoke",
        action="store_true",
        help=f"one epoch of {SMOKE_IMAGES} images at 64 pixels, to see that everything works",
    )
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")


def shrink_to_smoke(args: argparse.Namespace) -> None:
    """What --smoke stands for."""
    if args.smoke:
        args.train_size, args.batch_size, args.accum_num, args.held_out, args.workers = (
            "64:1",
            2,
            1,
            2,
            0,
        )
        args.val_size, args.val_crop_r = 64, 1.0


_INPUTS = ("data", "backbone", "pretrain")

# What a run is, in `last.pt` and in the checkpoint: all options but these.
_NOT_RECIPE = {
    "run_dir",
    "resume",
    "out",
    "workers",
    "labels",
    "device",
    "ddp_find",
    "eval_first",
    "eval_per",
    "bottleneck_only",
} | {
    "lr_sched",
    "skip_damaged",
    "wbmode",
    "wbproject",
    "wbgroup",
}


def recipe(args: argparse.Namespace, processes: int) -> dict[str, str]:
    """The options that decide a run's result, but the data and the weights that it begins with."""
    options = {
        key: str(value)
        for key, value in vars(args).items()
        if key not in _NOT_RECIPE and key not in _INPUTS
    }
    return options | {"processes": str(processes)}


def shared_recipe(args: argparse.Namespace, processes: int) -> str:
    """The recipe as a checkpoint's metadata has it: what data and weights it began with is this machine's business."""
    return json.dumps(recipe(args, processes))


def inputs(args: argparse.Namespace, data: "Data") -> dict[str, str]:
    """What data and weights a run begins with, by what they hold: a run may move, and they may."""
    names = sorted(os.path.relpath(name, data.root) for name, _ in data.files)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    found = {"data": f"{len(names)} files of {len(data.labels)} classes, names {digest[:16]}"}
    for key in _INPUTS[1:]:
        file = getattr(args, key, None)
        if file is not None and Path(file).is_file():
            with open(file, "rb") as opened:
                found[key] = f"sha256 {hashlib.file_digest(opened, 'sha256').hexdigest()}"
        elif hasattr(args, key):
            found[key] = str(file)
    return found


def check_outputs(args: argparse.Namespace, run: Path, out: Path) -> None:
    """Refuse, before work is done for them, places that cannot be written to and an output that is an input. Raises OutputError."""
    check_output_folder(run)
    check_checkpoint_output(
        out, [file for key in ("labels", *_INPUTS[1:]) if (file := getattr(args, key, None))]
    )


@dataclass(frozen=True)
class Team:
    """The processes that torchrun started, or this one alone."""

    rank: int
    processes: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        if self.processes > 1:
            distributed.barrier()

    def total(self, count: int) -> int:
        """The sum of all processes' counts."""
        if self.processes == 1:
            return count
        counts = torch.tensor(count, device=self.device)
        distributed.all_reduce(counts)
        return int(counts)


@contextlib.contextmanager
def assemble(device: str) -> Iterator[Team]:
    """Raises TrainingError where the device is not there."""
    processes, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(f"cuda:{local}" if device == "cuda" and processes > 1 else device)
        torch.zeros(1, device=chosen).item()  # which the device "meta" has not
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(
            f"--device {device} is not to be had here ({str(error).splitlines()[0]}): choose cpu or cuda"
        ) from error
    if processes > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(rank, processes, chosen)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def settle_precision(args: argparse.Namespace, team: Team) -> None:
    """Whether --amp is on, where that was not said: it is recorded, and a run goes on as it began."""
    if args.amp is None:
        args.amp = computes_in_bfloat16(team.device)
        if not args.amp and team.leads:
            say(
                f"in float32: this {team.device.type} does not compute in bfloat16 (--amp asks for it all the same)",
                sys.stderr,
            )


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 has instructions of its own there; elsewhere it takes about twice float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(
        torch.cpu, "get_capabilities"
    ):  # before torch 2.10, which does not know it of ARM
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class Data:
    """The images of a run, each with its class, and the classes' labels."""

    root: Path
    files: list[tuple[Path, int]]
    labels: list[str]
    named: bool  # whether --labels gave the labels

    def for_model(
        self, labels: list[str] | None, classes: int, of: str, report: bool = True
    ) -> "Data":
        """The same with the classes as `of` has them, whatever order the folders are in. Raises TrainingError, ClassesError."""
        if len(self.labels) != classes:
            raise TrainingError(
                f"{self.root} has {len(self.labels)} classes and {of} has {classes}"
            )
        order, note = match(self.labels, labels or classes, str(self.root), of)
        if note and labels and report:
            say(note, sys.stderr)
        ours: list[str] = [self.labels[order.index(index)] for index in range(classes)]
        kept = ours if note or self.named or not labels else labels
        return Data(
            self.root, [(path, order[index]) for path, index in self.files], kept, self.named
        )

    def held_out(self, args: argparse.Namespace) -> Dataset:
        """What is measured on."""
        images = evaluation_images(
            self.files, args.val_size, round(args.val_size / args.val_crop_r)
        )
        return split_held_out(images, args.held_out, keep_held_out=True)


def read_data(args: argparse.Namespace) -> Data:
    """The images in --data and their labels, checked before anything else is done. Raises TrainingError, DataError, LabelsError."""
    folder = class_folder(args.data)
    classes = len(folder.names)
    if classes < 2:
        raise TrainingError(
            f"{args.data} has one folder, {folder.names[0]}: a model is trained on two classes or more, a folder each"
        )
    labels = read_labels(args.labels, classes, str(args.data)) if args.labels else folder.names
    refuse_held_out(args.held_out, len(folder.files))
    return Data(args.data, folder.files, labels, bool(args.labels))


def _rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then a cosine to 1 % of the rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _tracker(args: argparse.Namespace) -> Callable[[dict[str, Any]], object]:
    """Sends a record to Weights & Biases, if that is wanted."""
    if args.wbmode == "disabled":
        return lambda record: None
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise TrainingError(
            f"--wbmode {args.wbmode} needs Weights & Biases: pip install wandb"
        ) from error
    settings = {key: str(value) for key, value in vars(args).items()}
    return wandb.init(
        project=args.wbproject, group=args.wbgroup, mode=args.wbmode, config=settings
    ).log


def _line(record: dict[str, Any]) -> str:
    """A record as JSON, which has no NaN and no infinity: null stands for them."""
    return json.dumps(
        {
            key: None if value != value or value in (math.inf, -math.inf) else value
            for key, value in record.items()
        }
    )


def _write_log(run: Path, log: list[dict[str, Any]]) -> None:
    """`log.jsonl`, and its numbers as curves over the epochs in `log.png`."""
    write_atomically(run / "log.jsonl", "".join(_line(record) + "\n" for record in log).encode())
    from matplotlib.figure import Figure

    panels = [
        (
            "loss",
            [key for key in log[0] if key in ("loss", "cross_entropy", "distillation", "features")],
        ),
        ("held-out top-1", ["held_out_top1"]),
        ("estimated bpp", ["bpp", "held_out_estimated_bpp"]),
    ]
    panels = [
        (title, keys)
        for title, keys in panels
        if any(key in record for key in keys for record in log)
    ]
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
    for axes, (title, keys) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for key in keys:
            points = [(record["epoch"], record[key]) for record in log if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=key)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_file(run / "log.png") as file:
        figure.savefig(file, format="png", dpi=110)


def _go_on(
    file: Path,
    identity: dict[str, str],
    args: argparse.Namespace,
    epochs: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> tuple[int, list[dict[str, Any]]]:
    """Take up a run's state; gives the epochs that are behind it and their log. Raises StateError, OSError."""

    def refuse(why: str) -> StateError:
        return StateError(f"{file} {why}: give another --run_dir, or remove the file to begin anew")

    try:
        state = load_plain(file)
    except CheckpointError as error:
        raise StateError(
            f"{error}; or give another --run_dir, or remove the file to begin anew"
        ) from error
    theirs = state.get("recipe") if isinstance(state, dict) else None
    if not isinstance(theirs, dict):
        raise refuse("is no state of training.train or training.backbone")
    # States of earlier versions have paths for what a run begins with.
    paths = {
        key: (str(value), str(Path(value).resolve()))
        for key in _INPUTS
        if (value := getattr(args, key, None)) is not None
    }
    other = [
        f"{key} {theirs.get(key)} and not {identity.get(key)}"
        for key in sorted({*map(str, theirs), *identity})
        if theirs.get(key) != identity.get(key) and theirs.get(key) not in paths.get(key, ())
    ]
    if other:
        raise StateError(
            f"{file} is of a run with other options ({', '.join(other)}): "
            "give those again, give another --run_dir, or remove the file to begin anew"
        )
    epoch, log = state.get("epoch"), state.get("log")
    whole = isinstance(log, list) and all(
        isinstance(record, dict) and "epoch" in record for record in log
    )
    if not isinstance(epoch, int) or not whole or not 0 < epoch == len(log) <= epochs:
        raise refuse("has no log of its epochs")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        for parameter, slots in optimizer.state.items():
            if any(
                isinstance(slot, Tensor) and slot.ndim and slot.shape != parameter.shape
                for slot in slots.values()
            ):
                raise ValueError("the optimizer's state is of other shapes")
    # What is missing, is no dict, or does not fit this model or optimizer: torch and Python have a class for each.
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise refuse(f"is of another model or version ({what[:200]})") from error
    return epoch, log


def run_epochs(
    args: argparse.Namespace,
    team: Team,
    run: Path,
    data: Data,
    damage: Damage,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]],
    judge: Callable[[nn.Module], dict[str, float]],
) -> nn.Module:
    """All epochs that the run in folder `run` still has before it; gives what to keep: the model, or its moving average.

    `loss(model, image, label)` is taken of batches on the team's device, float [N, 3, S, S] and int64
    [N], under autocast with --amp, and gives scalars to log, of which "loss" is minimised;
    `judge(model)` measures on the held-out images. Raises TrainingError for a run of other options,
    for too few images, and for a loss that is not finite; DamagedImageError.
    """
    _refuse_too_few(args, team, data)
    state_file = run / "last.pt"
    if args.resume and not state_file.exists():
        raise TrainingError(f"there is no {state_file} to go on with: leave out --resume to begin")
    sizes = [
        stage.size
        for stage in parse_stages(args.train_size, args.epochs)
        for _ in range(stage.epochs)
    ]
    model.to(team.device).to(memory_format=torch.channels_last)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
        if args.ema
        else None
    )
    judged = average.module if average else model
    if team.leads:
        check_space(
            run, sum(value.numel() * value.element_size() for value in model.state_dict().values())
        )
    base_rates = [group["lr"] for group in optimizer.param_groups]

    identity = recipe(args, team.processes) | inputs(args, data)
    first_epoch = 0
    log: list[dict[str, Any]] = []
    if state_file.exists():
        first_epoch, log = _go_on(state_file, identity, args, len(sizes), model, optimizer, average)
        if team.leads:
            _write_log(run, log)
            say(f"going on after epoch {first_epoch} of {state_file}", sys.stderr)
    track = _tracker(args) if team.leads else lambda record: None
    student: nn.Module = model
    if team.processes > 1:
        student = DistributedDataParallel(model, find_unused_parameters=args.ddp_find)
    if args.eval_first and first_epoch == 0 and team.leads:
        say(_line({"epoch": 0, **judge(judged)}), sys.stdout)

    for epoch in range(first_epoch, len(sizes)):
        started = time.monotonic()
        seed = args.fixseed * 10_000 + epoch
        torch.manual_seed(seed * 1_000 + team.rank)
        images = split_held_out(
            training_images(data.files, sizes[epoch], args.crop_area),
            args.held_out,
            keep_held_out=False,
        )
        if args.smoke:
            images = Subset(
                images,
                [
                    index * len(images) // SMOKE_IMAGES
                    for index in range(min(SMOKE_IMAGES, len(images)))
                ],
            )
        batches = Batches(len(images), args.batch_size, seed, team.rank, team.processes)
        loader = Batched(
            SeededImages(images, seed), damage, batch_sampler=batches, num_workers=args.workers
        )
        steps = len(loader) // args.accum_num
        names: tuple[str, ...] = ()
        sums = torch.zeros(())
        model.train()
        bar = tqdm(
            loader,
            desc=f"epoch {epoch + 1}/{len(sizes)} at {sizes[epoch]}",
            disable=not (team.leads and on_terminal()),
        )
        for index, (image, label) in enumerate(bar):
            if index == steps * args.accum_num:
                break
            steps_now = index % args.accum_num == args.accum_num - 1
            factor = _rate_factor(
                epoch * steps + index // args.accum_num, steps * len(sizes), min(200, steps)
            )
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            image = image.to(team.device, memory_format=torch.channels_last, non_blocking=True)
            label = label.to(team.device, non_blocking=True)
            # Gradients are summed over processes once a step.
            apart = (
                student.no_sync()
                if isinstance(student, DistributedDataParallel) and not steps_now
                else contextlib.nullcontext()
            )
            with apart:
                with torch.autocast(team.device.type, torch.bfloat16, enabled=args.amp):
                    terms = loss(student, image, label)
                if not torch.isfinite(terms["loss"]):
                    raise TrainingError(
                        f"the loss is {terms['loss'].item()} at epoch {epoch + 1}, batch {index + 1}; try a smaller --lr"
                    )
                (terms["loss"] / args.accum_num).backward()
            if steps_now:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average:
                    average.update_parameters(model)
            names = tuple(terms)
            sums = sums + torch.stack([term.detach().cpu() for term in terms.values()])
            if index % 10 == 9:
                bar.set_postfix(
                    {
                        name: f"{value:.3f}"
                        for name, value in zip(names, (sums / (index + 1)).tolist(), strict=True)
                    }
                )
        left_out = team.total(damage.count_lately())
        if team.leads:
            means = (sums / (steps * args.accum_num)).tolist()
            record: dict[str, Any] = {
                "epoch": epoch + 1,
                "of": len(sizes),
                "size": sizes[epoch],
                **dict(zip(names, means, strict=True)),
            }
            if (epoch + 1) % args.eval_per == 0 or epoch + 1 == len(sizes):
                record |= {f"held_out_{key}": value for key, value in judge(judged).items()}
            if left_out:
                record["left_out"] = left_out
            record["seconds"] = round(time.monotonic() - started, 1)
            log.append(record)
            state = {"recipe": identity, "epoch": epoch + 1, "log": log}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()} | (
                {"average": average.state_dict()} if average else {}
            )
            with atomic_file(state_file) as file:
                torch.save(state, file)
            _write_log(run, log)
            say(_line(record), sys.stdout)
            track(record)
        team.wait()
    damage.report()
    return judged.cpu()


def _refuse_too_few(args: argparse.Namespace, team: Team, data: Data) -> None:
    images = len(data.files) - args.held_out
    images = min(images, SMOKE_IMAGES) if args.smoke else images
    together = args.batch_size * team.processes * args.accum_num
    if images < together:
        raise TrainingError(
            f"{images} images do not fill one batch of {together}: give a smaller --batch_size, or more images"
        )


def top1(
    images: Dataset,
    logits: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
    amp: bool,
    damage: Damage | None = None,
) -> float:
    """Share of images whose class is the largest of `logits(image)`. Raises DamagedImageError, DataError."""
    right = count = 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for image, label in Batched(
            ReadableImages(images), damage or Damage(False), batch_size=batch_size
        ):
            found = logits(image.to(device, memory_format=torch.channels_last)).cpu()
            # To argmax a NaN is the largest: an answer with one is wrong, whatever it names.
            right += int(((found.argmax(1) == label) & found.isfinite().all(1)).sum())
            count += len(label)
    if not count:
        raise DataError("none of the held-out images can be read: mend or remove them")
    return right / count
