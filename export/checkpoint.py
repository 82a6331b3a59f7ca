"""Which checkpoint is exported: where it lies, and what the command, its path and its metadata say.

Our own files have "model", "lmb" and "labels" in their metadata, and lie at
checkpoints/MODEL/lmbL.safetensors. Published files have no metadata. The weights of ours_n0 and
ours_n0_enc have the same names and shapes, so that nothing else tells the two apart.

Always holds: all statements about a checkpoint agree, or it is refused; where only the command
says something, that is taken. Nothing heavy is imported here.
"""

import argparse
import contextlib
import json
import math
import re
from pathlib import Path

from training.rates import LmbRange, lmb_text, parse_lmb
from training.registry import REGISTRY, Entry

_PROJECT = Path(__file__).resolve().parent.parent


def default_lmb(model: str) -> str:
    """The rate weight that is meant unless something says another; where rates vary, a range."""
    entry = REGISTRY.get(model, Entry(""))
    return str(LmbRange()) if entry.variable_rate else entry.lmb


class NoCheckpointError(FileNotFoundError):
    """There is no checkpoint where export looks for one."""


class ContradictionError(ValueError):
    """The command, the path and the metadata of a checkpoint do not agree."""


def _training(model: str, lmb: str) -> str:
    """The command that trains a registered model."""
    if REGISTRY[model].backbone == "resnet50":
        options = f"--model {model} --model_args bpp_lmb={lmb} --data DIR --backbone FILE"
        return f"python -m training.train {options}"
    return f"python -m training.distil --model {model} --lmb {lmb} --data DIR"


def find_checkpoint(model: str, lmb: str) -> Path:
    """`checkpoints/MODEL/lmbL.safetensors` or `.pt`, in the current folder, else in the project's.

    Raises NoCheckpointError.
    """
    names = [
        f"lmb{text}{suffix}"
        for text in dict.fromkeys((lmb, lmb_text(parse_lmb(lmb))))
        for suffix in (".safetensors", ".pt")
    ]
    for root in (Path(), _PROJECT):
        for name in names:
            if (root / "checkpoints" / model / name).is_file():
                return root / "checkpoints" / model / name
    raise NoCheckpointError(
        f"no checkpoint of {model} at lmb {lmb}.\n"
        f"  Looked for checkpoints/{model}/{names[0]} and .pt here and in {_PROJECT}.\n"
        "  Published ImageNet checkpoints are linked from the paper's repository"
        " (arXiv 2211.09897), listed in\n"
        f"  checkpoints/README.md: save one as checkpoints/{model}/lmb{lmb}.pt, or name it with"
        " --checkpoint FILE.\n"
        f"  To train your own: {_training(model, lmb)}"
    )


def agreed_lmb(path: Path, model: str, lmb: str | None, metadata: dict[str, str]) -> str:
    """The rate weight of the checkpoint at `path`, which is to be exported as `model`.

    It is what the command says, else the metadata, else the file's name, else the default.

    Args:
        lmb: what the command says; None if it says nothing.
        metadata: that of the file.

    Raises ContradictionError where they do not agree on the rate weight or the model.
    """
    folder = path.absolute().parent
    placed = (
        folder.name if folder.parent.name == "checkpoints" and folder.name in REGISTRY else None
    )
    _require_agreement(
        path,
        {"the command": model, "its metadata": metadata.get("model"), "its folder": placed},
        "model",
        "export it as the model that it was trained as, or name another file",
    )
    written = metadata.get("lmb")
    if written is not None and not is_lmb(written):
        raise ContradictionError(
            f"the lmb in the metadata of {path} is {written[:40]!r}, no number from 0 up "
            "and no range: train or download it again"
        )
    named = path.stem.removeprefix("lmb") if re.match(r"lmb\d", path.stem) else None
    named = named if named and is_lmb(named) else None
    _require_agreement(
        path,
        {"the command": lmb, "its metadata": written, "its name": named},
        "lmb",
        "leave out --lmb, or rename the file",
    )
    return lmb or written or named or default_lmb(model)


def is_lmb(text: str) -> bool:
    """Whether it is a finite number from 0 up, or a range of them."""
    return _value(text) is not None


def _value(text: str) -> float | LmbRange | None:
    """What a rate weight's text says; None for another text."""
    with contextlib.suppress(ValueError):
        return float(text) if math.isfinite(float(text)) and float(text) >= 0 else None
    with contextlib.suppress(argparse.ArgumentTypeError):
        return parse_lmb(text)
    return None


def _require_agreement(
    path: Path, statements: dict[str, str | None], what: str, remedy: str
) -> None:
    """Raises ContradictionError unless all statements that are not None are the same."""
    made = {source: value for source, value in statements.items() if value is not None}
    if len({_value(value) if what == "lmb" else value for value in made.values()}) > 1:
        disagreement = ", ".join(f"{value[:40]} by {source}" for source, value in made.items())
        raise ContradictionError(f"{path} is of {what} {disagreement}: {remedy}")


def own_labels(metadata: dict[str, str], classes: int) -> list[str] | None:
    """The labels in a checkpoint's metadata, None where it has none. Raises ContradictionError."""
    if "labels" not in metadata:
        return None
    try:
        stored = json.loads(metadata["labels"])
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, list):
        raise ContradictionError(
            "the labels in the checkpoint's metadata are no JSON list: "
            "name the right ones with --labels FILE"
        )
    if len(stored) != classes:
        raise ContradictionError(
            f"the checkpoint has {len(stored)} labels for {classes} classes: "
            "name the right ones with --labels FILE"
        )
    return [" ".join(str(label).split()) for label in stored]
