"""Which images a command's arguments name, and the output of each.

An image's output is a feature file of its own, or a row of a pack (a Parquet file of many).

Always holds: no two images have the same output file or key. Images come in the order of the
arguments, sorted within a folder or pattern. Folders and patterns follow the same rules, and files
that they skip are counted. A folder that cannot be read is an error, not an empty folder.
"""

import fnmatch
import importlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..errors import ImageNotFoundError

Found = tuple[str, str]  # an image's path, and its name: the path below the argument, with slashes
Job = tuple[str, str]  # an image's path, and its output file or key
_OPENED_AS_JPEG = {"MPO"}  # formats that Pillow's JPEG plugin opens
_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFLNK: "broken link",
}
_MAX_KINDS = 5  # named one by one in a message
_MAX_SUFFIX = 10  # characters; a longer one is taken for a part of the name


class TargetError(ValueError):
    """The feature files cannot be written where the arguments say."""


def find(arguments: list[str], passed_over: Counter[str] | None = None) -> list[Found]:
    """The images that the arguments name.

    A folder stands for all images in it and below. A pattern with *, ? or [] (** for any folders)
    stands for the images that it matches; their names begin at the pattern's first such part.
    Anything else stands for itself, and its name is the file's.

    In folders and patterns, an image is a regular file with a suffix of a format that Pillow opens,
    or with the suffix that the pattern spells out. Hidden files are left out, unless that part of
    the pattern begins with a dot. Folders and ** do not follow links to folders.

    Args:
        passed_over: counts files that are no images, by suffix or kind.

    Raises ImageNotFoundError for a folder or pattern without images, and OSError.
    """
    counts: Counter[str] = Counter() if passed_over is None else passed_over
    return [found for argument in arguments for found in _expand(argument, counts)]


def describe(passed_over: Counter[str]) -> str:
    """One line for a person about the files that `find` passed over."""
    kinds = [f"{kind} {count:,}" for kind, count in passed_over.most_common(_MAX_KINDS)]
    if len(passed_over) > _MAX_KINDS:
        others = sum(count for _, count in passed_over.most_common()[_MAX_KINDS:])
        kinds.append(f"others {others:,}")
    remedy = (
        "; convert .heic and .heif to JPEG, or install pillow-heif"
        if {".heic", ".heif"} & set(passed_over)
        else ""
    )
    number = passed_over.total()
    what = "is no image file" if number == 1 else "are no image files"
    return f"passed over {number:,} that {what} ({', '.join(kinds)}){remedy}"


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, such as ".jpg", of the picture formats that Pillow opens here.

    Not of formats that it only identifies or writes, nor of films and drawing programs (EPS).
    """
    from PIL import Image, ImageFile

    with suppress(ImportError):  # HEIC, if its decoder is installed
        importlib.import_module("pillow_heif").register_heif_opener()

    def is_picture(kind: str) -> bool:
        factory = Image.OPEN.get(kind, (None, None))[0]
        opens = factory is not None or kind in _OPENED_AS_JPEG
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        return opens and not stub and Image.MIME.get(kind, "image/").startswith("image/")

    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if is_picture(kind)
    )


def _expand(argument: str, passed_over: Counter[str]) -> Iterable[Found]:
    path = Path(argument)
    magic = [index for index, part in enumerate(path.parts) if _is_magic(part)]
    parts: tuple[str, ...]
    # os.path, because Path raises for impossible names and in folders that may not be read.
    if argument and os.path.isdir(path):  # noqa: PTH112
        root, parts = path, ("**", "*")
    elif magic and not os.path.exists(path):  # noqa: PTH110
        root, parts = Path(*path.parts[: magic[0]]), path.parts[magic[0] :]
    else:
        if path.suffix.lower() in (".heic", ".heif"):
            image_suffixes()  # registers the HEIC decoder
        return [(argument, "stdin" if argument == "-" else path.name)]
    if parts[-1] == "**":
        parts = (*parts, "*")
    spelt_out = Path(parts[-1]).suffix.lower()
    suffixes = (
        image_suffixes() | {spelt_out}
        if spelt_out and not _is_magic(spelt_out)
        else image_suffixes()
    )
    # A dictionary, because ** may reach a file in two ways.
    kinds = {str(Path(entry.path)): _kind(entry, suffixes) for entry in _matches(root, parts)}
    others = Counter(kind for kind in kinds.values() if kind)
    passed_over.update(others)
    images = sorted(file for file, kind in kinds.items() if not kind)
    if not images:
        but = f", {describe(others)}" if others else ""
        raise ImageNotFoundError(
            f"no image in {argument}{but}: name a folder or a pattern that has some"
        )
    return [(file, Path(file).relative_to(root).as_posix()) for file in images]


def _is_magic(part: str) -> bool:
    return not set("*?[").isdisjoint(part)


def _matches(root: Path, pattern: tuple[str, ...]) -> Iterator["os.DirEntry[str]"]:
    """Everything but folders that a pattern below `root` matches.

    ** does not follow links to folders, but gives the links; other parts follow them.
    """
    # A pattern in a folder that does not exist matches nothing.
    todo = [(root, pattern)] if root.is_dir() else []
    while todo:
        folder, (part, *others) = todo.pop()
        rest = tuple(others)
        if part == "**":
            todo.append((folder, rest))
        elif rest and not _is_magic(part):
            if (folder / part).is_dir():
                todo.append((folder / part, rest))
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not part.startswith("."):
                    continue
                if part == "**":
                    if entry.is_dir(follow_symlinks=False):
                        todo.append((folder / entry.name, (part, *rest)))
                    elif _is_folder(entry):
                        yield entry
                elif fnmatch.fnmatch(entry.name, part) if _is_magic(part) else entry.name == part:
                    if not rest and not entry.is_dir(follow_symlinks=False):
                        yield entry
                    elif rest and _is_folder(entry):
                        todo.append((folder / entry.name, rest))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder or a link to one."""
    with suppress(OSError):  # a link in a loop
        return entry.is_dir()
    return False


def _kind(entry: "os.DirEntry[str]", suffixes: Iterable[str]) -> str:
    """The suffix or kind of an entry that is no image; "" for an image."""
    with suppress(OSError):
        if entry.is_file():
            suffix = Path(entry.name).suffix.lower()
            if suffix in suffixes:
                return ""
            return suffix if 1 < len(suffix) <= _MAX_SUFFIX else "no suffix"
    if _is_folder(entry):
        return "linked folder"
    return _KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "other")


def to_files(arguments: list[str], found: list[Found], output: str) -> list[Job]:
    """Each image and its feature file for `-o output`; "-" is standard output.

    Raises TargetError.
    """
    alone = [image for image, _ in found] == arguments and len(found) == 1
    if output == "-":
        if not alone:
            raise TargetError(
                "standard output takes one feature file: name a folder with -o for several images"
            )
        return [(found[0][0], "-")]
    folder = Path(output)
    if alone and not folder.is_dir() and not output.endswith("/"):
        return [(found[0][0], output)]
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"-o {output} is a file: name a folder for several images")
    jobs = [
        (image, str(folder / f"{name.removesuffix(Path(name).suffix)}.bin"))
        for image, name in found
    ]
    _refuse_repeated(
        (target for _, target in jobs), "be written to", "encode them to different folders"
    )
    return jobs


def to_rows(found: list[Found]) -> list[Job]:
    """Each image and its key in a pack, which is its name. Raises TargetError."""
    _refuse_repeated(
        (name for _, name in found),
        "have the key",
        "pack them one by one, or from a folder above both",
    )
    return [(image, printable(name)) for image, name in found]


def printable(name: str) -> str:
    """A file name with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _refuse_repeated(names: Iterable[str], what: str, remedy: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise TargetError(f"several images would {what} {', '.join(twice[:3])}{more}: {remedy}")
