"""Checkpoints: the weights of a model, read from anybody's file and written as ours.

Files are read by weights.py. Ours are `.safetensors`, float16 where that is enough, with the labels
in the metadata. Published ones are a pickle `{"model": state_dict, ...}` in `.pt`. Any float type
is widened to float32. An unregistered model (registry.py) describes itself in the metadata.
Entropy parameters may bear the names of CompressAI 1.2.2 (`_matrix0`) or of 1.2.8 (`matrices.0`).
Table buffers are dropped whether present or not: tables are made once, at export.

A checkpoint trained behind a frozen backbone may hold the bottleneck alone: its metadata then names
the ResNet-50 file that lies beside it or one folder up, and the tail's digest.

Always holds: a checkpoint that loads fits its model key by key and has no value that is not finite;
a bottleneck gets the very tail that it was trained with, or that tail stored in eight bits; a file
appears under its name whole or not at all.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from .backbones import RESNET50, Backbone
from .bottleneck import VariableBottleneck
from .data import Normalisation
from .files import OutputError, check_output, write_atomically
from .models import (
    MODELS,
    DescriptionError,
    FeatureCompressionModel,
    ModelSpec,
    build,
    describe,
    model_spec,
    spec_of_description,
)
from .rates import TOP_LEVEL, LmbRange
from .weights import EIGHT_BITS, TAIL_SHA256, CheckpointError, read_metadata, read_state_dict

_ENTROPY = "bottleneck_layer.entropy_bottleneck."
_GAINS = "bottleneck_layer.log_gain", "bottleneck_layer.log_inverse_gain"
TABLE_BUFFERS = {_ENTROPY + name for name in ("_offset", "_quantized_cdf", "_cdf_length")}
_COUNTED = "num_batches_tracked"
_FLOATS = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
}
_COUNTS = {torch.int64, torch.int32, torch.int16, torch.uint8}
_OLD_NAME = re.compile(r"\._(matrix|bias|factor)(\d)$")
_NEW_LISTS = {"matrix": "matrices", "bias": "biases", "factor": "factors"}


class CheckpointKeysError(CheckpointError):
    """Keys are missing, extra, or of another shape or type than the model's."""


class NonFiniteCheckpointError(CheckpointError):
    """A weight is NaN or infinite."""


class BackboneError(CheckpointError):
    """A checkpoint holds the bottleneck alone, and its backbone is not there or is another one."""


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(key: str) -> str:
        if not key.startswith(_ENTROPY):
            return key
        return _OLD_NAME.sub(lambda match: f".{_NEW_LISTS[match[1]]}.{match[2]}", key)

    return {rename(key): value for key, value in state.items() if key not in TABLE_BUFFERS}


def load_state(
    model: torch.nn.Module,
    state: dict[str, Tensor],
    source: str,
    ignore: frozenset[str] = frozenset(),
) -> None:
    """Copy a state_dict into a module of exactly its keys and shapes, in the module's float type.

    Batch norm's counts of batches may be missing, as they are in files of torch before 0.4.1.
    Raises CheckpointKeysError naming every key that differs, NonFiniteCheckpointError.
    """
    own = {key: value for key, value in model.state_dict().items() if key not in ignore}
    counted = {key: value for key, value in own.items() if key.endswith(_COUNTED)}
    state = counted | state
    problems = [f"missing: {key}" for key in own if key not in state]
    problems += [f"extra: {key}" for key in state if key not in own]
    problems += [
        f"misshaped: {key} is {list(state[key].shape)}, the model has {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems += [
        f"of another type: {key} is {str(state[key].dtype).removeprefix('torch.')}, "
        "and floats are wanted: save it with .float()"
        for key, value in own.items()
        if key in state and value.is_floating_point() and state[key].dtype not in _FLOATS
    ]
    if problems:
        shown = "\n  ".join(
            problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        )
        raise CheckpointKeysError(f"{source} does not fit the model:\n  {shown}")
    # Nothing reads batch norm's counts of batches: one that is no integer is left out.
    fitted = {
        key: value.to(own[key].dtype) for key, value in state.items() if key not in counted
    } | {
        key: state[key].long() if state[key].dtype in _COUNTS else value
        for key, value in counted.items()
    }
    for key, value in fitted.items():
        if not torch.isfinite(value).all():
            raise NonFiniteCheckpointError(f"{source}: {key} holds values that are not finite")
    model.load_state_dict(fitted, strict=not ignore)


def classes_of(state: dict[str, Tensor], source: str, backbone: Backbone = RESNET50) -> int:
    """The number of classes, which decides an allocation.

    Raises CheckpointKeysError where the classifier's weights are not there.
    """
    key = f"{backbone.classifier}.weight"
    weight = state.get(key)
    if weight is None or weight.ndim != 2 or weight.shape[0] < 1:
        raise CheckpointKeysError(
            f"{source} does not fit the model:\n  missing or misshaped: {key}{_begin_with(state)}"
        )
    if backbone == RESNET50 and weight.shape[1] != 2048:
        raise CheckpointKeysError(
            f"{source}: {key} is {list(weight.shape)}, the tail has 2048 inputs"
        )
    return weight.shape[0]


def _begin_with(state: dict[str, Tensor]) -> str:
    """What keys begin with, for a file whose keys are strange altogether."""
    firsts = list(dict.fromkeys(key.partition(".")[0] for key in state))
    return f"; its keys begin with {', '.join(firsts[:6])}" if firsts else ""


BOTTLENECK = "bottleneck_layer."


def _tail(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """layer2..fc of a ResNet-50's state or of a model's."""
    return {
        key: value
        for key, value in state.items()
        if key.startswith(("layer2.", "layer3.", "layer4.", "fc."))
    }


def _behind_bottleneck(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tail of a model's state, of any backbone."""
    return {key: value for key, value in state.items() if not key.startswith(BOTTLENECK)}


def tail_sha256(state: dict[str, Tensor]) -> str:
    """Digest of layer2..fc in a ResNet-50's state or a model's, whatever precision it has.

    It covers names, shapes and float32 values, but not batch norm's counts of batches.
    """
    digest = hashlib.sha256()
    for key, value in sorted(_tail(state).items()):
        if not key.endswith(_COUNTED):
            digest.update(f"{key} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _backbone_tail(
    checkpoint: Path, metadata: dict[str, str], backbone: str | os.PathLike[str] | None
) -> dict[str, Tensor]:
    """The tail for a bottleneck that was saved alone; raises BackboneError."""
    name = metadata.get("backbone", "")
    # A bare file name: a checkpoint does not send its reader through the disk.
    beside = [
        folder / name
        for folder in (checkpoint.parent, checkpoint.parent.parent)
        if name and Path(name).name == name
    ]
    found = next(
        (file for file in ([Path(backbone)] if backbone else beside) if file.is_file()), None
    )
    if found is None:
        looked = (
            " or ".join(str(file) for file in ([backbone] if backbone else beside)) or "any file"
        )
        raise BackboneError(
            f"{checkpoint} holds the bottleneck alone, and its backbone is not at {looked}: "
            "put it there, or name it with --backbone FILE"
        )
    tail = _tail(read_state_dict(found)[0])
    stored = read_metadata(found)
    # A tail that was stored in eight bits later on is named by the digest that it had before.
    before = stored.get(TAIL_SHA256) if EIGHT_BITS in stored else None
    if metadata.get("backbone_sha256") not in (before, tail_sha256(tail)):
        raise BackboneError(
            f"{checkpoint} was trained in front of another backbone than {found}: "
            "name its own with --backbone FILE"
        )
    return tail


def load_model(
    path: str | os.PathLike[str], name: str, backbone: str | os.PathLike[str] | None = None
) -> tuple[FeatureCompressionModel, dict[str, str]]:
    """Build the model `name` with the weights in `path`, in eval mode, and the file's metadata.

    A model that is not in MODELS is built as its checkpoint describes it. `backbone` is for a file
    that holds the bottleneck alone, if the backbone that it names is neither beside it nor one
    folder up. The number of classes is that of the classifier's weights. Raises UnknownModelError,
    FileNotFoundError, and the CheckpointErrors above.
    """
    if name in MODELS or not Path(path).exists():
        spec = model_spec(name)
        raw, metadata = read_state_dict(path)
    else:
        raw, metadata = read_state_dict(path)
        stored = sum(value.numel() for value in raw.values())
        spec = _described(name, metadata, stored, str(path))
    state = _current_names(raw)
    if "backbone_sha256" in metadata and not _behind_bottleneck(state):
        state |= _backbone_tail(Path(path), metadata, backbone)
    model = build(spec, classes_of(state, str(path), spec.backbone))
    load_state(model, state, str(path), ignore=frozenset(TABLE_BUFFERS))
    return model.eval(), metadata


def _described(name: str, metadata: dict[str, str], stored: int, source: str) -> ModelSpec:
    """The spec in the metadata of a model that is not registered.

    Raises UnknownModelError, CheckpointError.
    """
    if metadata.get("model") != name or "architecture" not in metadata:
        return model_spec(name)
    try:
        return spec_of_description(metadata["architecture"], stored)
    except DescriptionError as error:
        raise CheckpointError(f"{source} {error}: use a checkpoint of this release") from error


def start_from_checkpoint(
    model: FeatureCompressionModel,
    path: str | os.PathLike[str],
    weights: LmbRange | None = None,
) -> bool:
    """Begin training with a checkpoint's weights, of this model or of another of its family.

    One with another backbone gives its encoder and entropy model, with the first convolution
    adapted to this model's normalisation of images; decoder and tail stay as they are. Returns
    whether the decoder is the checkpoint's.

    An `ours_*` encoder of another depth gives the blocks that both have; further ones begin as
    identities. A frozen tail, or one that the checkpoint lacks, stays as it is. Medians are 0
    again, training's grid.

    A variable-rate model may begin with one of a fixed rate: at the level whose rate weight is the
    checkpoint's, it then gives the same symbols and features. `weights` are its levels' weights.
    Raises FileNotFoundError and the CheckpointErrors above.
    """
    raw, metadata = read_state_dict(path)
    state = _current_names(raw)
    other = _other_backbone(model.spec, raw, metadata, str(path))
    if other:
        state = _encoder_alone(state, other.normalisation, model.spec.backbone.normalisation)
    bottleneck = model.bottleneck_layer
    if isinstance(bottleneck, VariableBottleneck) and not any(key in state for key in _GAINS):
        bottleneck.set_ladder(_level_of(metadata, weights or LmbRange(), str(path)))
        state |= {key: value for key, value in model.state_dict().items() if key in _GAINS}
    own = {key: value for key, value in model.state_dict().items() if key not in TABLE_BUFFERS}
    tail = _behind_bottleneck(state)
    state = model.spec.architecture.fitted(state, own)
    if other:
        state = own | state
    elif model.frozen_tail or not tail:
        state = {key: value for key, value in state.items() if key not in tail}
        state |= _behind_bottleneck(own)
    load_state(model, state, str(path), ignore=frozenset(TABLE_BUFFERS))
    model.bottleneck_layer.entropy_bottleneck.quantiles.data[:, :, 1] = 0
    return other is None


def _other_backbone(
    own: ModelSpec, state: dict[str, Tensor], metadata: dict[str, str], source: str
) -> Backbone | None:
    """The backbone of a checkpoint, None if it is the model's own or the checkpoint names none.

    Raises CheckpointError.
    """
    name = metadata.get("model", "")
    if name in MODELS:
        theirs = MODELS[name].backbone
    elif "architecture" in metadata:
        stored = sum(value.numel() for value in state.values())
        theirs = _described(name, metadata, stored, source).backbone
    else:
        return None
    return None if theirs == own.backbone else theirs


def _encoder_alone(
    state: dict[str, Tensor], theirs: Normalisation, ours: Normalisation
) -> dict[str, Tensor]:
    """Encoder, entropy model and gains of a state, which give the same latent for images
    normalised as `ours`: (x ours.std + ours.mean - theirs.mean) / theirs.std was x before.
    """
    begins = (f"{BOTTLENECK}encoder.", _ENTROPY, *_GAINS)
    found = {key: value for key, value in state.items() if key.startswith(begins)}
    weight, bias = (f"{BOTTLENECK}encoder.0.{name}" for name in ("weight", "bias"))
    (our_mean, our_std), (their_mean, their_std) = ours.tensors(), theirs.tensors()
    if ours != theirs and weight in found and bias in found:
        shift = found[weight].float() * ((our_mean - their_mean) / their_std)
        found[bias] = found[bias].float() + shift.sum((1, 2, 3))
        found[weight] = found[weight].float() * (our_std / their_std)
    return found


def _level_of(metadata: dict[str, str], weights: LmbRange, source: str) -> float:
    """The rate level whose weight is a fixed-rate checkpoint's; the middle one if it has none.

    Raises CheckpointError.
    """
    text = metadata.get("lmb")
    if text is None:
        return TOP_LEVEL / 2
    try:
        return weights.level_of(float(text))
    except ValueError as error:
        raise CheckpointError(
            f"{source} says that its lmb is {text[:40]!r}, which is no number above 0: "
            "begin with another checkpoint"
        ) from error


def check_checkpoint_output(
    path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse an output that is not .safetensors, cannot be written or is an input, before work.

    Raises OutputError.
    """
    if Path(path).suffix != ".safetensors":
        raise OutputError(
            f"{os.fspath(path)}: checkpoints are written as safetensors: "
            "name a file that ends in .safetensors"
        )
    check_output(path, inputs)


def save_model(
    path: str | os.PathLike[str],
    model: FeatureCompressionModel,
    metadata: dict[str, str],
    backbone: str | None = None,
) -> None:
    """Write a model as safetensors: convolution and linear weights float16, all else float32.

    With the file name of a `backbone`, whose tail is the model's, the bottleneck alone is written.
    Metadata values are text; "labels" is a JSON list. Raises NonFiniteCheckpointError where a
    weight does not survive float16.
    """
    state = {key: value for key, value in model.state_dict().items() if key not in TABLE_BUFFERS}
    if model.spec not in MODELS.values():
        metadata = metadata | {"architecture": describe(model.spec)}
    if backbone:
        metadata = metadata | {"backbone": backbone, "backbone_sha256": tail_sha256(state)}
        state = {key: value for key, value in state.items() if key.startswith(BOTTLENECK)}
    save_state(path, state, metadata)


def save_state(
    path: str | os.PathLike[str], state: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a state_dict as safetensors: convolution and linear weights float16, all else as it is.

    Raises NonFiniteCheckpointError where a weight does not survive float16.
    """
    tensors = {}
    for key, value in state.items():
        # The entropy model decides the tables, the gains symbols, and batch norm's running
        # variance has a range wider than float16's: all are small and stay exact.
        exact = key.startswith((_ENTROPY, *_GAINS))
        half = value.ndim in (2, 4) and value.is_floating_point() and not exact
        tensors[key] = (value.half() if half else value).contiguous()
        if not torch.isfinite(tensors[key]).all():
            raise NonFiniteCheckpointError(
                f"{key} is not finite as {tensors[key].dtype}: nothing was written"
            )
    write_atomically(path, save(tensors, metadata))
