"""Train a model under a teacher.

    python -m training.train --model ours_n4 --data DIR --backbone FILE --model_args bpp_lmb=1.28

DIR is an ImageFolder, FILE a ResNet-50 with torchvision's keys and as many classes as DIR. The run
writes `last.pt` after every epoch and the finished checkpoint to --out; started again with the
same --run folder it goes on where the last whole epoch ended. A log line an epoch is appended to
`log.jsonl` there.

Always holds: the teacher is in eval mode; an epoch's random numbers depend on the seed and the
epoch alone, so a killed run and an undisturbed one see the same images in the same order.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoint import atomic_path, save_model
from .data import evaluation_images, split_held_out, training_images
from .loss import distillation_loss, load_teacher, start_from_teacher
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
    parser.add_argument("--model", required=True, choices=list(MODELS))
    parser.add_argument("--model_args", type=parse_model_args, default=1.28, metavar="bpp_lmb=L", help="rate weight (default: 1.28)")
    parser.add_argument("--data", required=True, type=Path, help="ImageFolder of training images")
    parser.add_argument("--backbone", required=True, type=Path, help="the teacher, a ResNet-50 (.pt or .safetensors)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--train_size", type=_schedule, default="224", metavar="SIZE[:EPOCHS,...]", help="crop side, or a schedule that replaces --epochs"
    )
    parser.add_argument("--batch_size", type=int, default=384)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's rate for the bottleneck; a tenth of it for the tail")
    parser.add_argument("--held_out", type=int, default=500, metavar="N", help="training images kept aside to measure on (default: 500)")
    parser.add_argument("--workers", type=int, default=2, help="image loading processes")
    parser.add_argument("--fixseed", type=int, default=0, metavar="SEED")
    parser.add_argument("--labels", type=Path, help="one label a line, in the order of DIR's folders (default: their names)")
    parser.add_argument("--run", type=Path, help="folder of the run's state (default: runs/MODEL_lmbL)")
    parser.add_argument("--out", type=Path, help="finished checkpoint (default: RUN/lmbL.safetensors)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


def _optimizer(model: FeatureCompressionModel, lr: float) -> torch.optim.Optimizer:
    """AdamW without decay: the entropy model fast, the encoder and decoder at lr, the tail, already trained, slowly."""
    entropy: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.bottleneck_layer.named_parameters():
        # The median stays 0 in training, and the outer quantiles follow from the rest at the end.
        if name != "entropy_bottleneck.quantiles":
            (entropy if name.startswith("entropy_bottleneck.") else rest).append(parameter)
    tail = [p for module in model.tail_modules() for p in module.parameters() if p.requires_grad]
    groups = [{"params": entropy, "lr": 5 * lr}, {"params": rest, "lr": lr}, {"params": tail, "lr": lr / 10}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0, fused=True)


def _rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then a cosine to 1 % of the rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def measure(model: FeatureCompressionModel, images: Dataset, batch_size: int, device: torch.device) -> dict[str, float]:
    """Top-1 (share) and estimated bpp of the model in eval mode, by the torch path."""
    model.eval()
    right = pixels = count = 0
    bits = 0.0
    for image, label in DataLoader(images, batch_size):
        image = image.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            out = model(image)
        right += int((out.logits.argmax(1).cpu() == label).sum())
        bits += float(out.bits)
        pixels += image.numel() // 3
        count += len(label)
    return {"top1": right / count, "estimated_bpp": bits / pixels}


def _save_state(path: Path, state: dict[str, object]) -> None:
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished checkpoint."""
    lmb: float = args.model_args
    stages = parse_stages(args.train_size, args.epochs)
    sizes = [stage.size for stage in stages for _ in range(stage.epochs)]
    run: Path = args.run or Path("runs") / f"{args.model}_lmb{lmb:g}"
    out: Path = args.out or run / f"lmb{lmb:g}.safetensors"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(args.fixseed)
    teacher = load_teacher(args.backbone).to(device).to(memory_format=torch.channels_last)
    held_out = split_held_out(evaluation_images(args.data), args.held_out, keep_held_out=True)
    classes: list[str] = held_out.dataset.classes  # type: ignore[attr-defined]
    labels = args.labels.read_text().split("\n") if args.labels else classes
    labels = [label.strip() for label in labels if label.strip()]
    num_classes = teacher.backbone.fc.out_features
    if not len(classes) == len(labels) == num_classes:
        raise TrainingError(
            f"{args.data} has {len(classes)} classes, the labels are {len(labels)} and the teacher in {args.backbone} has {num_classes}"
        )
    model = build_model(args.model, num_classes)
    start_from_teacher(model, teacher)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, args.lr)
    base_rates = [group["lr"] for group in optimizer.param_groups]

    recipe = {key: str(value) for key, value in vars(args).items() if key not in ("run", "out", "workers", "labels")}
    state_file = run / "last.pt"
    first_epoch = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if state["recipe"] != recipe:
            raise TrainingError(f"{state_file} is of a run with other options; give another --run or remove it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
        print(f"going on after epoch {first_epoch} of {state_file}", file=sys.stderr)

    for epoch in range(first_epoch, len(sizes)):
        started = time.monotonic()
        torch.manual_seed(args.fixseed * 10_000 + epoch)
        images = split_held_out(training_images(args.data, sizes[epoch]), args.held_out, keep_held_out=False)
        loader = DataLoader(images, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
        if len(loader) == 0:
            raise TrainingError(f"{len(images)} images do not fill one batch of {args.batch_size}")
        steps, warm_up = len(loader) * len(sizes), min(200, len(loader))
        sums = torch.zeros(5)
        model.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{len(sizes)} at {sizes[epoch]}", disable=not sys.stderr.isatty())
        for index, (image, label) in enumerate(bar):
            factor = _rate_factor(epoch * len(loader) + index, steps, warm_up)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            image = image.to(device, memory_format=torch.channels_last, non_blocking=True)
            label = label.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                terms = distillation_loss(model(image), teacher(image), label, image.numel() // 3, lmb)
            if not torch.isfinite(terms.total):
                raise TrainingError(f"the loss is {terms.total.item()} at epoch {epoch + 1}, batch {index + 1}; try a smaller --lr")
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            sums += torch.stack([term.detach().cpu() for term in terms])
            if index % 10 == 9:
                bar.set_postfix(loss=f"{sums[0] / (index + 1):.3f}", bpp=f"{terms.bpp.item():.3f}")
        record: dict[str, object] = {"epoch": epoch + 1, "of": len(sizes), "size": sizes[epoch]}
        means: Tensor = sums / len(loader)
        record |= dict(zip(("loss", "cross_entropy", "distillation", "features", "bpp"), means.tolist(), strict=True))
        record |= {f"held_out_{key}": value for key, value in measure(model, held_out, 50, device).items()}
        record["seconds"] = round(time.monotonic() - started, 1)
        _save_state(
            state_file,
            {"recipe": recipe, "epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()},
        )
        with open(run / "log.jsonl", "a") as log:
            log.write(json.dumps(record) + "\n")
        print(json.dumps(record))

    model.cpu()
    fit_quantiles(model)
    # Where the data and the teacher lay is this machine's business, not the checkpoint's.
    shared = {key: value for key, value in recipe.items() if key not in ("data", "backbone")}
    save_model(out, model, {"model": args.model, "lmb": f"{lmb:g}", "labels": json.dumps(labels), "recipe": json.dumps(shared)})
    return out


def main() -> int:
    args = _parser().parse_args()
    try:
        out = train(args)
    except (TrainingError, ValueError, OSError) as error:
        print(f"training.train: {error}", file=sys.stderr)
        return 1
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
