"""Train or fine-tune a ResNet-50 on your own images: the teacher and the tail of every model.

    python -m training.backbone --data DIR --pretrain imagenet       fine-tune torchvision's
    python -m training.backbone --data DIR                           from scratch
    python -m training.backbone --data DIR --pretrain FILE --teacher timm:tf_efficientnet_lite2
    torchrun --nproc_per_node 4 -m training.backbone --data DIR --pretrain imagenet

DIR has one folder of images per class. The result, RUN/resnet50.safetensors, has torchvision's keys
and is for `python -m training.train --backbone`. A stopped run resumes as one of training.train.
With --teacher the labels are soft ones, those that a better classifier gives (soft_labels.py).
With --frozen_start only the tail is trained; with --behind it learns to serve bottlenecks too
(shared_tail.py).

Always holds: the classifier has as many classes as DIR; a pretrained one with another number is
replaced by a new one.
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
from torchvision.models import ResNet, resnet50

from .checkpoint import save_state
from .command import TrainingError, command, leads, number, say
from .data import COLOUR, blended
from .folders import Damage
from .labelled import Data, read_data, top1
from .labels import ClassesError
from .loss import divergence
from .options import (
    MOST_LR,
    SIDES,
    add_run_options,
    check_outputs,
    crop_sides,
    shared_recipe,
    shrink_to_smoke,
)
from .run import Training, run_epochs
from .shared_tail import FrozenStart, read_bottlenecks
from .soft_labels import SoftLabels, read_soft_labels
from .teachers import load_imagenet_teacher, load_teacher
from .team import Team, assemble, settle_precision

_TEMPERATURE, _MIX = 2.0, 0.5  # with --teacher
_DECODED = 0.5  # with --behind

Loss = Callable[[nn.Module, Tensor, Tensor, float], dict[str, Tensor]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.backbone", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add(
        "--pretrain",
        metavar="imagenet|FILE",
        help="start from torchvision's ImageNet weights, or from a ResNet-50 of yours",
    )
    add(
        "--lr",
        type=number(float, 0, MOST_LR),
        help="learning rate of AdamW (default: 2e-3; with --pretrain 2e-4)",
    )
    add("--label_smoothing", type=number(float, 0, 1), default=0.1, help="default: 0.1")
    add(
        "--frozen_start",
        action="store_true",
        help="keep the layers that a bottleneck replaces (up to layer1) as they are in --pretrain: "
        "bottlenecks that were trained for that file then fit the new one too",
    )
    add(
        "--behind",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="with --frozen_start: checkpoints whose bottlenecks the tail serves too",
    )
    add(
        "--decoded",
        type=number(float, 0, 1, "a part"),
        help="with --behind: part of the crops whose features a bottleneck decodes (default: "
        f"{_DECODED:g})",
    )
    _add_teacher(parser)
    add_run_options(
        parser, epochs=17, batch_size=64, train_size="96:8,128:6,160:3", wdecay=0.02, crop_area=0.35
    )
    return parser


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    """Add --teacher, and the options that are for it alone: None where they are not given."""
    add = parser.add_argument
    add(
        "--teacher",
        metavar="LIBRARY:NAME|FILE",
        help="learn the soft labels of torchvision:NAME, timm:NAME, or a ResNet-50 of yours, "
        "which has a class for each folder",
    )
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="with --teacher LIBRARY:NAME: its weights (default: those that its library or a "
        "package has)",
    )
    add(
        "--teacher_size",
        type=number(int, *SIDES),
        help="with --teacher: side that crops are resized to for it (default: as they are)",
    )
    add(
        "--temperature",
        type=number(float, 0.1, 100),
        help=f"with --teacher: of its labels; higher is softer (default: {_TEMPERATURE:g})",
    )
    add(
        "--mix",
        type=number(float, 0, 1, "a part"),
        help=f"with --teacher: part of the crops that are blended with another (default: {_MIX:g})",
    )
    add(
        "--label_part",
        type=number(float, 0, 1, "a part"),
        help="with --teacher: part of the loss that the images' own labels have; with it --mix is "
        "0 (default: 0)",
    )
    add(
        "--colour",
        action=argparse.BooleanOptionalAction,
        help="with --teacher: change the colours of the crops (default: on)",
    )


def _settle(args: argparse.Namespace) -> None:
    """Set the options of --teacher and --behind to their defaults, or remove those of no use.

    The recipe of a run without them stays the one that earlier versions recorded. Raises
    TrainingError if an option is given without the one that it is for.
    """
    if args.frozen_start and not args.pretrain:
        raise TrainingError(
            "--frozen_start keeps layers of --pretrain: name that file, or imagenet"
        )
    if args.behind and not args.frozen_start:
        raise TrainingError(
            "--behind is for a tail behind the start that bottlenecks were trained for: "
            "give --frozen_start"
        )
    if args.behind:
        args.decoded = _DECODED if args.decoded is None else args.decoded
    elif args.decoded is not None:
        raise TrainingError("--decoded is for bottlenecks: name their checkpoints with --behind")
    else:
        del args.behind, args.decoded
    if not args.frozen_start:
        del args.frozen_start
    of_teacher = ("weights", "teacher_size", "temperature", "mix", "label_part", "colour")
    given = [name for name in of_teacher if getattr(args, name) is not None]
    if args.teacher:
        args.temperature = _TEMPERATURE if args.temperature is None else args.temperature
        if args.label_part and args.mix:
            raise TrainingError(
                f"--label_part: a blend of two crops (--mix {args.mix:g}) has no one label; "
                "give --mix 0"
            )
        args.mix = (0.0 if args.label_part else _MIX) if args.mix is None else args.mix
        for name in {"label_part", "colour"} - set(given):
            delattr(args, name)
    elif given:
        raise TrainingError(f"--{given[0]} is for a run with a teacher: name it with --teacher")
    else:
        for name in ("teacher", *of_teacher):
            delattr(args, name)


def _start(pretrain: str | None, data: Data, frozen: bool = False) -> tuple[ResNet, Data]:
    """A ResNet-50 for the data's classes, with random or pretrained weights, and the data.

    The data's classes are put in the pretrained order if they are the same classes. If `frozen`,
    only the tail is to be trained.
    """
    classes = len(data.labels)
    net = FrozenStart(classes) if frozen else resnet50(weights=None, num_classes=classes)
    if pretrain:
        teacher = (
            load_imagenet_teacher("--pretrain")
            if pretrain == "imagenet"
            else load_teacher(pretrain)
        )
        begin = teacher.backbone.state_dict()
        if begin["fc.weight"].shape[0] != classes:
            begin |= {"fc.weight": net.fc.weight.data, "fc.bias": net.fc.bias.data}
        else:
            with suppress(ClassesError):  # the same number of classes, but other ones
                data = data.for_model(teacher.labels, classes, pretrain, report=False)
        net.load_state_dict(begin)
    else:
        # Each block starts as an identity (Goyal et al. 2017, arXiv 1706.02677).
        for name, parameter in net.named_parameters():
            if name.endswith("bn3.weight"):
                nn.init.zeros_(parameter)
    return net, data


def _optimizer(net: ResNet, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW, without decay of normalisations and biases."""
    trained = [p for p in net.parameters() if p.requires_grad]
    weights, others = ([p for p in trained if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [
        {"params": weights, "weight_decay": args.wdecay},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = args.lr if args.lr is not None else 2e-4 if args.pretrain else 2e-3
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), fused=True)


def _teacher(args: argparse.Namespace, team: Team, data: Data) -> SoftLabels | None:
    """The teacher of --teacher for the data's classes, on the run's device.

    Raises TrainingError and what read_soft_labels raises.
    """
    if "teacher" not in args:
        return None
    found = read_soft_labels(args.teacher, args.weights, args.teacher_size, data, team.leads)
    found.check_sizes([*crop_sides(args), *([args.val_size] if args.held_out else [])])
    found.teacher.to(team.device).to(memory_format=torch.channels_last)
    return found


def _loss(args: argparse.Namespace, soft: SoftLabels | None) -> Loss:
    """Cross-entropy with the labels, the divergence from the teacher's soft ones, or both."""

    def hard(student: nn.Module, image: Tensor, label: Tensor, _: float) -> dict[str, Tensor]:
        logits = student(image).float()
        return {"loss": cross_entropy(logits, label, label_smoothing=args.label_smoothing)}

    def taught(student: nn.Module, image: Tensor, label: Tensor, _: float) -> dict[str, Tensor]:
        assert soft is not None
        image = blended(image, args.mix)
        ours, theirs = student(image).float(), soft.logits(image).float()
        agreed = (ours.argmax(1) == theirs.argmax(1)).float().mean()
        loss = divergence(ours, theirs, args.temperature)
        if part:
            own = cross_entropy(ours, label, label_smoothing=args.label_smoothing)
            loss = (1 - part) * loss + part * own
        return {"loss": loss, "agreement": agreed}

    part: float = getattr(args, "label_part", 0.0)
    return taught if soft else hard


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished ResNet-50.

    Raises TrainingError, DataError, CheckpointError, OSError.
    """
    shrink_to_smoke(args)
    _settle(args)
    with assemble(args.device) as team:
        return _train(args, team)


def _train(args: argparse.Namespace, team: Team) -> Path:
    run: Path = args.resume or args.run_dir or Path("runs") / "resnet50"
    out: Path = args.out or run / "resnet50.safetensors"
    if team.leads:
        check_outputs(args, run, out)
    data, damage = read_data(args), Damage(args.skip_damaged)
    settle_precision(args, team)
    torch.manual_seed(args.fixseed)
    net, data = _start(args.pretrain, data, "frozen_start" in args)
    soft = _teacher(args, team, data)
    net.to(team.device)
    if isinstance(net, FrozenStart):
        net.behind = read_bottlenecks(getattr(args, "behind", []), team.device)
        net.share = getattr(args, "decoded", 0.0)
    held_out = data.held_out(args)
    optimizer = _optimizer(net, args)

    def judge(judged: nn.Module) -> dict[str, float]:
        if not args.held_out:
            return {}
        judged.eval()

        def right(logits: Callable[[Tensor], Tensor]) -> float:
            return top1(held_out, logits, 50, team.device, args.amp, damage)

        found = {"top1": right(judged)}
        if isinstance(judged, FrozenStart):
            for index, bottleneck in enumerate(judged.behind, 1):
                found[f"top1_behind_{index}"] = right(judged.through(bottleneck))
        return found

    if soft and team.leads and args.held_out:
        share = top1(held_out, soft.logits, 50, team.device, args.amp, damage)
        say(f"the teacher is right for {share:.1%} of the held-out images", sys.stderr)
    colour = soft and getattr(args, "colour", True)
    crops = partial(data.training, args, augment=COLOUR if colour else ())
    training = Training(data.summary(), crops, _loss(args, soft), judge)
    kept = cast(ResNet, run_epochs(args, team, run, training, net, optimizer, damage))
    if team.leads:
        about = {"labels": json.dumps(data.labels), "recipe": shared_recipe(args, team.processes)}
        if soft:
            about["teacher"] = Path(args.teacher).name
        save_state(out, kept.state_dict(), about)
    team.wait()
    return out


@command("training.backbone", resumes=True)
def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    out = train(_parser().parse_args(argv))
    if leads():
        say(f"wrote {out}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
