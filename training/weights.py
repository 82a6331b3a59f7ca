"""Reading tensors out of anybody's file, and running nothing that is in it.

What a file is, its first bytes say and not its suffix: safetensors, or what torch.save wrote (a zip, or the form
before torch 1.6), opened with weights_only=True. A training loop may have put the weights under "model",
"state_dict" or the like, beside a moving average of them, and wrappers (DistributedDataParallel, torch.compile,
a Lightning module) a prefix before every key.

Always holds: what comes out is dense tensors of names, each with as many values as the file stores for it, so no
shape in a small file asks for much memory. Every refusal is one of our own lines with the culprit and a remedy.
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

# Where training loops put the weights, the first that is there being taken; and their moving average.
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

_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # torch.save's before 1.6: a pickled magic number
_MOST_HEADER = 16 << 20  # of safetensors, which parses 100 MB; a ResNet-50's is 30 KB
_MOST_UNPACKED = 10  # times the file's own size: weights hardly get smaller in a zip
_WRAPPER = re.compile(
    r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)\."
)
# Modules of a ResNet-50 and of our models: no prefix, though all keys of a bottleneck begin alike.
_OWN = {"bottleneck_layer", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
_INSTEAD = "save model.state_dict() alone, with torch.save or as safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit its model."""


class UnreadableCheckpointError(CheckpointError):
    """The file is no safetensors file and none of torch.save, is damaged, or holds more than tensors and plain values."""


class CheckpointTensorError(CheckpointError):
    """A tensor without plain values: sparse, quantized, on no device, or larger than what is stored for it."""


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, prefixes and wrappers taken off, and metadata; a "classes" list in it becomes the metadata's "labels".

    Says on standard error what was taken where there was a choice. Raises OSError, UnreadableCheckpointError,
    CheckpointTensorError.
    """
    path = Path(path)
    if _kind(path) == "safetensors":
        content, metadata = _read_safetensors(path)
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
    """What a safetensors file says of itself, without its tensors; nothing for what torch wrote, or what is no checkpoint."""
    try:
        if _kind(Path(path)) == "safetensors":
            with safe_open(str(path), "pt") as file:
                return file.metadata() or {}
    except (SafetensorError, CheckpointError):
        pass  # reading the tensors says what is wrong
    return {}


def load_plain(path: Path, device: str | torch.device = "cpu") -> Any:
    """What torch.save wrote: tensors, containers and plain values. Raises OSError, UnreadableCheckpointError."""
    kind = _kind(path)
    if kind == "safetensors":
        raise UnreadableCheckpointError(
            f"{path} is a safetensors file, and one of torch.save is wanted here"
        )
    if kind == "zip":
        _check_zip(path)
    try:
        # A Namespace of options is a plain value, too, and many loops save theirs.
        # The open file and not its name, whose suffix torch.load would go by.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            open(path, "rb") as file,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter(
                "ignore"
            )  # of pickle protocols and sparse tensors, which are refused below
            return torch.load(file, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load documents no error classes, and its texts advise to run what is in the file
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnreadableCheckpointError(
                f"{path} holds a {found[1]}, an object that only its own program can load; a checkpoint here is tensors, "
                f"which weights_only loads: in that program, {_INSTEAD}"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = "" if "eights" in reason else f" ({reason[:120]})"
        raise UnreadableCheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, which is what weights_only loads{told}: "
            f"copy it again, or in the program that made it, {_INSTEAD}"
        ) from None


def _kind(path: Path) -> str:
    """'safetensors', 'zip' or 'legacy', by the first bytes. Raises FileNotFoundError, IsADirectoryError, UnreadableCheckpointError."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the checkpoint in it")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableCheckpointError(
            f"{path} is no regular file, and weights are read from several places in it: save it to a file first"
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
                f"{path} has a safetensors header of {length:,} bytes, {_MOST_HEADER:,} are allowed: copy it again"
            )
        return "safetensors"
    raise UnreadableCheckpointError(
        f"{path} is neither a safetensors file nor one of torch.save: {_what_else(head)}"
    )


def _what_else(head: bytes) -> str:
    """What a file is that begins like this and is no checkpoint, and what to do."""
    if not head:
        return "it is empty: copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is git-lfs's pointer to the file: run `git lfs pull`"
    if head[257:262] == b"ustar":
        return f"it is a tar archive: unpack it and name the file in it; if torch before 0.4 wrote it, {_INSTEAD}, with a newer one"
    if head.startswith(b"\x80"):
        return f"it is a pickle of another program: in that, {_INSTEAD}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text and all(byte >= 32 or byte in b"\t\r\n" for byte in text):
        first = text.splitlines()[0][:60].decode("utf-8", "replace")
        page = ", as a page that came instead of the file" if text[:1] in b"<{" else ""
        return f"it is text that begins with {first!r}{page}: download the file itself"
    return f"it begins with {head[:8].hex(' ')}: copy it again"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise UnreadableCheckpointError(
            f"{path} is a damaged safetensors file ({str(error).splitlines()[0]}): copy it again"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse a zip that torch.save did not write, and one that unpacks to much more than its size."""
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
            f"{path} is a zip archive of {held or 'nothing'}: unpack it and name the checkpoint in it"
        )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(64 << 20, _MOST_UNPACKED * path.stat().st_size):
        raise UnreadableCheckpointError(
            f"{path} would unpack to {unpacked:,} bytes, over {_MOST_UNPACKED} times its size: copy it again"
        )


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict that a training loop saved: the content itself, or what lies in one of its containers."""
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
            others = (
                f", not those under {', '.join(map(repr, choices[1:]))}" if len(choices) > 1 else ""
            )
            print(f"{path}: taken are the weights under {taken!r}{others}", file=sys.stderr)
    state = dict(content) if isinstance(content, Mapping) else {}
    if not isinstance(content, Mapping) or (
        state and not any(isinstance(value, Tensor) for value in state.values())
    ):
        held = (
            ", ".join(repr(key)[:40] for key in list(content)[:8])
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise UnreadableCheckpointError(
            f"{path} holds no state_dict, alone or under 'model' or 'state_dict', but {held}: {_INSTEAD}"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            where = f" under {taken!r}" if taken else ""
            raise UnreadableCheckpointError(
                f"{path}{where}: {key!r} is a {type(value).__name__} among tensors: {_INSTEAD}"
            )
    return state


def _check_tensor(key: str, value: Tensor, path: Path) -> None:
    """Refuse what has no plain values, before anything is allocated for it. Raises CheckpointTensorError."""
    if value.is_meta:
        raise CheckpointTensorError(
            f"{path}: {key} is on the device 'meta' and has no values: load the weights before you save them"
        )
    if value.is_quantized or value.layout != torch.strided or value.is_nested:
        how = "quantized" if value.is_quantized else f"of layout {value.layout}"
        raise CheckpointTensorError(
            f"{path}: {key} is {how}, and dense floats are wanted: save it as .dequantize() or .to_dense() gives it"
        )
    stored = value.untyped_storage().nbytes() // max(1, value.element_size())
    if value.numel() > stored:
        raise CheckpointTensorError(
            f"{path}: {key} of {list(value.shape)} claims {value.numel():,} values, and the file stores {stored:,}: "
            "copy the file again, or save it as .contiguous() gives it"
        )


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Keys without wrappers' names anywhere, and without what all of them begin with unless it is a module of ours."""
    # torch's AveragedModel counts its updates beside the module.
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
