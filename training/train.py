"""Train a model under a teacher.

    python -m training.train --model ours_n4 --model_args bpp_lmb=0.64 --data DIR
    CUDA_VISIBLE_DEVICES=4 python -m training.train --model ours_n4 --data DIR --batch_size 128
    torchrun --nproc_per_node 4 -m training.train --model ours_n4 --data DIR --batch_size 96

DIR is an ImageFolder. The teacher is a ResNet-50: --backbone FILE with torchvision's keys and as
many classes as DIR, or ImageNet's from torchvision. `python -m training.backbone` makes one. The
run writes its state after every epoch and the finished checkpoint to --out. Started again with the
same --run_dir it resumes after the last whole epoch (run.py). Models with another backbone are
trained by training.distil.

A _vr model has all rate levels in one checkpoint, and is trained at random ones. It may begin with
a fixed-rate checkpoint of the same encoder:

    python -m training.train --model ours_n4_vr --pretrain FILE --data DIR

A second stage, after the first or on a published checkpoint, has no teacher:

    python -m training.train --model ours_n4 --pretrain FILE --frozen_bottleneck --data DIR

It trains the tail on the labels and leaves the bottleneck as it is. So edges in the field need no
update, and the cloud classifies their files better. (Matsubara et al. 2022, arXiv 2108.11898, fix
the encoder in their second stage; with the decoder fixed too, an epoch costs less than half.)

Always holds: the teacher is in eval mode; a frozen tail is the teacher's to the last bit, a frozen
bottleneck the checkpoint's.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from .backbones import RESNET50
from .bottleneck import is_rate_parameter
from .checkpoint import load_model, read_state_dict, save_model, start_from_checkpoint
from .command import TrainingError, command, leads, number, say
from .folders import Damage
from .labelled import Data, read_data, top1
from .labels import match, stored_labels
from .loss import distillation_loss, draw_levels
from .models import MODELS, FeatureCompressionModel, build_model, fit_quantiles
from .options import MOST_LR, add_run_options, check_outputs, shared_recipe, shrink_to_smoke
from .rates import MEASURED_LEVELS, MOST_LMB, Lmb, LmbRange, lmb_text, parse_lmb, settle_lmb
from .run import Training, run_epochs
from .teachers import load_imagenet_teacher, load_teacher, start_from_teacher
from .team import Team, assemble, settle_precision

_USUAL_LMB = 1.28
_OWN = [name for name, spec in MODELS.items() if spec.backbone == RESNET50]
Loss = Callable[[nn.Module, Tensor, Tensor, float], dict[str, Tensor]]


def parse_model_args(text: str) -> Lmb:
    """'bpp_lmb=1.28' -> 1.28, 'bpp_lmb=0.16-20.48' -> a range. Parsed, never evaluated."""
    key, _, value = text.partition("=")
    with suppress(argparse.ArgumentTypeError):
        if key == "bpp_lmb":
            return parse_lmb(value)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not bpp_lmb=NUMBER with a number from 0 to {MOST_LMB:,}, "
        "nor, of a _vr model, bpp_lmb=LEAST-MOST"
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The options. Models and teachers with other backbones are training.distil's."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.model in MODELS and args.model not in _OWN:
        parser.error(f"argument --model: python -m training.distil trains {args.model}")
    if args.model not in _OWN:
        known = ", ".join(_OWN)
        parser.error(f"argument --model: invalid choice: {args.model!r} (choose from {known})")
    if str(args.backbone).startswith(("timm:", "torchvision:")):
        parser.error(
            f"argument --backbone: {args.backbone} is no file: "
            "python -m training.distil trains in front of any backbone"
        )
    return args


def _optimizer_name(text: str) -> str:
    """Adam is AdamW here, which has no decay."""
    return "adamw" if text == "adam" else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add(
        "--model",
        default="ours_n4",
        help=f"{', '.join(_OWN)} (default: ours_n4)",
        metavar="MODEL",
    )
    add(
        "--model_args",
        type=parse_model_args,
        metavar="bpp_lmb=L",
        help=f"rate weight (default: {_USUAL_LMB}; of a _vr model a range, {LmbRange()})",
    )
    add(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the teacher, a ResNet-50 (.pt or .safetensors; default: torchvision's, of ImageNet)",
    )
    add(
        "--pretrain",
        type=Path,
        metavar="FILE",
        help="begin with a checkpoint's weights, of this model or one of another depth; "
        "a _vr model also with a fixed-rate one",
    )
    _add_stages(parser)
    add_run_options(
        parser, epochs=20, batch_size=384, train_size="224", wdecay=1e-4, crop_area=0.08
    )
    return parser


def _add_stages(parser: argparse.ArgumentParser) -> None:
    """What is trained, and how fast."""
    add = parser.add_argument
    add(
        "--frozen_tail",
        action="store_true",
        help="keep the teacher's tail as it is, which _enc models always do",
    )
    add(
        "--frozen_bottleneck",
        action="store_true",
        help="keep --pretrain's bottleneck as it is, and train the tail on the labels",
    )
    add(
        "--bottleneck_only",
        action="store_true",
        help="with a frozen tail: leave it out of the finished checkpoint, which then needs FILE",
    )
    add(
        "--optimizer",
        type=_optimizer_name,
        choices=["sgd", "adamw"],
        default="sgd",
        help="default: sgd, with momentum 0.9; adamw has no weight decay here, as adam",
    )
    add(
        "--lr",
        type=number(float, 0, MOST_LR),
        help="default: 0.01; adamw: 1e-3 for the bottleneck, a tenth of it for the tail",
    )


def _optimizer(model: FeatureCompressionModel, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD as in the paper; or AdamW without decay, in which entropy model and gains learn faster
    than the rest, and the tail, which is trained already, slower.
    """
    entropy: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.bottleneck_layer.named_parameters():
        if parameter.requires_grad:
            (entropy if is_rate_parameter(name) else rest).append(parameter)
    tail = [p for p in model.tail.parameters() if p.requires_grad]
    if args.optimizer == "sgd":
        lr = 0.01 if args.lr is None else args.lr
        weights = [p for p in tail if p.ndim > 1]
        others = [*entropy, *rest, *(p for p in tail if p.ndim <= 1)]
        groups = [
            {"params": weights, "lr": lr, "weight_decay": args.wdecay},
            {"params": others, "lr": lr, "weight_decay": 0.0},
        ]
        return torch.optim.SGD([group for group in groups if group["params"]], momentum=0.9)
    lr = 1e-3 if args.lr is None else args.lr
    groups = [
        {"params": entropy, "lr": 5 * lr},
        {"params": rest, "lr": lr},
        {"params": tail, "lr": lr / 10},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=0.0, fused=True
    )


def measure(
    model: FeatureCompressionModel,
    images: Dataset,
    batch_size: int,
    device: torch.device,
    amp: bool = True,
    damage: Damage | None = None,
) -> dict[str, float]:
    """Top-1 (share) and estimated bpp of the model in eval mode, by the torch path.

    Those of a variable-rate model are at MEASURED_LEVELS, named top1_level0 and so on.
    """
    model.eval()
    if not model.spec.variable_rate:
        return _measure_at(None, model, images, batch_size, device, amp, damage)
    found: dict[str, float] = {}
    for level in MEASURED_LEVELS:
        measures = _measure_at(level, model, images, batch_size, device, amp, damage)
        found |= {f"{key}_level{level}": value for key, value in measures.items()}
    return found


def _measure_at(
    level: float | None,
    model: FeatureCompressionModel,
    images: Dataset,
    batch_size: int,
    device: torch.device,
    amp: bool,
    damage: Damage | None,
) -> dict[str, float]:
    """As `measure`, at one rate level or at a fixed rate."""
    bits: list[float] = []
    pixels: list[int] = []

    def logits(image: Tensor) -> Tensor:
        out = model(image, level=level)
        bits.append(float(out.bits.sum()))
        pixels.append(image.numel() // 3)
        return out.logits

    share = top1(images, logits, batch_size, device, amp, damage)
    return {"top1": share, "estimated_bpp": sum(bits) / sum(pixels)}


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished checkpoint."""
    shrink_to_smoke(args)
    with assemble(args.device) as team:
        return _train(args, team)


def _train(args: argparse.Namespace, team: Team) -> Path:
    variable_rate = MODELS[args.model].variable_rate
    args.model_args = settle_lmb(args.model_args, variable_rate, _USUAL_LMB)
    lmb = lmb_text(args.model_args)
    run: Path = args.resume or args.run_dir or Path("runs") / f"{args.model}_lmb{lmb}"
    out: Path = args.out or run / f"lmb{lmb}.safetensors"

    if team.leads:
        check_outputs(args, run, out)
    data, damage = read_data(args), Damage(args.skip_damaged)
    settle_precision(args, team)
    torch.manual_seed(args.fixseed)
    model, loss, data = (
        _tail_alone(args, data) if args.frozen_bottleneck else _under_a_teacher(args, team, data)
    )
    held_out = data.held_out(args)

    def judge(judged: nn.Module) -> dict[str, float]:
        return (
            measure(
                cast(FeatureCompressionModel, judged), held_out, 50, team.device, args.amp, damage
            )
            if args.held_out
            else {}
        )

    model.to(team.device)
    training = Training(data.summary(), partial(data.training, args), loss, judge)
    kept = cast(
        FeatureCompressionModel,
        run_epochs(args, team, run, training, model, _optimizer(model, args), damage),
    )
    if team.leads:
        if not kept.frozen_bottleneck:
            fit_quantiles(kept)
        recipe = shared_recipe(args, team.processes)
        metadata = {
            "model": args.model,
            "lmb": lmb,
            "labels": json.dumps(data.labels),
            "recipe": recipe,
        }
        save_model(out, kept, metadata, args.backbone.name if args.bottleneck_only else None)
    team.wait()
    return out


def _under_a_teacher(
    args: argparse.Namespace, team: Team, data: Data
) -> tuple[FeatureCompressionModel, Loss, Data]:
    """The first stage: the teacher's tail, the paper's loss, data with the teacher's classes."""
    teacher = load_teacher(args.backbone) if args.backbone else load_imagenet_teacher("--backbone")
    teacher.to(team.device).to(memory_format=torch.channels_last)
    data = data.for_model(
        teacher.labels,
        teacher.classes,
        f"the teacher in {args.backbone or 'torchvision'}",
    )
    model = build_model(args.model, len(data.labels))
    start_from_teacher(model, teacher)
    if args.frozen_tail:
        model.freeze_tail()
    if args.bottleneck_only and not (model.frozen_tail and args.backbone):
        raise TrainingError(
            "--bottleneck_only is for a model with a frozen tail (an _enc model, or --frozen_tail) "
            "and a --backbone FILE"
        )
    if args.pretrain:
        lmb = args.model_args
        start_from_checkpoint(model, args.pretrain, lmb if isinstance(lmb, LmbRange) else None)
        _refuse_other_order(args, data)
    # The median stays 0 in training, and the outer quantiles follow from the rest at the end.
    model.bottleneck_layer.entropy_bottleneck.quantiles.requires_grad_(False)

    def loss(student: nn.Module, image: Tensor, label: Tensor, _: float) -> dict[str, Tensor]:
        level, lmb = draw_levels(args.model_args, image)
        return distillation_loss(
            student(image, level=level), teacher(image), label, image.numel() // 3, lmb
        )._asdict()

    return model, loss, data


def _refuse_other_order(args: argparse.Namespace, data: Data) -> None:
    """Refuse a checkpoint whose tail has the teacher's classes in another order."""
    theirs = stored_labels(read_state_dict(args.pretrain)[1], len(data.labels))
    if theirs and match(data.labels, theirs, str(args.data), str(args.pretrain)).classes != list(
        range(len(theirs))
    ):
        raise TrainingError(
            f"{args.pretrain} has the classes of the teacher in another order: "
            "name the teacher that it was trained with"
        )


def _tail_alone(args: argparse.Namespace, data: Data) -> tuple[FeatureCompressionModel, Loss, Data]:
    """The second stage: --pretrain's model with its bottleneck frozen, and cross-entropy."""
    if not args.pretrain:
        raise TrainingError(
            "--frozen_bottleneck trains the tail behind a checkpoint's bottleneck: "
            "name it with --pretrain FILE"
        )
    model, metadata = load_model(args.pretrain, args.model, args.backbone)
    wanted = lmb_text(args.model_args)
    own = metadata.get("lmb", wanted)
    if own != wanted:
        raise TrainingError(
            f"the bottleneck in {args.pretrain} was trained at lmb {own}, and its tail is to be "
            f"of lmb {wanted}: say --model_args bpp_lmb={own}"
        )
    if args.frozen_tail or model.frozen_tail:
        raise TrainingError(
            f"--frozen_bottleneck leaves nothing to train of {args.model} with a frozen tail"
        )
    classes = model.classes
    data = data.for_model(stored_labels(metadata, classes), classes, str(args.pretrain))
    model.freeze_bottleneck()

    def loss(student: nn.Module, image: Tensor, label: Tensor, _: float) -> dict[str, Tensor]:
        return {"loss": cross_entropy(student(image).logits.float(), label, label_smoothing=0.1)}

    return model, loss, data


@command("training.train", resumes=True)
def main(argv: list[str] | None = None) -> int:
    """The command. Gives its exit code."""
    out = train(_parse(argv))
    if leads():
        say(f"wrote {out}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
