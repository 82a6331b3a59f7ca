"""What a checkpoint is said to be: by itself, by the path it lies at, and by the command that names it.

Our own files carry "model", "lmb" and "labels" in their metadata, and lie at checkpoints/MODEL/lmbL.safetensors.
Published files say nothing. ours_n0 and ours_n0_enc have weights of the same names and shapes, so that nothing
else tells them apart.

Always holds: all that is said agrees; where nothing is said, the command's word counts.
"""

import json
import math
import re
from pathlib import Path

MODEL_NAMES = (
    "ours_n0",
    "ours_n4",
    "ours_n8",
    "ours_n0_enc",
    "ours_n4_enc",
    "ours_n8_enc",
    "matsubara2022wacv",
)
DEFAULT_LMB = "1.28"


class ContradictionError(ValueError):
    """A checkpoint is not what the command, its path or its own metadata say that it is."""


def agreed_lmb(path: Path, model: str, lmb: str | None, metadata: dict[str, str]) -> str:
    """The lmb of the checkpoint at `path`, which is to be exported as `model`.

    Args:
        lmb: as the command has it; None if it says nothing.
        metadata: the file's own.

    Gives the command's word, else the file's, else its name's, else the default. Raises ContradictionError.
    """
    folder = path.absolute().parent
    placed = (
        folder.name if folder.parent.name == "checkpoints" and folder.name in MODEL_NAMES else None
    )
    _agree(
        path,
        {"the command": model, "its metadata": metadata.get("model"), "its folder": placed},
        "model",
        "export it as the model that it was trained as, or name another file",
    )
    written, named = (
        metadata.get("lmb"),
        path.stem.removeprefix("lmb") if re.match(r"lmb\d", path.stem) else None,
    )
    if written is not None and not is_lmb(written):
        raise ContradictionError(
            f"the lmb in the metadata of {path} is {written[:40]!r}, no number from 0 up: train or download it again"
        )
    named = named if named and is_lmb(named) else None
    _agree(
        path,
        {"the command": lmb, "its metadata": written, "its name": named},
        "lmb",
        "leave out --lmb, or rename the file",
    )
    return lmb or written or named or DEFAULT_LMB


def is_lmb(text: str) -> bool:
    """Whether it is a finite number from 0 up."""
    try:
        return math.isfinite(float(text)) and float(text) >= 0
    except ValueError:
        return False


def _agree(path: Path, words: dict[str, str | None], what: str, remedy: str) -> None:
    said = {who: word for who, word in words.items() if word is not None}
    if len({float(word) if what == "lmb" else word for word in said.values()}) > 1:
        disagree = ", ".join(f"{word[:40]} by {who}" for who, word in said.items())
        raise ContradictionError(f"{path} is of {what} {disagree}: {remedy}")


def own_labels(metadata: dict[str, str], classes: int) -> list[str] | None:
    """The labels that a checkpoint brings; None where it says nothing. Raises ContradictionError."""
    if "labels" not in metadata:
        return None
    try:
        stored = json.loads(metadata["labels"])
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, list):
        raise ContradictionError(
            "the labels in the checkpoint's metadata are no JSON list: name the right ones with --labels FILE"
        )
    if len(stored) != classes:
        raise ContradictionError(
            f"the checkpoint has {len(stored)} labels for {classes} classes: name the right ones with --labels FILE"
        )
    return [" ".join(str(label).split()) for label in stored]
