"""Store a checkpoint in less: its tail in eight bits, about half the file, or without its tail.

    python -m training.shrink checkpoints/ours_n4/lmb1.28.safetensors --out small.safetensors
    python -m training.shrink runs/backbone/resnet50.safetensors --out small.safetensors
    python -m training.shrink FILE --backbone small.safetensors --out bottleneck.safetensors

FILE is a model of any backbone, or a whole classifier such as a teacher. Each row of a convolution
or linear layer (the weights of one output channel) becomes int8 values and one float32 scale.
weights.py describes the layout, and every command reads it.

Always holds: all other tensors, and with them the whole bottleneck, are stored as FILE stores them.
So the fingerprint, the tables and feature files stay what they are. With --bottleneck the encoder
and decoder are stored in eight bits too, which makes it another bottleneck. With --backbone the
bottleneck alone is written, and its tail is that of another file from then on: of a ResNet-50 that
`training.backbone --behind` trained to serve it.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from .checkpoint import (
    BOTTLENECK,
    CheckpointKeysError,
    NonFiniteCheckpointError,
    check_checkpoint_output,
    classes_of,
    tail_sha256,
)
from .command import command, say
from .files import write_atomically
from .labels import stored_labels
from .teachers import load_teacher
from .weights import (
    EIGHT_BITS,
    EIGHT_BITS_VERSION,
    SCALE,
    TAIL_SHA256,
    CheckpointError,
    read_metadata,
    read_state_dict,
)

_MOST = 127  # of an int8 value, either way


class OtherClassesError(CheckpointError):
    """A backbone whose classes are not those of the checkpoint, in the same order."""


class NothingToShrinkError(CheckpointError):
    """A checkpoint without weights that can be stored in eight bits, or that already has them."""


def to_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values of the shape of `weight` (float [out, ...]), and float32 scales [out].

    The largest value of a row is 127 or -127. Scales with less squared error, which cut it off,
    gain 0.1 dB on the weights of a trained ResNet-50: not worth their search.
    """
    rows = weight.detach().float().reshape(len(weight), -1)
    # Rows of zeros, and of values too small for a scale, become zeros.
    scale = (rows.abs().amax(1) / _MOST).clamp(min=torch.finfo(torch.float32).tiny)
    values = (rows / scale[:, None]).round().clamp(-_MOST, _MOST)
    return values.to(torch.int8).reshape(weight.shape), scale


def shrink(state: dict[str, Tensor], bottleneck: bool = False) -> dict[str, Tensor]:
    """`state` with the weights of convolutions and linear layers as int8 values and scales.

    Those of the bottleneck stay as they are, unless `bottleneck`. Raises
    NonFiniteCheckpointError.
    """
    found = {}
    for key, value in state.items():
        weight = key.endswith(".weight") and value.ndim in (2, 4) and value.is_floating_point()
        if weight and (bottleneck or not key.startswith(BOTTLENECK)):
            if not torch.isfinite(value).all():
                raise NonFiniteCheckpointError(
                    f"{key} holds values that are not finite: nothing was written"
                )
            found[key], found[key + SCALE] = to_eight_bits(value)
        else:
            found[key] = value.contiguous()
    return found


def in_front_of(
    backbone: Path, checkpoint: Path, state: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The bottleneck alone, and metadata that name the tail of `backbone` as its tail.

    Raises NothingToShrinkError, OtherClassesError, CheckpointErrors, FileNotFoundError.
    """
    found = {key: value for key, value in state.items() if key.startswith(BOTTLENECK)}
    if not found:
        raise NothingToShrinkError(f"{checkpoint} has no bottleneck: --backbone is for a model")
    teacher = load_teacher(backbone)
    theirs = teacher.backbone.state_dict()
    strange = [key for key in state if key not in found and key not in theirs]
    if strange:
        raise CheckpointKeysError(
            f"{checkpoint} has a tail of another network than {backbone}: it has {strange[0]}"
        )
    had = _label_count(metadata) or classes_of(theirs | state, str(checkpoint))
    if had != teacher.classes:
        raise OtherClassesError(
            f"{checkpoint} has {had} classes, and {backbone} has {teacher.classes}"
        )
    own = stored_labels(metadata, had)
    if own and teacher.labels and own != teacher.labels:
        raise OtherClassesError(
            f"{backbone} has other classes than {checkpoint}, or in another order: "
            f"{', '.join(teacher.labels[:3])}, and not {', '.join(own[:3])}"
        )
    named = {"backbone": backbone.name, "backbone_sha256": tail_sha256(theirs)}
    return found, metadata | named


def _label_count(metadata: dict[str, str]) -> int:
    """How many labels a checkpoint's metadata has; 0 if it has none."""
    try:
        labels = json.loads(metadata.get("labels", "null"))
    except ValueError:
        return 0
    return len(labels) if isinstance(labels, list) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.shrink", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FILE", help="a model, or a whole classifier")
    add("--out", required=True, type=Path, metavar="FILE", help="the smaller checkpoint")
    add(
        "--bottleneck",
        action="store_true",
        help="store the encoder and decoder in eight bits too: this changes the fingerprint, so "
        "bundles, feature files, counts and ranges of FILE do not fit the smaller one",
    )
    add(
        "--backbone",
        type=Path,
        metavar="RESNET50",
        help="write the bottleneck alone: from now on its tail is that of this file, which has to "
        "lie beside it or one folder up",
    )
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


def _in_eight_bits(checkpoint: Path, bottleneck: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if EIGHT_BITS in read_metadata(checkpoint):
        raise NothingToShrinkError(
            f"{checkpoint} already stores weights in eight bits: shrink the file that it is of"
        )
    state, metadata = read_state_dict(checkpoint)
    tensors = shrink(state, bottleneck)
    if len(tensors) == len(state):
        raise NothingToShrinkError(
            f"{checkpoint} has no tail, only a bottleneck: shrink its backbone's file"
        )
    about = {EIGHT_BITS: EIGHT_BITS_VERSION, TAIL_SHA256: tail_sha256(state)}
    return tensors, metadata | about


@command("training.shrink")
def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    check_checkpoint_output(
        args.out, [args.checkpoint, *([args.backbone] if args.backbone else [])]
    )
    if args.backbone:
        if args.bottleneck:
            raise NothingToShrinkError("--backbone keeps the bottleneck: leave out --bottleneck")
        tensors, about = in_front_of(
            args.backbone, args.checkpoint, *read_state_dict(args.checkpoint)
        )
    else:
        tensors, about = _in_eight_bits(args.checkpoint, args.bottleneck)
    write_atomically(args.out, save(tensors, about))
    before, after = (file.stat().st_size for file in (args.checkpoint, args.out))
    say(f"wrote {args.out}, {after:,} bytes instead of {before:,}", sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
