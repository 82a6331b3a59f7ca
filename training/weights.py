"""Reads the tensors of any checkpoint file, without running anything that is in it.

The first bytes of a file tell its format, not its suffix: safetensors, or a file of torch.save (a
zip, or the format before torch 1.6), opened with weights_only=True. A training loop may have put
the weights under "model", "state_dict" or a similar key, beside a moving average of them, and
wrappers (DistributedDataParallel, torch.compile, a Lightning module) may have put a prefix before
every key.

A safetensors file may store weights in eight bits, as training.shrink writes them: its metadata has
`eight_bits`, the version of the layout, here 1. An int8 tensor NAME [out, ...] then has a float32
tensor NAME_scale [out] beside it. Their product, row by row, is read as float32.

Always holds: the result is dense tensors by name, and the file stores each of their values, so a
small file with a huge shape cannot claim much memory. Every error is a line of ours that names the
file, the reason and a remedy.
"""

import argparse
import json
import os
import re
import stat
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Keys under which training loops put the weights, the first one present is taken, and their
# moving average.
CONTAINERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "student",
    "weights",
    "params",
)
AVERAGES = (
    "model_ema",
    "ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "params_ema",
    "average",
)

# Files of torch.save before 1.6 start with this pickled number.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_MOST_HEADER = 16 << 20  # bytes; safetensors parses up to 100 MB, and a ResNet-50's has 30 KB
_MOST_UNPACKED = 10  # times the file's own size: weights hardly shrink in a zip
_WRAPPER = re.compile(
    r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)\."
)
# Modules of a ResNet-50 and of our models, which are never a prefix to remove, even if all keys
# start with one, as in a file of a bottleneck alone.
_OWN = {"bottleneck_layer", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
# Metadata of a file with weights in eight bits: the layout's version, and the digest that the tail
# had before (checkpoint.tail_sha256).
EIGHT_BITS, EIGHT_BITS_VERSION, TAIL_SHA256 = "eight_bits", "1", "tail_sha256"
SCALE = "_scale"  # behind a weight's name: the tensor of its scales
_INSTEAD = "save model.state_dict() alone, with torch.save or as safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit its model."""


class UnreadableCheckpointError(CheckpointError):
    """The file is in neither format, is damaged, or holds more than tensors and plain values."""


class CheckpointTensorError(CheckpointError):
    """A tensor without plain values: sparse, quantized, on no device, or larger than its data."""


class EightBitsVersionError(CheckpointError):
    """Weights in eight bits, in a layout that this release does not know."""


class EightBitsError(CheckpointError):
    """An int8 tensor without the scales that its weights need."""


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, without wrappers' prefixes, and the file's metadata.

    Weights in eight bits come as float32, without the layout's metadata. A list "classes" in a file
    of torch.save becomes the metadata's "labels", as JSON. If the file holds several sets of
    weights, a line on standard error says which was taken. Raises OSError,
    UnreadableCheckpointError, CheckpointTensorError, EightBitsVersionError, EightBitsError.
    """
    path = Path(path)
    if _kind(path) == "safetensors":
        content, metadata = _widened(*_read_safetensors(path), path)
    else:
        loaded = load_plain(path)
        metadata = {}
        if isinstance(loaded, Mapping) and isinstance(loaded.get("classes"), list):
            metadata["labels"] = json.dumps([str(label) for label in loaded["classes"]])
        content = _find_state(loaded, path)
    for key, value in content.items():
        _check_tensor(key, value, path)
    return _without_prefix(content, path), metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without reading tensors; {} for any other file."""
    try:
        if _kind(Path(path)) == "safetensors":
            with safe_open(str(path), "pt") as file:
                return file.metadata() or {}
    except (SafetensorError, CheckpointError):
        pass  # reading the tensors will report it
    return {}


def load_plain(path: Path, device: str | torch.device = "cpu") -> Any:
    """What torch.save wrote: tensors, containers and plain values, with tensors on `device`.

    Raises OSError, UnreadableCheckpointError.
    """
    kind = _kind(path)
    if kind == "safetensors":
        raise UnreadableCheckpointError(
            f"{path} is a safetensors file, and a file of torch.save is needed here"
        )
    if kind == "zip":
        _check_zip(path)
    try:
        # Many training loops save their options, a Namespace of plain values.
        # torch.load gets the open file, because it would look at the suffix of a name.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            open(path, "rb") as file,
            warnings.catch_warnings(),
        ):
            # About pickle protocols and sparse tensors, which are refused below.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location=device, weights_only=True)
    except OSError:
        raise
    # torch.load documents no error classes, and its texts advise to run what is in the file.
    except Exception as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnreadableCheckpointError(
                f"{path} holds a {found[1]}, an object that only its own program can load; "
                "a checkpoint here is tensors, which weights_only loads: "
                f"in that program, {_INSTEAD}"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # torch's text about weights_only ("Weights only load failed ...") advises to turn it off.
        detail = "" if "eights" in reason else f" ({reason[:120]})"
        raise UnreadableCheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, which is what "
            f"weights_only loads{detail}: "
            f"copy it again, or in the program that made it, {_INSTEAD}"
        ) from None


def _kind(path: Path) -> str:
    """'safetensors', 'zip' or 'legacy', by the first bytes.

    Raises FileNotFoundError, IsADirectoryError, UnreadableCheckpointError.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the checkpoint in it")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableCheckpointError(
            f"{path} is not a regular file, and weights are read from several places in it: "
            "save it to a file first"
        )
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(_LEGACY):
        return "legacy"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 1 << 40:
        if length > _MOST_HEADER:
            raise UnreadableCheckpointError(
                f"{path} has a safetensors header of {length:,} bytes, and at most "
                f"{_MOST_HEADER:,} are allowed: copy it again"
            )
        return "safetensors"
    raise UnreadableCheckpointError(
        f"{path} is neither a safetensors file nor one of torch.save: {_what_else(head)}"
    )


def _what_else(head: bytes) -> str:
    """What a file with these first bytes is, if not a checkpoint, and what to do."""
    if not head:
        return "it is empty: copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer to the file: run `git lfs pull`"
    if head[257:262] == b"ustar":
        return (
            "it is a tar archive: unpack it and name the file in it; "
            f"if torch before 0.4 wrote it, {_INSTEAD}, with a newer torch"
        )
    if head.startswith(b"\x80"):
        return f"it is a pickle of another program: in that, {_INSTEAD}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text and all(byte >= 32 or byte in b"\t\r\n" for byte in text):
        first = text.splitlines()[0][:60].decode("utf-8", "replace")
        page = ", like an error page in place of the file" if text[:1] in b"<{" else ""
        return f"it is text that starts with {first!r}{page}: download the file itself"
    return f"it starts with {head[:8].hex(' ')}: copy it again"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise UnreadableCheckpointError(
            f"{path} is a damaged safetensors file ({str(error).splitlines()[0]}): copy it again"
        ) from error


def _widened(
    content: dict[str, Tensor], metadata: dict[str, str], path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights in eight bits as float32, without their scales; any other file as it is.

    Raises EightBitsVersionError, EightBitsError.
    """
    version = metadata.get(EIGHT_BITS)
    if version is None:
        return content, metadata
    if version != EIGHT_BITS_VERSION:
        raise EightBitsVersionError(
            f"{path} stores weights in eight bits in layout {version[:20]!r}, and this release "
            f"reads layout {EIGHT_BITS_VERSION}: install the release that wrote it"
        )
    weights = [key for key, value in content.items() if value.dtype == torch.int8]
    scales = {key: _scale(key, content, path) for key in weights}
    state = {
        key: value.float() * scales[key] if key in scales else value
        for key, value in content.items()
        if key.removesuffix(SCALE) not in scales or key in scales
    }
    about = {key: text for key, text in metadata.items() if key not in (EIGHT_BITS, TAIL_SHA256)}
    return state, about


def _scale(key: str, content: dict[str, Tensor], path: Path) -> Tensor:
    """The scales of the int8 tensor `key`, shaped to multiply it. Raises EightBitsError."""
    weight, scale = content[key], content.get(key + SCALE)
    if scale is None:
        why = f"is missing beside {key}"
    elif scale.dtype != torch.float32:
        why = f"is {str(scale.dtype).removeprefix('torch.')}, not float32"
    elif weight.ndim == 0 or scale.shape != weight.shape[:1]:
        why = f"is {list(scale.shape)}, and {key} is {list(weight.shape)}"
    elif not (torch.isfinite(scale) & (scale > 0)).all():
        why = "has a value that is not above 0, or not finite"
    else:
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    raise EightBitsError(f"{path}: {key}{SCALE} {why}: copy the file again, or shrink it again")


def _check_zip(path: Path) -> None:
    """Refuse a zip that torch.save did not write, or that unpacks to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UnreadableCheckpointError(
            f"{path} is a damaged file of torch.save, or was cut off ({error}): copy it again"
        ) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UnreadableCheckpointError(
            f"{path} is a TorchScript program, and a checkpoint here is tensors: {_INSTEAD}"
        )
    if not any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
        held = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UnreadableCheckpointError(
            f"{path} is a zip archive of {held or 'nothing'}: "
            "unpack it and name the checkpoint in it"
        )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(64 << 20, _MOST_UNPACKED * path.stat().st_size):
        raise UnreadableCheckpointError(
            f"{path} would unpack to {unpacked:,} bytes, over {_MOST_UNPACKED} times its size: "
            "copy it again"
        )


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict that a training loop saved: the content itself, or what a container holds."""
    content, container = _open_containers(content, path)
    is_mapping = isinstance(content, Mapping)
    state = dict(content) if is_mapping else {}
    if not is_mapping or (state and not any(isinstance(value, Tensor) for value in state.values())):
        held = (
            ", ".join(repr(key)[:40] for key in list(content)[:8])
            if is_mapping
            else f"a {type(content).__name__}"
        )
        raise UnreadableCheckpointError(
            f"{path} holds no state_dict, alone or under 'model' or 'state_dict', but {held}: "
            f"{_INSTEAD}"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            where = f" under {container!r}" if container else ""
            raise UnreadableCheckpointError(
                f"{path}{where}: {key!r} is a {type(value).__name__} among tensors: {_INSTEAD}"
            )
    return state


def _open_containers(content: Any, path: Path) -> tuple[Any, str]:
    """What the innermost container holds, and its name, "" if there is none."""
    taken = ""
    for _ in range(3):  # {"checkpoint": {"model": ...}} is as deep as it gets
        if not isinstance(content, Mapping):
            break
        choices = [
            name
            for name in (*CONTAINERS, *AVERAGES, "checkpoint")
            if isinstance(content.get(name), Mapping)
        ]
        if not choices:
            break
        taken, content = choices[0], content[choices[0]]
        if len(choices) > 1 or taken in AVERAGES:
            others = ", ".join(map(repr, choices[1:]))
            left = f", not those under {others}" if others else ""
            print(f"{path}: taking the weights under {taken!r}{left}", file=sys.stderr)
    return content, taken


def _check_tensor(key: str, value: Tensor, path: Path) -> None:
    """Refuse a tensor without plain values, before memory is allocated for it.

    Raises CheckpointTensorError.
    """
    if value.is_meta:
        raise CheckpointTensorError(
            f"{path}: {key} is on the device 'meta' and has no values: "
            "load the weights before you save them"
        )
    if value.is_quantized or value.layout != torch.strided or value.is_nested:
        how = "quantized" if value.is_quantized else f"of layout {value.layout}"
        raise CheckpointTensorError(
            f"{path}: {key} is {how}, and dense floats are needed: "
            "save what .dequantize() or .to_dense() gives"
        )
    stored = value.untyped_storage().nbytes() // max(1, value.element_size())
    if value.numel() > stored:
        raise CheckpointTensorError(
            f"{path}: {key} of {list(value.shape)} claims {value.numel():,} values, and the file "
            f"stores {stored:,}: copy the file again, or save what .contiguous() gives"
        )


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without wrappers' names in its keys, and without a prefix that all keys share.

    A module of ours is not such a prefix. Raises UnreadableCheckpointError.
    """
    # torch's AveragedModel stores a counter beside the module.
    if any(key.startswith("module.") for key in state):
        state = {key: value for key, value in state.items() if key != "n_averaged"}
    renamed = {_unwrapped(key): value for key, value in state.items()}
    while (
        len(firsts := {key.partition(".")[0] for key in renamed}) == 1
        and not firsts & _OWN
        and all("." in key for key in renamed)
    ):
        renamed = {key.partition(".")[2]: value for key, value in renamed.items()}
    if len(renamed) != len(state):
        raise UnreadableCheckpointError(
            f"{path} holds a model twice, with and without a wrapper's prefix: {_INSTEAD}"
        )
    return renamed


def _unwrapped(key: str) -> str:
    while (shorter := _WRAPPER.sub(r"\1", key)) != key:
        key = shorter
    return key
