"""Finds images: the files that Pillow can open, in one folder per class or in any folders.

Used by training, evaluation, export and benchmarks. The edge half has the same rule for what an
image is (runtime/images/find.py), which training may not import.

Always holds: hidden files and those that a system makes for itself are neither classes nor images;
the order is by name, the same on every machine; links are followed, but not in circles.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .command import say

# Names that Synology, macOS, Windows, Linux and Python use for themselves.
_SYSTEM = {
    "@eadir",
    "#recycle",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
_SYSTEM |= {"thumbs.db", "desktop.ini"}
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
# Formats that Pillow does not decode itself.
_NOT_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
_SHOWN = 10


class DataError(ValueError):
    """A folder of images that cannot be used as it is."""


class NoFolderError(DataError):
    """The folder does not exist, or is a file."""


class NoImagesError(DataError):
    """A folder that needs images has none."""


class SplitsError(DataError):
    """The folder holds training and validation images, not classes."""


class DamagedImageError(DataError):
    """An image that cannot be read."""


@dataclass
class ClassFolder:
    """A folder with one folder of images per class.

    Attributes:
        names: the names of the class folders, sorted.
        files: image files in order, each with the index of its folder in `names`.
        passed_over: the number of files that are not images, by suffix.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    files: list[tuple[Path, int]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


class Damage:
    """Keeps account of damaged images: the first is an error, or with `skip` each is counted.

    Attributes:
        option: the option that sets `skip`, for messages.
        files: the damaged images, each with the reason.
    """

    def __init__(self, skip: bool, option: str = "--skip_damaged"):
        self.skip, self.option = skip, option
        self.files: dict[str, str] = {}
        self._new: set[str] = set()

    def note(self, path: str | os.PathLike[str], why: str) -> None:
        """Count the damaged image `path`; raises DamagedImageError unless they are skipped."""
        path = str(path)
        text = why if path in why else f"{path}: {why}"
        if not self.skip:
            raise DamagedImageError(
                f"{text}; remove it, or give {self.option} to leave such images out"
            )
        if path not in self.files and len(self.files) < _SHOWN:
            say(f"left out: {text}", sys.stderr)
        self.files[path] = why
        self._new.add(path)

    def count_lately(self) -> int:
        """How many images were left out since the last call."""
        count = len(self._new)
        self._new.clear()
        return count

    def report(self) -> None:
        """Print how many images were left out, if any."""
        if self.files:
            names = ", ".join(list(self.files)[:_SHOWN]) + (
                ", ..." if len(self.files) > _SHOWN else ""
            )
            were = "image was" if len(self.files) == 1 else "images were"
            say(f"{len(self.files)} damaged {were} left out: {names}", sys.stderr)


def class_folder(root: Path, empty: bool = False) -> ClassFolder:
    """The classes and images of `root`; prints in a line what was passed over.

    Args:
        root: a folder with one folder of images per class, in any depth below it.
        empty: whether a class may have no images.

    Raises NoFolderError, SplitsError, NoImagesError, OSError.
    """
    folders, loose = _entries(root)
    loose = [name for name in loose if _is_image(name)]
    found = ClassFolder(root, folders)
    if not folders:
        beside = f"; its {len(loose)} images are in no class" if loose else ""
        raise NoImagesError(
            f"{root} has no folders{beside}: it must have one folder of images per class"
        )
    refuse_splits(root)
    without = []
    for index, name in enumerate(folders):
        files = list(_images(root / name, found.passed_over))
        found.files += [(file, index) for file in files]
        without += [] if files else [name]
    if not found.files:
        raise NoImagesError(
            f"no image in the folders of {root} ({', '.join(folders[:3])}): "
            f"{_what(found.passed_over)}"
        )
    if without and not empty:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        empties = ", ".join(str(root / name) for name in without[:3])
        raise NoImagesError(f"no image in {empties}{more}: remove the folder, or fill it")
    if without:
        say(f"{root}: no image of {', '.join(without[:_SHOWN])}", sys.stderr)
    if loose:
        images = "image" if len(loose) == 1 else "images"
        say(f"{root}: left out, beside the class folders: {len(loose)} {images}", sys.stderr)
    if found.passed_over:
        say(f"{root}: passed over {_what(found.passed_over)}", sys.stderr)
    return found


def images_below(root: Path) -> list[Path]:
    """All image files in `root` and below, sorted; prints in a line what was passed over.

    Raises NoFolderError, NoImagesError, OSError.
    """
    passed_over: Counter[str] = Counter()
    _entries(root)  # refuses what is no folder
    files = sorted(_images(root, passed_over))
    if not files:
        raise NoImagesError(
            f"no image in {root} ({_what(passed_over)}): name a folder of JPEG or PNG files"
        )
    if passed_over:
        say(f"{root}: passed over {_what(passed_over)}", sys.stderr)
    return files


def refuse_splits(root: Path) -> None:
    """Raise SplitsError if `root` holds training and validation images instead of classes.

    Raises NoFolderError, OSError.
    """
    folders, _ = _entries(root)
    splits = [name for name in folders if name.lower() in _SPLITS]
    if splits and (len(splits) == len(folders) or len(splits) > 1):
        one = next((name for name in splits if name.lower().startswith("train")), splits[0])
        raise SplitsError(
            f"{root} holds {' and '.join(splits)}, not classes: "
            f"name one of them, such as {root / one}"
        )


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that Pillow can open, with a dot, in lower case."""
    from PIL import Image

    found = Image.registered_extensions()
    return frozenset(
        suffix for suffix, kind in found.items() if kind in Image.OPEN and kind not in _NOT_PICTURES
    )


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in suffixes()


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and the files in `folder`, sorted.

    Without hidden ones, those of _SYSTEM, devices and pipes. A broken link counts as a file, which
    then cannot be read. Raises NoFolderError, OSError.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise NoFolderError(f"{folder} {what}: name a folder of images")
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()):
                files.append(entry.name)
    return sorted(folders), sorted(files)


def _images(
    folder: Path, passed_over: Counter[str], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[Path]:
    """Image files of `folder`, then those of its folders; `above` are the folders around it."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:  # a link to a folder that contains it
        return
    folders, files = _entries(folder)
    for name in files:
        if _is_image(name):
            yield folder / name
        else:
            passed_over[Path(name).suffix.lower() or name] += 1
    for name in folders:
        yield from _images(folder / name, passed_over, (*above, (here.st_dev, here.st_ino)))


def _what(passed_over: Counter[str]) -> str:
    """For example '3 files that are not images (.heic 2, .txt 1)'."""
    count = sum(passed_over.values())
    kinds = ", ".join(f"{kind} {number}" for kind, number in passed_over.most_common(5))
    what = "file that is not an image" if count == 1 else "files that are not images"
    return f"{count} {what}" + (f" ({kinds})" if kinds else "")
