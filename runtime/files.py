"""Output files: each appears whole or not at all, and no output takes the place of an input.

A file is written under a temporary name beside its target and then renamed over it. The temporary name stays locked
while its writer lives, so what a killed process left behind can be told from what is being written now.

Always holds: only regular files are replaced. A symbolic link keeps pointing where it did, and its target is replaced;
a device, a pipe or a file descriptor (/dev/null, a FIFO, /dev/stdout, >(command)) is written into. Where writing
fails, the target is as it was and no temporary file is left; one of a process that was killed goes at the next write
into that folder by any process.
"""

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
_DESCRIPTOR = re.compile(r"/proc/(?:self|thread-self|\d+)/fd/(\d+)")
_LINKS = 40  # that are followed, as the kernel does
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
def atomic_path(path: StrPath) -> Iterator[str]:
    """atomic_file for a library that wants a name: that of an empty file, to be written into and left in its place."""
    target = _target(path)
    if target is None:
        # What is not a regular file cannot be replaced: it is given everything at once, or nothing.
        handle, temporary = tempfile.mkstemp(prefix="edgecloud.")
        os.close(handle)
        try:
            yield temporary
            with open(temporary, "rb") as whole, _open_as_it_is(path) as out:
                shutil.copyfileobj(whole, out)
        finally:
            os.unlink(temporary)
        return
    folder, name = os.path.split(target)
    sweep(folder)
    temporary, handle = _make_locked(folder, name)
    try:
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(beside: StrPath) -> Iterator[Path]:
    """An empty folder next to `beside`, to be filled and renamed; what is still there when the block ends is removed."""
    folder, name = os.path.split(os.path.abspath(beside))
    sweep(folder)
    path = Path(folder, f".{name[:40]}.{os.urandom(8).hex()}.partial")
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
    place = os.path.abspath(folder or ".")
    if place in _swept:
        return
    _swept.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_dead(entry)


def refuse_same_file(output: StrPath, inputs: Iterable[StrPath]) -> None:
    """Refuse an output that is one of the inputs, by whatever name. Raises SameOutputError."""
    try:
        there = os.stat(output)
    except OSError:
        return
    # A device or a pipe may be both, as a terminal is.
    if not stat.S_ISREG(there.st_mode):
        return
    for name in inputs:
        with suppress(OSError, ValueError):
            if os.path.samestat(os.stat(name), there):
                same = "" if os.fspath(name) == os.fspath(output) else f", which is {os.fspath(output)}"
                raise SameOutputError(f"the output would replace the input {os.fspath(name)}{same}: name another output")


def check_output(path: StrPath) -> None:
    """Refuse a name that no file can be written under, before work is done for it. Raises OutputError.

    Folders that do not exist yet are no fault: they are made when the file is written.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise OutputError(f"{name} is a folder: name a file in it")
    if name.endswith(os.sep):
        raise OutputError(f"{name} names a folder: name a file in it")
    target = _target(name)
    if target is None:
        if not os.access(name, os.W_OK):
            raise OutputError(f"{name} cannot be written: name another file")
        return
    folder = os.path.dirname(target)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise OutputError(f"{folder} is not a folder, so that {name} cannot be written: name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} cannot be written into: change its permissions, or name another than {name}")


def sync_folder(path: StrPath) -> None:
    """Flush a folder to disk: names that were given or taken in it outlast a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _target(path: StrPath) -> str | None:
    """The file that is to be replaced, symbolic links followed; None for what is written into as it is."""
    name = os.path.abspath(path)
    for _ in range(_LINKS):
        if os.path.realpath(os.path.dirname(name)).startswith("/proc/"):
            return None
        if not os.path.islink(name):
            break
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    else:
        os.stat(path)  # raises ELOOP
    name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return name
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, f"{os.fspath(path)} is a folder: name a file in it")
    return name if stat.S_ISREG(mode) else None


def _open_as_it_is(path: StrPath) -> BinaryIO:
    """What is not a regular file, to be written into. A descriptor of this process is shared, not opened again: that would
    cut off the file behind it."""
    name = os.path.abspath(path)
    for _ in range(_LINKS):
        place = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        if (match := _DESCRIPTOR.fullmatch(place)) and place.startswith((f"/proc/{os.getpid()}/", "/proc/self/")):
            return open(os.dup(int(match[1])), "wb")
        if not os.path.islink(name):
            break
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    return open(os.open(path, os.O_WRONLY), "wb")


def _make_locked(folder: str, name: str) -> tuple[str, int]:
    """A new temporary file for `name`, and the descriptor that holds its lock."""
    while True:
        temporary = os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.partial")
        # Made by open and not by tempfile, so that the kernel applies the umask, which no thread can ask for safely.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is not None:
            # A file system without locks has nothing swept.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        # Another process took it for a dead one's before it was locked.
        os.close(handle)


def _lock_folder(path: Path) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        return handle
    return None


def _remove_if_dead(entry: "os.DirEntry[str]") -> None:
    """Raises BlockingIOError where the writer lives, OSError where that cannot be known."""
    if fcntl is None:
        if entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
        return
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
    finally:
        os.close(handle)
