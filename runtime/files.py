"""Output files: each appears whole or not at all, and no output takes the place of an input.

A file is written under a temporary name beside its target and then renamed over it. The temporary name stays locked
while its writer lives, so what a killed process left behind can be told from what is being written now.

Always holds: only regular files are replaced. A symbolic link keeps pointing where it did, and its target is replaced;
a device, a pipe or a file descriptor (/dev/null, a FIFO, /dev/stdout, >(command)) is written into. A file that may not
be written is not replaced either. Where writing fails, the target is as it was, no temporary file is left, and the
OSError names the target; what a process that was killed left goes at the next write into that folder by any process.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError, SameOutputError

try:
    import fcntl
except ImportError:  # Windows, which does not let an open file be removed
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
_DESCRIPTOR = re.compile(r"/proc/(\d+)/fd/(\d+)")
_LINKS = 40  # that are followed, as the kernel does
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors that no reading gives
_swept: set[str] = set()  # folders; once in a process, for a scan of a large folder takes a while


@contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """A file to write into, which is flushed to disk and becomes `path` when the block ends.

    Where the block raises, or the disk does (OSError), `path` is as it was and no temporary file is left.
    """
    with atomic_path(path) as temporary, open(temporary, "r+b") as file:
        yield file


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises OSError."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """atomic_file for a library that wants a name: that of an empty file, to be written into and left in its place."""
    with _naming(path):
        target = _target(path)
        # What is not a regular file cannot be replaced: it is given everything at once, or nothing.
        beside = target or Path(tempfile.gettempdir(), "edgecloud")
        sweep(beside.parent)
        temporary, handle = _make_locked(beside, 0o666 if target else 0o600)
    try:
        with _naming(path, temporary):
            if target:
                with suppress(FileNotFoundError):
                    temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            yield temporary
        with _naming(path):
            if target:
                with open(temporary, "r+b") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            else:
                with open(temporary, "rb") as whole, _open_as_it_is(path) as out:
                    shutil.copyfileobj(whole, out)
                temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(beside: StrPath) -> Iterator[Path]:
    """An empty folder next to `beside`, to be filled and renamed; what is still there when the block ends is removed."""
    target = Path(beside).absolute()
    sweep(target.parent)
    path = _temporary_name(target)
    while True:
        path.mkdir()
        handle = _lock_folder(path)
        if path.exists():
            break
        # Another process took it for a dead one's before it was locked.
        if handle is not None:
            os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: StrPath) -> None:
    """Remove temporary files and folders of processes that are gone from `folder`, the first time in this process."""
    place = str(Path(folder).absolute())
    if place in _swept:
        return
    _swept.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_dead(Path(entry.path))


def refuse_same_file(output: StrPath, inputs: Iterable[StrPath]) -> None:
    """Refuse an output that is one of the inputs, by whatever name. Raises SameOutputError."""
    refuse_same_files([output], inputs)


def refuse_same_files(outputs: Iterable[StrPath], inputs: Iterable[StrPath]) -> None:
    """Refuse outputs that are inputs, or each other, by whatever names; "-" is a standard stream. Raises SameOutputError.

    Only regular files count: a device or a pipe may be both, as a terminal is.
    """
    there: dict[tuple[int, int], str] = {}
    places: dict[Path, str] = {}
    folders: dict[Path, Path] = {}
    for output in [os.fspath(name) for name in outputs]:
        # A regular file behind standard output may be added to, and is no less an input for that.
        if (found := _identity(output, 1)) is not None:
            there[found] = output
        with suppress(OSError, ValueError):
            path = Path(output).absolute()
            if path.parent not in folders:
                folders[path.parent] = path.parent.resolve()
            place: Path | None = folders[path.parent] / path.name
            if path.is_symlink():
                place = _target(path)
            if (
                output != "-"
                and place is not None
                and (other := places.setdefault(place, output)) != output
            ):
                raise SameOutputError(
                    f"{other} and {output} are one file: name another for one of the outputs"
                )
    for name in (os.fspath(name) for name in inputs) if there else ():
        if (found := _identity(name, 0)) in there and found is not None:
            what = "on standard input" if name == "-" else name
            same = (
                ""
                if there[found] == name
                else f", which is {'standard output' if there[found] == '-' else there[found]}"
            )
            raise SameOutputError(
                f"the output would replace the input {what}{same}: name another output"
            )


def _identity(name: str, stream: int) -> tuple[int, int] | None:
    """Device and inode of a regular file that is there; of standard stream number `stream` for "-"."""
    with suppress(OSError, ValueError):
        found = os.fstat(stream) if name == "-" else Path(name).stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def check_output(path: StrPath) -> None:
    """Refuse a name that no file can be written under, before work is done for it. Raises OutputError.

    Folders that do not exist yet are no fault: the caller makes them when it writes.
    """
    name = os.fspath(path)
    if not name:
        raise OutputError("the name of the output is empty: name a file")
    try:
        if name.endswith(os.sep) or Path(name).is_dir():
            raise OutputError(f"{name} is a folder: name a file in it")
        target = _target(name)
        if target is None:
            if not os.access(name, os.W_OK) or (
                Path(name).is_socket() and own_descriptor(name) is None
            ):
                raise OutputError(f"{name} cannot be written into: name another file")
            return
        check_folder(target.parent)
    except OSError as error:
        raise OutputError(
            f"{name} cannot be written ({error.strerror}): name another file"
        ) from error


def check_folder(path: StrPath) -> None:
    """Refuse a folder that files cannot be written into, or that cannot be made. Raises OutputError."""
    folder = Path(path).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(
            f"{folder} is not a folder, and files were to be written into it: name another place for them"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {folder} cannot be written into: change its permissions, or name another"
        )


def sync_folder(path: StrPath) -> None:
    """Flush a folder to disk: names that were given or taken in it outlast a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _links(path: StrPath) -> Iterator[Path]:
    """`path` and what it points to, link by link, each in its real folder; the last is no link. Raises OSError for a loop."""
    name = Path(path).absolute()
    for _ in range(_LINKS):
        name = name.parent.resolve() / name.name
        yield name
        if not name.is_symlink():
            return
        name = name.parent / name.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))


def _target(path: StrPath) -> Path | None:
    """The file that is to be replaced, symbolic links followed; None for what is written into as it is."""
    for name in _links(path):
        if name.is_relative_to("/proc"):
            return None
    try:
        mode = name.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return name
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        return None
    # Renaming asks for no permission to write the file, and its owner meant it to stay as it is.
    if not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return name


@contextmanager
def _naming(path: StrPath, temporary: Path | None = None) -> Iterator[None]:
    """An OSError of writing `path` names it, and not its temporary file, or nothing.

    Args:
        temporary: given where the caller's own code runs, whose errors may be of other files.
    """
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in _OF_WRITING
        if error.errno is not None and (
            temporary is None or error.filename == str(temporary) or unnamed
        ):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _open_as_it_is(path: StrPath) -> BinaryIO:
    """What is not a regular file, to be written into. A descriptor of this process is shared, not opened again: that would
    cut off the file behind it."""
    descriptor = own_descriptor(path)
    return open(os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor), "wb")


def own_descriptor(path: StrPath) -> int | None:
    """N of /dev/fd/N and its like, /dev/stdout being 1."""
    with suppress(OSError, ValueError):
        for name in _links(path):
            if (match := _DESCRIPTOR.fullmatch(str(name))) and int(match[1]) == os.getpid():
                return int(match[2])
    return None


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name[:40]}.{os.urandom(8).hex()}.partial")


def _make_locked(target: Path, mode: int) -> tuple[Path, int]:
    """A new temporary file for `target`, and the descriptor that holds its lock."""
    flags = (
        os.O_RDWR
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_CLOEXEC", 0)
        | getattr(os, "O_BINARY", 0)
    )
    while True:
        temporary = _temporary_name(target)
        # Made by open and not by tempfile, so that the kernel applies the umask, which no thread can ask for safely.
        handle = os.open(temporary, flags, mode)
        if fcntl is not None:
            # A file system without locks has nothing swept.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        # Another process took it for a dead one's before it was locked.
        os.close(handle)


def _lock_folder(path: Path) -> int | None:
    """The descriptor that holds the lock of a temporary folder."""
    if fcntl is None:
        return None
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        return handle
    return None


def _remove_if_dead(path: Path) -> None:
    """Raises BlockingIOError where the writer lives, OSError where that cannot be known."""
    if fcntl is None:
        path.unlink()
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(mode):
            path.unlink()
    finally:
        os.close(handle)
