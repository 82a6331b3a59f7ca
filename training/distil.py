"""Train a bottleneck in front of any classifier, on pictures without labels.

    python -m training.distil --model n4_lite2 --data DIR [DIR ...]
    python -m training.distil --encoder n4 --backbone timm:convnext_atto --cut stages.1 --data DIR
    python -m training.cuts --backbone timm:convnext_atto      where it can be cut
    python -m training.distil --model n4_lite2_vr --pretrain FILE --data DIR    any rate, from one

The teacher is the whole classifier. The student learns to give the same features at the cut, and
later in the run the same features after it and the same logits (loss.py). So any pictures will do,
and the classes are the classifier's own. Each DIR gives the same number of crops, however many
pictures it has; at most a tenth of each is held out. The run writes its state after every epoch and
the finished checkpoint to --out; started again with the same --run_dir it resumes (run.py).

Always holds: the teacher is in eval mode. Batch norm in the tail keeps the teacher's statistics;
with --frozen_tail the tail is the teacher's to the last bit.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .architectures import FeatureScale
from .backbones import RESNET50
from .bottleneck import is_rate_parameter
from .checkpoint import save_model, start_from_checkpoint
from .command import TrainingError, command, leads, number, say
from .data import Batched, ReadableImages, SeededImages, blended
from .depthwise import freeze_depthwise, speed_up_strides
from .folders import Damage, DataError, images_below
from .labels import read_labels
from .loss import FeatureTerms, draw_levels, feature_loss
from .models import (
    MODELS,
    FeatureCompressionModel,
    ModelSpec,
    build,
    fit_quantiles,
    model_spec,
    spec_for,
)
from .options import (
    MOST_LR,
    add_run_options,
    check_outputs,
    crop_sides,
    shared_recipe,
    shrink_to_smoke,
)
from .pictures import Pictures
from .rates import MEASURED_LEVELS, LmbRange, lmb_text, parse_lmb, settle_lmb
from .run import Training, run_epochs
from .teachers import Teacher, load_teacher, pretrained, start_from_teacher
from .team import Team, assemble, settle_precision

_USUAL_LMB = 1.0
_LATENT_DEVIATION = 3.0  # of the latent at the start, so that rounding loses little
_STATISTICS_IMAGES = 256  # crops that the teacher's mean and deviation are measured on
_SHARE = number(float, 0, 1)
_EARLY_RATE = 0.1  # part of the rate weight that applies while only features are learned


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.distil", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    own = [name for name, spec in MODELS.items() if spec.backbone != RESNET50]
    add("--model", choices=own, metavar="MODEL", help=f"{', '.join(own)}; or name its parts:")
    add("--encoder", choices=["n0", "n4", "n8"], help="with --backbone and --cut")
    add("--backbone", metavar="LIBRARY:NAME", help="torchvision:NAME or timm:NAME, with --cut")
    add("--cut", metavar="LAYER", help="the layer whose output the decoder gives (training.cuts)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the backbone's weights (default: those that its library or a package has)",
    )
    add(
        "--lmb",
        type=parse_lmb,
        metavar="L",
        help=f"rate weight (default: 1), or of a variable-rate model a range ({LmbRange()}); "
        "a range with --encoder, --backbone and --cut makes such a model",
    )
    add(
        "--pretrain",
        type=Path,
        metavar="FILE",
        help="begin with a checkpoint of this model, or with the encoder of one with another "
        "backbone; a _vr model also with one of a fixed rate",
    )
    add(
        "--ramp",
        type=_ramp,
        default="0.3:0.6",
        metavar="FROM:TO",
        help="parts of the run between which later stages, logits and the rate come in "
        "(default: 0.3:0.6)",
    )
    add(
        "--mix",
        type=_SHARE,
        default=0.3,
        help="part of the crops that are blended with another (default: 0.3)",
    )
    add("--frozen_tail", action="store_true", help="keep the teacher's tail as it is")
    add(
        "--frozen_depthwise",
        action="store_true",
        help="keep the tail's depthwise convolutions, which learn slowly on a CPU, as they are",
    )
    add("--lr", type=number(float, 0, MOST_LR), default=2e-3, help="of AdamW (default: 2e-3)")
    add_run_options(
        parser,
        epochs=30,
        batch_size=32,
        train_size="96:20,128:6,192:4",
        wdecay=0.0,
        crop_area=0.2,
        labelled=False,
    )
    return parser


def _ramp(text: str) -> str:
    """The text itself, which the recipe records, if it is two parts of a run in order."""
    begin, colon, end = text.partition(":")
    try:
        if colon and _SHARE(begin) <= _SHARE(end):
            return text
    except argparse.ArgumentTypeError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO with 0 <= FROM <= TO <= 1")


def _spec(args: argparse.Namespace) -> tuple[str, ModelSpec]:
    """Name and spec of the model that the options ask for.

    Raises TrainingError, BackboneNameError, CutError.
    """
    own = (args.encoder, args.backbone, args.cut)
    if args.model and not any(own):
        return args.model, model_spec(args.model)
    if not args.model and all(own):
        name, spec = spec_for(*own, isinstance(args.lmb, LmbRange))
        if spec.backbone == RESNET50:
            raise TrainingError(
                f"that is {name}, one of the paper's models: python -m training.train trains it"
                if name in MODELS
                else f"a ResNet-50 cut there has no variable rate with {args.encoder}: "
                "python -m training.train has the models whose names end in _vr"
            )
        return name, spec
    raise TrainingError("name a --model, or all of --encoder, --backbone and --cut")


def _labels(args: argparse.Namespace, teacher: Teacher) -> list[str]:
    """Of the backbone's classes. Raises LabelsError, OSError."""
    if args.labels:
        return read_labels(args.labels, teacher.classes, "the backbone")
    return teacher.labels or [f"class {index}" for index in range(teacher.classes)]


def _optimizer(model: FeatureCompressionModel, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW: entropy model and gains fast, the tail, already trained, slowly."""
    entropy: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.bottleneck_layer.named_parameters():
        if parameter.requires_grad:
            (entropy if is_rate_parameter(name) else rest).append(parameter)
    tail = [parameter for parameter in model.tail.parameters() if parameter.requires_grad]
    groups = [
        {"params": entropy, "lr": 5 * args.lr},
        {"params": rest, "lr": args.lr},
        {"params": tail, "lr": args.lr / 10},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=args.wdecay, fused=True
    )


def _fit_latent(model: FeatureCompressionModel, images: Tensor) -> None:
    """Set what the latent is scaled by at the start, from crops [N, 3, H, W]."""
    encoder = model.bottleneck_layer.encoder
    last = encoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.bias.zero_()
        last.weight *= _LATENT_DEVIATION / encoder(images).std()


def _fit_feature_scale(model: FeatureCompressionModel, teacher: Teacher, images: Tensor) -> None:
    """Set the decoder's last layer to the teacher's mean and deviation on crops [N, 3, H, W]."""
    scale = _feature_scale(model)
    with torch.no_grad():
        features = torch.cat([teacher(part, True).features[0] for part in images.split(32)])
        scale.scale.copy_(features.std((0, 2, 3)).clamp(min=1e-3))
        scale.shift.copy_(features.mean((0, 2, 3)))


def _first_crops(pictures: Dataset, damage: Damage) -> Tensor:
    """Crops to take statistics on, float [N, 3, H, W], evenly spread over the pictures."""
    total = len(pictures)  # type: ignore[arg-type]
    count = min(_STATISTICS_IMAGES, total)
    some = torch.utils.data.Subset(pictures, [index * total // count for index in range(count)])
    batches = Batched(SeededImages(some, 0), damage, batch_size=min(32, count))
    return torch.cat([images for images, _ in batches])


def _loss(
    args: argparse.Namespace, teacher: Teacher, deviation: Tensor
) -> Callable[[nn.Module, Tensor, Tensor, float], dict[str, Tensor]]:
    begin, end = map(float, args.ramp.split(":"))

    def loss(student: nn.Module, image: Tensor, _: Tensor, done: float) -> dict[str, Tensor]:
        weight = min(1.0, max(0.0, (done - begin) / max(end - begin, 1e-9)))
        image = blended(image, args.mix)
        level, lmb = draw_levels(args.lmb, image)
        lmb = lmb * (_EARLY_RATE + (1 - _EARLY_RATE) * weight)
        alone = weight == 0
        terms: FeatureTerms = feature_loss(
            student(image, alone, level),
            teacher(image, alone),
            deviation,
            image.numel() // 3,
            lmb,
            weight,
        )
        return terms._asdict()

    return loss


def measure(
    model: FeatureCompressionModel,
    teacher: Teacher,
    images: Dataset,
    batch_size: int,
    device: torch.device,
    amp: bool,
    damage: Damage,
) -> dict[str, float]:
    """Share of images whose class is the teacher's, and estimated bpp, by the torch model.

    Those of a variable-rate model are at MEASURED_LEVELS, named agreement_level0 and so on. Raises
    DamagedImageError, DataError.
    """
    model.eval()
    variable = model.spec.variable_rate
    levels = {f"_level{level}": level for level in MEASURED_LEVELS} if variable else {"": None}
    agreed, bits = dict.fromkeys(levels, 0), dict.fromkeys(levels, 0.0)
    count, pixels = 0, 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for batch, _ in Batched(ReadableImages(images), damage, batch_size=batch_size):
            image = batch.to(device, memory_format=torch.channels_last)
            classes = teacher(image).logits.argmax(1)
            count, pixels = count + len(image), pixels + image.numel() / 3
            for name, level in levels.items():
                out = model(image, level=level)
                same = (out.logits.argmax(1) == classes) & out.logits.isfinite().all(1)
                agreed[name] += int(same.sum())
                bits[name] += float(out.bits.sum())
    if not count:
        raise DataError("none of the held-out images can be read: mend or remove them")
    found: dict[str, float] = {}
    for name in levels:
        found |= {f"agreement{name}": agreed[name] / count}
        found |= {f"estimated_bpp{name}": bits[name] / pixels}
    return found


def train(args: argparse.Namespace) -> Path:
    """Run the training that the options describe; gives the path of the finished checkpoint."""
    shrink_to_smoke(args)
    with assemble(args.device) as team:
        return _train(args, team)


def _train(args: argparse.Namespace, team: Team) -> Path:
    name, spec = _spec(args)
    args.lmb = settle_lmb(args.lmb, spec.variable_rate, _USUAL_LMB)
    lmb = lmb_text(args.lmb)
    run: Path = args.resume or args.run_dir or Path("runs") / f"{name}_lmb{lmb}"
    out: Path = args.out or run / f"lmb{lmb}.safetensors"
    if team.leads:
        check_outputs(args, run, out)
    pictures = Pictures(args.data, [images_below(root) for root in args.data], args.held_out)
    damage = Damage(args.skip_damaged)
    settle_precision(args, team)
    torch.manual_seed(args.fixseed)
    weights, backbone = args.weights, spec.backbone
    teacher = load_teacher(weights, backbone) if weights else pretrained(backbone)
    labels = _labels(args, teacher)
    crops = partial(
        pictures.training, crop_area=args.crop_area, normalisation=backbone.normalisation
    )
    first = partial(_first_crops, crops(crop_sides(args)[0]), damage)
    model = _student(args, team, spec, teacher, first)
    teacher.to(team.device).to(memory_format=torch.channels_last)
    model.to(team.device)
    held_out = pictures.evaluation(args, backbone.normalisation)

    def judge(judged: nn.Module) -> dict[str, float]:
        student = cast(FeatureCompressionModel, judged)
        found: dict[str, float] = {}
        for folder, images in held_out.items():
            measures = measure(student, teacher, images, 50, team.device, args.amp, damage)
            found |= {f"{key}_{folder}": value for key, value in measures.items()}
        return found

    loss = _loss(args, teacher, _feature_scale(model).scale)
    training = Training(pictures.summary(), crops, loss, judge)
    optimizer = _optimizer(model, args)
    kept = cast(
        FeatureCompressionModel, run_epochs(args, team, run, training, model, optimizer, damage)
    )
    if team.leads:
        fit_quantiles(kept)
        recipe = shared_recipe(args, team.processes)
        about = {"model": name, "lmb": lmb, "labels": json.dumps(labels)}
        save_model(out, kept, about | {"recipe": recipe})
    team.wait()
    return out


def _student(
    args: argparse.Namespace,
    team: Team,
    spec: ModelSpec,
    teacher: Teacher,
    crops: Callable[[], Tensor],
) -> FeatureCompressionModel:
    """The model at the start: the teacher's tail, and --pretrain's weights or fitted scales.

    A checkpoint with another backbone gives the encoder, and the decoder is a new one.
    """
    model = build(spec, teacher.classes)
    start_from_teacher(model, teacher)
    model.fixed_statistics = True
    if args.frozen_tail:
        model.freeze_tail()
    if args.frozen_depthwise:
        freeze_depthwise(model.tail)
    if team.device.type == "cpu":
        speed_up_strides(model.tail)
    if args.pretrain:
        weights = args.lmb if isinstance(args.lmb, LmbRange) else None
        if not start_from_checkpoint(model, args.pretrain, weights):
            _fit_feature_scale(model, teacher, crops())
    else:
        images = crops()
        _fit_latent(model, images)
        _fit_feature_scale(model, teacher, images)
    model.bottleneck_layer.entropy_bottleneck.quantiles.requires_grad_(False)
    return model


def _feature_scale(model: FeatureCompressionModel) -> FeatureScale:
    """The decoder's last layer."""
    return next(m for m in model.bottleneck_layer.decoder if isinstance(m, FeatureScale))


@command("training.distil", resumes=True)
def main(argv: list[str] | None = None) -> int:
    """The command. Gives its exit code."""
    out = train(_parser().parse_args(argv))
    if leads():
        say(f"wrote {out}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
