"""Train or fine-tune a ResNet-50 on your own images: the teacher and the tail of every model.

    python -m training.backbone --data DIR --pretrain imagenet       fine-tune torchvision's
    python -m training.backbone --data DIR                           from scratch
    torchrun --nproc_per_node 4 -m training.backbone --data DIR --pretrain imagenet

DIR has one folder of images per class. The result, RUN/resnet50.safetensors, has torchvision's keys
and is for `python -m training.train --backbone`. A stopped run resumes as one of training.train.

Always holds: the classifier has as many classes as DIR; a pretrained one with another number is
replaced by a new one.
"""

import argparse
import json
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import ResNet, resnet50

from .checkpoint import save_state
from .command import command, leads, number, say
from .folders import Damage
from .labelled import Data, read_data, top1
from .labels import ClassesError
from .options import MOST_LR, add_run_options, check_outputs, shared_recipe, shrink_to_smoke
from .run import Training, run_epochs
from .teachers import load_imagenet_teacher, load_teacher
from .team import Team, assemble, settle_precision


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
    add_run_options(
        parser, epochs=17, batch_size=64, train_size="96:8,128:6,160:3", wdecay=0.02, crop_area=0.35
    )
    return parser


def _start(pretrain: str | None, data: Data) -> tuple[ResNet, Data]:
    """A ResNet-50 for the data's classes, with random or pretrained weights, and the data.

    The data's classes are put in the pretrained order if they are the same classes.
    """
    classes = len(data.labels)
    net = resnet50(weights=None, num_classes=classes)
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
    weights, others = (
        [p for p in net.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False)
    )
    groups = [
        {"params": weights, "weight_decay": args.wdecay},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = args.lr if args.lr is not None else 2e-4 if args.pretrain else 2e-3
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), fused=True)


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished ResNet-50.

    Raises TrainingError, DataError, CheckpointError, OSError.
    """
    shrink_to_smoke(args)
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
    net, data = _start(args.pretrain, data)
    net.to(team.device)
    held_out = data.held_out(args)
    optimizer = _optimizer(net, args)

    def loss(student: nn.Module, image: Tensor, label: Tensor, _: float) -> dict[str, Tensor]:
        return {
            "loss": cross_entropy(
                student(image).float(), label, label_smoothing=args.label_smoothing
            )
        }

    def judge(judged: nn.Module) -> dict[str, float]:
        return (
            {"top1": top1(held_out, judged.eval(), 50, team.device, args.amp, damage)}
            if args.held_out
            else {}
        )

    training = Training(data.summary(), partial(data.training, args), loss, judge)
    kept = cast(ResNet, run_epochs(args, team, run, training, net, optimizer, damage))
    if team.leads:
        save_state(
            out,
            kept.state_dict(),
            {"labels": json.dumps(data.labels), "recipe": shared_recipe(args, team.processes)},
        )
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
