"""The labels of a model's classes: where to find them, and which folder of images is which class.

Always holds: where labels are known, folders are matched with them by name, in any order and for
all classes or some. Folders are matched by order only if there are as many as classes and no
name contradicts it.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

_WORDNET_ID = re.compile(r"n\d{8}")  # a class of ImageNet
# Those of Imagenette's folders, and the labels of these classes: known without timm.
_IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class LabelsError(ValueError):
    """A file of labels cannot be read, or has another number of labels."""


class ClassesError(ValueError):
    """The folders of images do not fit the model's classes."""


class Match(NamedTuple):
    """The class of each folder, in the folders' order.

    `note` says how folders were matched, "" if by name.
    """

    classes: list[int]
    note: str


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not empty, without a byte order mark.

    Raises LabelsError, OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise LabelsError(f"{path} is not UTF-8 text: save it as UTF-8")
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_labels(path: Path, classes: int, of: str) -> list[str]:
    """The labels in a file, one per line, as many as `of` has classes.

    Raises LabelsError, OSError.
    """
    labels = read_lines(path)
    if len(labels) != classes:
        raise LabelsError(
            f"{path} has {len(labels)} labels, {of} {classes} classes: give one label per line"
        )
    return labels


def stored_labels(metadata: dict[str, str], classes: int) -> list[str] | None:
    """The labels in a checkpoint's metadata; None if there are none for this number of classes.

    A checkpoint of 1000 classes without labels has ImageNet's.
    """
    try:
        labels = json.loads(metadata.get("labels", "null"))
    except ValueError:
        labels = None
    if isinstance(labels, list) and len(labels) == classes:
        return [" ".join(str(label).split()) for label in labels]
    if classes == 1000:
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return None


def match(names: Sequence[str], labels: Sequence[str] | int, where: str, of: str) -> Match:
    """Which class each folder stands for.

    Args:
        names: the names of the folders.
        labels: the model's labels, or the number of its classes where they are not known.
        where: the folder that the folders are in, for messages.
        of: the model, for messages.

    Raises ClassesError.
    """
    count = labels if isinstance(labels, int) else len(labels)
    known: list[str] = [] if isinstance(labels, int) else [_key(label) for label in labels]
    found = [known.index(key) if known.count(key) == 1 else None for key in map(_key, names)]
    if any(map(_WORDNET_ID.fullmatch, names)) and labels == list(_imagenet().values()):
        # By place, since ImageNet has the labels cardigan and Cardigan.
        places = {name: place for place, name in enumerate(_imagenet())}
        found = [places.get(name, index) for name, index in zip(names, found, strict=True)]
    by_name = [index for index in found if index is not None]
    if len(by_name) == len(names) == len(set(by_name)):
        return Match(by_name, "")
    in_order = len(names) == count and all(
        index in (None, place) for place, index in enumerate(found)
    )
    if in_order and len(by_name) == len(set(by_name)):
        return Match(
            list(range(count)),
            f"the folders of {where} stand for the classes of {of} in order, "
            "because their names are not its labels",
        )
    strangers = [name for name, index in zip(names, found, strict=True) if index is None]
    if not known:
        why = "they must be as many"
    elif strangers:
        why = f"{_some(strangers)} {'is' if len(strangers) == 1 else 'are'} none of them"
    else:
        why = "their order differs"
    expected = f" ({_some(list(labels))})" if not isinstance(labels, int) else ""
    raise ClassesError(
        f"{where} has {len(names)} folders of images and {of} {count} classes{expected}; {why}: "
        "name each folder as its label, or name another folder"
    )


def _key(name: str) -> str:
    """The same text for all spellings of a label."""
    if _WORDNET_ID.fullmatch(name):
        name = _IMAGENETTE.get(name) or _imagenet().get(name, name)
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


@cache
def _imagenet() -> dict[str, str]:
    """The labels of ImageNet's 1000 classes by their WordNet ids; empty without timm."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return {}
    from torchvision.models import ResNet50_Weights

    ids = ImageNetInfo("imagenet-1k").label_names()
    return dict(zip(ids, ResNet50_Weights.IMAGENET1K_V1.meta["categories"], strict=True))


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
