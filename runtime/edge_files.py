"""Which images edge-encode was given, and what becomes of each: a feature file of its own, or a row of a pack.

Always holds: no two images have one target, or one key; the order is that of the arguments, sorted within a
folder or a pattern; a folder that cannot be read is an error, not a folder without images.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import ImageNotFoundError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")

Found = tuple[str, str]  # an image, and its name: the path below the folder that was given, with slashes
Job = tuple[str, str]  # an image, and its target or key


class TargetError(ValueError):
    """Feature files cannot go where they were to go."""


def find(arguments: list[str]) -> list[Found]:
    """The images that the arguments name.

    A folder stands for all files in it and below that have an image's suffix; a pattern with *, ? or [] (** for any
    folders) for the files that it matches, which keep their tree from its first such part on; both without hidden files;
    anything else stands for itself. Raises ImageNotFoundError for a folder or a pattern without images, and OSError.
    """
    return [found for argument in arguments for found in _expand(argument)]


def _expand(argument: str) -> Iterable[Found]:
    path = Path(argument)
    magic = [index for index, part in enumerate(path.parts) if set(part) & set("*?[")]
    if argument and path.is_dir():
        root, files = path, _walk(path)
    elif magic and not path.exists():
        root = Path(*path.parts[: magic[0]])
        files = (str(file) for file in root.glob(str(Path(*path.parts[magic[0] :]))) if file.is_file() and not file.name.startswith("."))
    else:
        return [(argument, "stdin" if argument == "-" else path.name)]
    found = sorted((file, Path(file).relative_to(root).as_posix()) for file in files)
    if not found:
        raise ImageNotFoundError(f"no image in {argument}: name a folder or a pattern that has some")
    return found


def _walk(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield str(Path(place, name))


def to_files(arguments: list[str], found: list[Found], output: str) -> list[Job]:
    """Each image and its feature file, "-" being standard output. Raises TargetError."""
    alone = [image for image, _ in found] == arguments and len(found) == 1
    if output == "-":
        if not alone:
            raise TargetError("standard output takes one feature file: name a folder with -o for several images")
        return [(found[0][0], "-")]
    folder = Path(output)
    if alone and not folder.is_dir() and not output.endswith("/"):
        return [(found[0][0], output)]
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"-o {output} is a file: name a folder for several images")
    jobs = [(image, str(folder / f"{name.removesuffix(Path(name).suffix)}.bin")) for image, name in found]
    _refuse_repeated((target for _, target in jobs), "be written to", "encode them to different folders")
    return jobs


def to_rows(found: list[Found]) -> list[Job]:
    """Each image and its key in a pack: its name. Raises TargetError."""
    _refuse_repeated((name for _, name in found), "have the key", "pack them one by one, or from a folder above both")
    return [(image, printable(name)) for image, name in found]


def printable(name: str) -> str:
    """A file name that is not UTF-8, with escapes for what is not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _refuse_repeated(names: Iterable[str], what: str, remedy: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise TargetError(f"several images would {what} {', '.join(twice[:3])}{more}: {remedy}")
