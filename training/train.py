"""Train a model under a teacher.

    python -m training.train --model ours_n4 --model_args bpp_lmb=0.64 --data DIR
    CUDA_VISIBLE_DEVICES=4 python -m training.train --model ours_n4 --data DIR --batch_size 128
    torchrun --nproc_per_node 4 -m training.train --model ours_n4 --data DIR --batch_size 96 --ddp_find

DIR is an ImageFolder. The teacher is a ResNet-50: --backbone FILE with torchvision's keys and as many
classes as DIR, or ImageNet's from torchvision. The run writes `last.pt` after every epoch and the
finished checkpoint to --out; started again with the same --run_dir it goes on where the last
whole epoch ended. A log line an epoch is appended to `log.jsonl` there, and sent to Weights & Biases
with --wbmode online.

Always holds: the teacher is in eval mode; an epoch's random numbers depend on the seed and the
epoch alone, so a killed run and an undisturbed one see the same images in the same order.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoint import atomic_path, load_model, save_model
from .data import Batches, SeededImages, evaluation_images, split_held_out, training_images
from .loss import Teacher, distillation_loss, load_imagenet_teacher, load_teacher, start_from_teacher
from .models import MODELS, FeatureCompressionModel, build_model, fit_quantiles


class TrainingError(RuntimeError):
    """Training cannot start or go on: wrong options, or a loss that is not finite."""


@dataclass(frozen=True)
class Stage:
    """`epochs` epochs on crops of `size` pixels a side."""

    size: int
    epochs: int


def parse_stages(text: str, epochs: int) -> list[Stage]:
    """'224' -> all epochs at 224; '112:8,160:4' -> 8 epochs at 112, then 4 at 160."""
    stages = []
    for part in text.split(","):
        size, colon, count = part.partition(":")
        whole = size.isdigit() and (count.isdigit() if colon else "," not in text)
        if not whole:
            raise argparse.ArgumentTypeError(f"{text!r} is neither SIZE nor SIZE:EPOCHS,SIZE:EPOCHS,...")
        if int(size) < 32 or int(size) % 8:
            raise argparse.ArgumentTypeError(f"crop size {size} is not a multiple of 8 from 32 up")
        stages.append(Stage(int(size), int(count) if colon else epochs))
    return stages


def _positive(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")


def _schedule(text: str) -> str:
    """The text itself if `parse_stages` understands it: that is how a run's options are recorded."""
    parse_stages(text, 1)
    return text


def parse_model_args(text: str) -> float:
    """'bpp_lmb=1.28' -> 1.28. Parsed, never evaluated."""
    key, _, value = text.partition("=")
    try:
        lmb = float(value)
    except ValueError:
        lmb = math.nan
    if key != "bpp_lmb" or not (math.isfinite(lmb) and lmb >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not bpp_lmb=NUMBER with a number from 0 up")
    return lmb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, choices=list(MODELS))
    add("--model_args", type=parse_model_args, default=1.28, metavar="bpp_lmb=L", help="rate weight (default: 1.28)")
    add("--data", required=True, type=Path, help="ImageFolder of training images")
    add("--backbone", type=Path, metavar="FILE", help="the teacher, a ResNet-50 (.pt or .safetensors; default: torchvision's, of ImageNet)")
    add("--pretrain", type=Path, metavar="FILE", help="begin with this checkpoint's weights")
    add("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU if there is one)")
    add("--epochs", type=_positive, default=20)
    add("--train_size", type=_schedule, default="224", metavar="SIZE[:EPOCHS,...]", help="crop side, or a schedule that replaces --epochs")
    add("--batch_size", type=_positive, default=384, help="images of a step in each process (default: 384)")
    add("--accum_num", type=_positive, default=1, metavar="N", help="batches that make one step of the optimizer (default: 1)")
    add("--optimizer", choices=["sgd", "adamw"], default="sgd", help="default: sgd, with momentum 0.9")
    add("--lr", type=float, help="default: 0.01; adamw: 1e-3 for the bottleneck, a tenth of it for the tail")
    add("--wdecay", type=float, default=1e-4, help="of the tail's convolutions and linear layers, with sgd (default: 1e-4)")
    add("--amp", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 where it is precise enough (default: yes)")
    add("--ema", action="store_true", help="measure and keep a moving average of the weights")
    add("--held_out", type=int, default=500, metavar="N", help="training images kept aside to measure on (default: 500)")
    add("--val_size", type=_positive, default=224, help="side of the held-out images' crops (default: 224)")
    add(
        "--val_crop_r",
        type=float,
        default=0.875,
        help="the crop's part of the short side; 1 for images of its size (default: 0.875)",
    )
    add("--eval_first", action="store_true", help="measure before the first epoch")
    add("--eval_per", type=_positive, default=1, metavar="N", help="measure every N epochs (default: 1)")
    add("--workers", type=int, default=2, help="image loading processes (default: 2)")
    add("--fixseed", type=int, default=0, metavar="SEED")
    add("--ddp_find", action="store_true", help="with torchrun: look for parameters that a step does not use")
    add("--labels", type=Path, help="one label a line, in the order of DIR's folders (default: their names)")
    add("--run_dir", type=Path, help="folder of the run's state (default: runs/MODEL_lmbL)")
    add("--resume", type=Path, metavar="RUN", help="as --run_dir, but it is an error if there is nothing to go on with")
    add("--out", type=Path, help="finished checkpoint (default: RUN/lmbL.safetensors)")
    add("--wbmode", choices=["disabled", "offline", "online"], default="disabled", help="Weights & Biases (default: disabled)")
    add("--wbproject", default="edge-cloud-rac")
    add("--wbgroup", default="default-group")
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


# What a run is, in `last.pt` and in the checkpoint: all options but these.
_NOT_RECIPE = {"run_dir", "resume", "out", "workers", "labels", "device", "ddp_find", "eval_first", "eval_per"} | {
    "wbmode",
    "wbproject",
    "wbgroup",
}


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


@contextlib.contextmanager
def assemble(device: str) -> Iterator[Team]:
    """Raises TrainingError where the device is not there."""
    processes, rank, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(f"cuda:{local}" if device == "cuda" and processes > 1 else device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {device} is not to be had here ({str(error).splitlines()[0]}): choose cpu or cuda") from error
    if processes > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(rank, processes, chosen)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def _optimizer(model: FeatureCompressionModel, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD as the paper has it; or AdamW without decay: the entropy model fast, the tail, already trained, slowly."""
    entropy: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.bottleneck_layer.named_parameters():
        if parameter.requires_grad:
            (entropy if name.startswith("entropy_bottleneck.") else rest).append(parameter)
    tail = [p for module in model.tail_modules() for p in module.parameters() if p.requires_grad]
    if args.optimizer == "sgd":
        lr = 0.01 if args.lr is None else args.lr
        weights = [p for p in tail if p.ndim > 1]
        others = [*entropy, *rest, *(p for p in tail if p.ndim <= 1)]
        groups = [{"params": weights, "lr": lr, "weight_decay": args.wdecay}, {"params": others, "lr": lr, "weight_decay": 0.0}]
        return torch.optim.SGD([group for group in groups if group["params"]], momentum=0.9)
    lr = 1e-3 if args.lr is None else args.lr
    groups = [{"params": entropy, "lr": 5 * lr}, {"params": rest, "lr": lr}, {"params": tail, "lr": lr / 10}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0, fused=True)


def _rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then a cosine to 1 % of the rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def measure(model: FeatureCompressionModel, images: Dataset, batch_size: int, device: torch.device, amp: bool = True) -> dict[str, float]:
    """Top-1 (share) and estimated bpp of the model in eval mode, by the torch path."""
    model.eval()
    right = pixels = count = 0
    bits = 0.0
    for image, label in DataLoader(images, batch_size):
        image = image.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            out = model(image)
        right += int((out.logits.argmax(1).cpu() == label).sum())
        bits += float(out.bits)
        pixels += image.numel() // 3
        count += len(label)
    return {"top1": right / count, "estimated_bpp": bits / pixels}


def _save_state(path: Path, state: dict[str, object]) -> None:
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _data(args: argparse.Namespace, teacher: Teacher) -> tuple[Dataset, list[str]]:
    """The held-out images, and the classes' labels."""
    resize = round(args.val_size / args.val_crop_r) if 0 < args.val_crop_r <= 1 else 0
    if not resize:
        raise TrainingError(f"--val_crop_r {args.val_crop_r} is not a part from 0 to 1")
    held_out = split_held_out(evaluation_images(args.data, args.val_size, resize), args.held_out, keep_held_out=True)
    classes: list[str] = held_out.dataset.classes  # type: ignore[attr-defined]
    labels = args.labels.read_text().split("\n") if args.labels else classes
    labels = [label.strip() for label in labels if label.strip()]
    num_classes = teacher.backbone.fc.out_features
    if not len(classes) == len(labels) == num_classes:
        raise TrainingError(
            f"{args.data} has {len(classes)} classes, the labels are {len(labels)} and the teacher in "
            f"{args.backbone or 'torchvision'} has {num_classes}"
        )
    return held_out, labels


def _tracker(args: argparse.Namespace) -> Callable[[dict[str, object]], object]:
    """Sends a record to Weights & Biases, if that is wanted."""
    if args.wbmode == "disabled":
        return lambda record: None
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise TrainingError(f"--wbmode {args.wbmode} needs Weights & Biases: pip install wandb") from error
    settings = {key: str(value) for key, value in vars(args).items()}
    return wandb.init(project=args.wbproject, group=args.wbgroup, mode=args.wbmode, config=settings).log


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished checkpoint."""
    with assemble(args.device) as team:
        return _train(args, team)


def _train(args: argparse.Namespace, team: Team) -> Path:
    lmb: float = args.model_args
    sizes = [stage.size for stage in parse_stages(args.train_size, args.epochs) for _ in range(stage.epochs)]
    run: Path = args.resume or args.run_dir or Path("runs") / f"{args.model}_lmb{lmb:g}"
    out: Path = args.out or run / f"lmb{lmb:g}.safetensors"
    state_file = run / "last.pt"
    if args.resume and not state_file.exists():
        raise TrainingError(f"there is no {state_file} to go on with: leave out --resume to begin")

    torch.manual_seed(args.fixseed)
    teacher = load_teacher(args.backbone) if args.backbone else load_imagenet_teacher()
    teacher.to(team.device).to(memory_format=torch.channels_last)
    held_out, labels = _data(args, teacher)
    if args.pretrain:
        model = load_model(args.pretrain, args.model)[0]
        if model.fc.out_features != len(labels):
            raise TrainingError(f"{args.pretrain} has {model.fc.out_features} classes, {args.data} {len(labels)}")
        # A checkpoint's grid is its own; training's is 0.
        model.bottleneck_layer.entropy_bottleneck.quantiles.data[:, :, 1] = 0
    else:
        model = build_model(args.model, len(labels))
        start_from_teacher(model, teacher)
    # The median stays 0 in training, and the outer quantiles follow from the rest at the end.
    model.bottleneck_layer.entropy_bottleneck.quantiles.requires_grad_(False)
    model.to(team.device).to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True) if args.ema else None
    judged = cast(FeatureCompressionModel, average.module) if average else model
    optimizer = _optimizer(model, args)
    base_rates = [group["lr"] for group in optimizer.param_groups]

    recipe = {key: str(value) for key, value in vars(args).items() if key not in _NOT_RECIPE} | {"processes": str(team.processes)}
    first_epoch = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=team.device, weights_only=True)
        if state["recipe"] != recipe:
            raise TrainingError(f"{state_file} is of a run with other options; give another --run_dir or remove it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        first_epoch = state["epoch"]
        print(f"going on after epoch {first_epoch} of {state_file}", file=sys.stderr)
    track = _tracker(args) if team.leads else lambda record: None
    student: nn.Module = model
    if team.processes > 1:
        student = DistributedDataParallel(model, find_unused_parameters=args.ddp_find)
    if args.eval_first and first_epoch == 0 and team.leads:
        print(json.dumps({"epoch": 0, **measure(judged, held_out, 50, team.device, args.amp)}))

    for epoch in range(first_epoch, len(sizes)):
        started = time.monotonic()
        seed = args.fixseed * 10_000 + epoch
        torch.manual_seed(seed * 1_000 + team.rank)
        images = split_held_out(training_images(args.data, sizes[epoch]), args.held_out, keep_held_out=False)
        batches = Batches(len(images), args.batch_size, seed, team.rank, team.processes)
        loader = DataLoader(SeededImages(images, seed), batch_sampler=batches, num_workers=args.workers)
        steps = len(loader) // args.accum_num
        if steps == 0:
            together = args.batch_size * team.processes * args.accum_num
            raise TrainingError(f"{len(images)} images do not fill one batch of {together}")
        sums = torch.zeros(5)
        model.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{len(sizes)} at {sizes[epoch]}", disable=not (team.leads and sys.stderr.isatty()))
        for index, (image, label) in enumerate(bar):
            if index == steps * args.accum_num:
                break
            steps_now = index % args.accum_num == args.accum_num - 1
            factor = _rate_factor(epoch * steps + index // args.accum_num, steps * len(sizes), min(200, steps))
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            image = image.to(team.device, memory_format=torch.channels_last, non_blocking=True)
            label = label.to(team.device, non_blocking=True)
            # Gradients are summed over processes once a step.
            apart = student.no_sync() if isinstance(student, DistributedDataParallel) and not steps_now else contextlib.nullcontext()
            with apart:
                with torch.autocast(team.device.type, torch.bfloat16, enabled=args.amp):
                    terms = distillation_loss(student(image), teacher(image), label, image.numel() // 3, lmb)
                if not torch.isfinite(terms.total):
                    raise TrainingError(f"the loss is {terms.total.item()} at epoch {epoch + 1}, batch {index + 1}; try a smaller --lr")
                (terms.total / args.accum_num).backward()
            if steps_now:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average:
                    average.update_parameters(model)
            sums += torch.stack([term.detach().cpu() for term in terms])
            if index % 10 == 9:
                bar.set_postfix(loss=f"{sums[0] / (index + 1):.3f}", bpp=f"{terms.bpp.item():.3f}")
        if team.leads:
            record: dict[str, object] = {"epoch": epoch + 1, "of": len(sizes), "size": sizes[epoch]}
            means: Tensor = sums / (steps * args.accum_num)
            record |= dict(zip(("loss", "cross_entropy", "distillation", "features", "bpp"), means.tolist(), strict=True))
            if (epoch + 1) % args.eval_per == 0 or epoch + 1 == len(sizes):
                record |= {f"held_out_{key}": value for key, value in measure(judged, held_out, 50, team.device, args.amp).items()}
            record["seconds"] = round(time.monotonic() - started, 1)
            state = {"recipe": recipe, "epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            _save_state(state_file, state | ({"average": average.state_dict()} if average else {}))
            with open(run / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)
            track(record)
        team.wait()

    if team.leads:
        judged.cpu()
        fit_quantiles(judged)
        # Where the data and the teacher lay is this machine's business, not the checkpoint's.
        shared = {key: value for key, value in recipe.items() if key not in ("data", "backbone", "pretrain")}
        save_model(out, judged, {"model": args.model, "lmb": f"{lmb:g}", "labels": json.dumps(labels), "recipe": json.dumps(shared)})
    team.wait()
    return out


def main() -> int:
    args = _parser().parse_args()
    try:
        out = train(args)
    except (TrainingError, ValueError, OSError) as error:
        print(f"training.train: {error}", file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
