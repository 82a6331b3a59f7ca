"""Checkpoints: the weights of a model, read from anybody's file and written as ours.

Reads
- published files, a pickle `{"model": state_dict, ...}` in `.pt`, opened with weights_only=True;
- ours, `.safetensors`, float16 where that is enough, with the labels in its metadata.
Entropy parameters may bear the names of CompressAI 1.2.2 (`_matrix0`) or of 1.2.8 (`matrices.0`).
Table buffers are dropped whether present or not: tables are made once, at export.

Always holds: a checkpoint that loads fits its model key by key and has no value that is not finite;
a file appears under its name whole or not at all.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .models import FeatureCompressionModel, build_model, model_spec

_ENTROPY = "bottleneck_layer.entropy_bottleneck."
TABLE_BUFFERS = {_ENTROPY + name for name in ("_offset", "_quantized_cdf", "_cdf_length")}
_OLD_NAME = re.compile(r"\._(matrix|bias|factor)(\d)$")
_NEW_LISTS = {"matrix": "matrices", "bias": "biases", "factor": "factors"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit its model."""


class UnreadableCheckpointError(CheckpointError):
    """The file is no `.pt` that weights_only can open, and no safetensors file."""


class CheckpointKeysError(CheckpointError):
    """Keys are missing, extra, or of another shape than the model's."""


class NonFiniteCheckpointError(CheckpointError):
    """A weight is NaN or infinite."""


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata from a `.safetensors` or `.pt`/`.pth` file, unpickling nothing.

    A `.pt` may hold the state_dict itself or have it under "model" or "state_dict"; a "classes"
    list beside it becomes the metadata's "labels". Raises FileNotFoundError and
    UnreadableCheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise UnreadableCheckpointError(f"{path} is not a safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no error classes for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableCheckpointError(f"{path} cannot be opened with torch.load(weights_only=True): {reason}") from error
    metadata = {}
    if isinstance(content, dict):
        if isinstance(content.get("classes"), list):
            metadata["labels"] = json.dumps([str(label) for label in content["classes"]])
        content = content.get("model", content.get("state_dict", content))
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UnreadableCheckpointError(f"{path} holds no state_dict, alone or under 'model' or 'state_dict'")
    return content, metadata


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(key: str) -> str:
        if not key.startswith(_ENTROPY):
            return key
        return _OLD_NAME.sub(lambda match: f".{_NEW_LISTS[match[1]]}.{match[2]}", key)

    return {rename(key): value for key, value in state.items() if key not in TABLE_BUFFERS}


def load_state(model: torch.nn.Module, state: dict[str, Tensor], source: str, ignore: frozenset[str] = frozenset()) -> None:
    """Copy a state_dict into a module of exactly its keys and shapes; float16 is widened.

    Raises CheckpointKeysError naming every key that differs, NonFiniteCheckpointError.
    """
    own = {key: value for key, value in model.state_dict().items() if key not in ignore}
    problems = [f"missing: {key}" for key in own if key not in state]
    problems += [f"extra: {key}" for key in state if key not in own]
    problems += [
        f"misshaped: {key} is {list(state[key].shape)}, the model has {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else []))
        raise CheckpointKeysError(f"{source} does not fit the model:\n  {shown}")
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise NonFiniteCheckpointError(f"{source}: {key} holds values that are not finite")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=not ignore)


def load_model(path: str | os.PathLike[str], name: str) -> tuple[FeatureCompressionModel, dict[str, str]]:
    """Build the model `name` with the weights in `path`, in eval mode, and give the file's metadata.

    The number of classes is that of the file's `fc.weight`. Raises UnknownModelError,
    FileNotFoundError, and the CheckpointErrors above.
    """
    model_spec(name)
    raw, metadata = read_state_dict(path)
    state = _current_names(raw)
    classifier = state.get("fc.weight")
    if classifier is None or classifier.ndim != 2 or classifier.shape[0] < 1:
        raise CheckpointKeysError(f"{path} does not fit the model:\n  missing or misshaped: fc.weight")
    # The shape is checked before the number of classes decides an allocation.
    if classifier.shape[1] != 2048:
        raise CheckpointKeysError(f"{path}: fc.weight is {list(classifier.shape)}, the tail has 2048 inputs")
    model = build_model(name, num_classes=classifier.shape[0])
    load_state(model, state, str(path), ignore=frozenset(TABLE_BUFFERS))
    return model.eval(), metadata


def save_model(path: str | os.PathLike[str], model: FeatureCompressionModel, metadata: dict[str, str]) -> None:
    """Write a model as safetensors: convolution and linear weights float16, all else float32.

    Metadata values are text; "labels" is a JSON list. Raises NonFiniteCheckpointError where a
    weight does not survive float16.
    """
    tensors = {}
    for key, value in model.state_dict().items():
        if key in TABLE_BUFFERS:
            continue
        # The entropy model decides the tables, and batch norm's running variance has a range
        # wider than float16's: both are small and stay exact.
        half = value.ndim in (2, 4) and value.is_floating_point() and not key.startswith(_ENTROPY)
        tensors[key] = (value.half() if half else value).contiguous()
        if not torch.isfinite(tensors[key]).all():
            raise NonFiniteCheckpointError(f"{key} is not finite as {tensors[key].dtype}: nothing was written")
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


class atomic_path:
    """Context manager: gives a temporary name beside `path`, and renames it to `path` on success.

    On an exception the temporary file is removed and `path` is left as it was.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __enter__(self) -> str:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self.temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            Path(self.temporary).unlink(missing_ok=True)
            return
        with open(self.temporary, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(self.temporary, 0o666 & ~mask)
        os.replace(self.temporary, self.path)
