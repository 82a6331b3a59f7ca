"""Which images edge-encode was given, and where each one's feature file goes.

Always holds: no two images have one target, and the order is that of the arguments, sorted within a
folder or a pattern.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .errors import ImageNotFoundError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}


class TargetError(ValueError):
    """Feature files cannot go where they were to go."""


def expand(argument: str) -> Iterator[tuple[str, Path]]:
    """The images that one argument names, each with its name within the output folder.

    A folder stands for all files of an image's suffix in it and below, and keeps its tree; a pattern with * or ? (**
    for any folders) for what it matches, from its first folder without either on; anything else, for itself.
    Raises ImageNotFoundError for a folder or a pattern that has none.
    """
    path = Path(argument)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        root = path
    elif glob.has_magic(argument) and not path.exists():
        found = sorted(Path(name) for name in glob.iglob(argument, recursive=True) if os.path.isfile(name))
        parts = path.parts
        root = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    else:
        yield argument, Path("stdin" if argument == "-" else path.name).with_suffix(".bin")
        return
    if not found:
        raise ImageNotFoundError(f"no image in {argument}: name a folder or a pattern that has some")
    for file in found:
        yield str(file), file.relative_to(root).with_suffix(".bin")


def plan(images: list[str], output: str) -> list[tuple[str, Path | None]]:
    """Each image and where its feature file goes, None being standard output.

    Raises TargetError, ImageNotFoundError.
    """
    found = [pair for argument in images for pair in expand(argument)]
    alone = len(found) == 1 and not Path(images[0]).is_dir()
    if output == "-":
        if not alone:
            raise TargetError("standard output takes one feature file: name a folder with -o for several images")
        return [(found[0][0], None)]
    folder = Path(output)
    if alone and not folder.is_dir() and not output.endswith("/"):
        return [(found[0][0], folder)]
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"-o {output} is a file: name a folder for several images")
    twice = [str(folder / name) for name, count in Counter(name for _, name in found).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise TargetError(f"several images would be written to {', '.join(sorted(twice)[:3])}{more}: encode them to different folders")
    return [(image, folder / name) for image, name in found]
