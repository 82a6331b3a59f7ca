"""What a folder of images holds: files that Pillow can open, in one folder a class or in any folders.

Used by training, evaluation, export and benchmarks alike. The edge half has the same rule of what an image is
(runtime/images/find.py); training may not import it.

Always holds: what is hidden, or made by a system for itself, is no class and no image; the order is by name, the same
on every machine; links are followed, but not in circles.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .command import say

# What Synology, macOS, Windows, Linux and Python make for themselves.
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
# Pillow only knows the name of these, or hands them to a program.
_NOT_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
_SHOWN = 10


class DataError(ValueError):
    """A folder of images that cannot be used as it is."""


class NoFolderError(DataError):
    """There is no such folder, or a file in its place."""


class NoImagesError(DataError):
    """There is no image where some must be."""


class SplitsError(DataError):
    """The folder holds training and validation images, not classes."""


class DamagedImageError(DataError):
    """An image that cannot be read."""


@dataclass
class ClassFolder:
    """One folder of images a class.

    Attributes:
        names: of the class folders, sorted.
        files: image files, each with the place of its folder in `names`, in order.
        passed_over: how many files were no images, by suffix.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    files: list[tuple[Path, int]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


class Damage:
    """Images that cannot be read: the first is refused, or with `skip` each is named and counted."""

    def __init__(self, skip: bool, option: str = "--skip_damaged"):
        self.skip, self.option = skip, option
        self.files: dict[str, str] = {}
        self.lately: set[str] = set()

    def note(self, path: str | os.PathLike[str], why: str) -> None:
        """Raises DamagedImageError unless such images are to be left out."""
        path = str(path)
        text = why if path in why else f"{path}: {why}"
        if not self.skip:
            raise DamagedImageError(
                f"{text}; remove it, or give {self.option} to leave such images out"
            )
        if path not in self.files and len(self.files) < _SHOWN:
            say(f"left out: {text}", sys.stderr)
        self.files[path] = why
        self.lately.add(path)

    def count_lately(self) -> int:
        """How many images were left out since this was asked last."""
        count = len(self.lately)
        self.lately.clear()
        return count

    def report(self) -> None:
        """How many images were left out, if any."""
        if self.files:
            names = ", ".join(list(self.files)[:_SHOWN]) + (
                ", ..." if len(self.files) > _SHOWN else ""
            )
            were = "image was" if len(self.files) == 1 else "images were"
            say(f"{len(self.files)} damaged {were} left out: {names}", sys.stderr)


def class_folder(root: Path, empty: bool = False) -> ClassFolder:
    """The classes and images of `root`; says in a line what was passed over.

    Args:
        empty: whether a class may be without images.

    Raises NoFolderError, SplitsError, NoImagesError, OSError.
    """
    folders, loose = _entries(root)
    loose = [name for name in loose if _is_image(name)]
    found = ClassFolder(root, folders)
    if not folders:
        beside = f"; its {len(loose)} images are in no class" if loose else ""
        raise NoImagesError(
            f"{root} has no folders{beside}: it must have one folder of images a class"
        )
    refuse_splits(root)
    without = []
    for index, name in enumerate(folders):
        files = list(_images(root / name, found.passed_over))
        found.files += [(file, index) for file in files]
        without += [] if files else [name]
    if not found.files:
        raise NoImagesError(
            f"no image in the folders of {root} ({', '.join(folders[:3])}): {_what(found.passed_over)}"
        )
    if without and not empty:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise NoImagesError(
            f"no image in {', '.join(str(root / name) for name in without[:3])}{more}: remove the folder, or fill it"
        )
    if without:
        say(f"{root}: no image of {', '.join(without[:_SHOWN])}", sys.stderr)
    if loose:
        say(
            f"{root}: left out, beside the class folders: {len(loose)} {'image' if len(loose) == 1 else 'images'}",
            sys.stderr,
        )
    if found.passed_over:
        say(f"{root}: passed over {_what(found.passed_over)}", sys.stderr)
    return found


def images_below(root: Path) -> list[Path]:
    """All image files in `root` and below, sorted; says in a line what was passed over. Raises NoFolderError, NoImagesError, OSError."""
    passed_over: Counter[str] = Counter()
    files = sorted(_images(root, passed_over))
    if not files:
        raise NoImagesError(
            f"no image in {root} ({_what(passed_over)}): name a folder of JPEG or PNG files"
        )
    if passed_over:
        say(f"{root}: passed over {_what(passed_over)}", sys.stderr)
    return files


def refuse_splits(root: Path) -> None:
    """Raises SplitsError where `root` holds training and validation images; NoFolderError, OSError."""
    folders, _ = _entries(root)
    splits = [name for name in folders if name.lower() in _SPLITS]
    if splits and (len(splits) == len(folders) or len(splits) > 1):
        one = next((name for name in splits if name.lower().startswith("train")), splits[0])
        raise SplitsError(
            f"{root} holds {' and '.join(splits)}, not classes: name one of them, such as {root / one}"
        )


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow can open, with a dot, in small letters."""
    from PIL import Image

    found = Image.registered_extensions()
    return frozenset(
        suffix for suffix, kind in found.items() if kind in Image.OPEN and kind not in _NOT_PICTURES
    )


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in suffixes()


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The folders and files in `folder`, sorted: nothing hidden, no system's own, no devices and pipes.

    A link to nothing counts as a file, which then cannot be read. Raises NoFolderError, OSError.
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
    """Image files of `folder`, then those of its folders."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:  # a link to a folder that it lies in
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
    """ "3 files that are no images (.heic 2, .txt 1)"."""
    count = sum(passed_over.values())
    kinds = ", ".join(f"{kind} {number}" for kind, number in passed_over.most_common(5))
    return f"{count} {'file that is no image' if count == 1 else 'files that are no images'}" + (
        f" ({kinds})" if kinds else ""
    )
