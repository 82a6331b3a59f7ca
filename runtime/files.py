"""Output files: each appears whole or not at all, and no output replaces an input.

A file is written under a temporary name beside its target and then renamed over it. The writer
holds a lock on its temporary file, so files that a killed process left can be told from files that
are being written.

Always holds: only regular files are replaced. A symbolic link stays, and the file that it points to
is replaced. A device, a pipe or a file descriptor (/dev/null, a FIFO, /dev/stdout, >(command)) is
written into. A file without write permission is not replaced. If writing fails, the target is
unchanged, no temporary file is left, and the OSError names the target. Temporary files of killed
processes are removed by the next process that writes into their folder.
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
_MAX_LINKS = 40  # followed one after the other: the kernel's limit
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # which reading never gives
_swept: set[str] = set()  # folders, each swept once per process: scanning a large one is slow


@contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """Open a file for writing that is flushed to disk and becomes `path` when the block ends.

    If the block or the disk fails (OSError), `path` is unchanged and no temporary file is left.
    """
    with atomic_path(path) as temporary, open(temporary, "r+b") as file:
        yield file


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises OSError."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """As `atomic_file`, for libraries that open a file by name.

    Gives the path of an empty temporary file. The block writes into it, and neither moves nor
    replaces it.
    """
    with _naming(path):
        target = _target(path)
        # A device or a pipe cannot be replaced: all data is collected first, then written into it.
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
                with open(temporary, "rb") as whole, _open_in_place(path) as out:
                    shutil.copyfileobj(whole, out)
                temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(beside: StrPath) -> Iterator[Path]:
    """Make an empty folder next to `beside`, for the block to fill and rename.

    If it was not renamed, it is removed when the block ends. Raises OSError.
    """
    target = Path(beside).absolute()
    sweep(target.parent)
    path = _temporary_name(target)
    while True:
        path.mkdir()
        handle = _lock_folder(path)
        if path.exists():
            break
        # Another process swept it before it was locked.
        if handle is not None:
            os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: StrPath) -> None:
    """Remove temporary files and folders from `folder` whose processes have ended.

    Once per folder and process. Errors are ignored.
    """
    place = str(Path(folder).absolute())
    if place in _swept:
        return
    _swept.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_unlocked(Path(entry.path))


def refuse_same_file(output: StrPath, inputs: Iterable[StrPath]) -> None:
    """Refuse an output that is one of the inputs under any name. Raises SameOutputError."""
    refuse_same_files([output], inputs)


def refuse_same_files(outputs: Iterable[StrPath], inputs: Iterable[StrPath]) -> None:
    """Refuse outputs that are inputs, or each other, under any names; "-" is a standard stream.

    Only regular files count: a terminal, for one, may be both input and output.
    Raises SameOutputError.
    """
    existing: dict[tuple[int, int], str] = {}
    targets: dict[Path, str] = {}
    folders: dict[Path, Path] = {}
    for output in [os.fspath(name) for name in outputs]:
        # Standard output may be a regular file that is also read.
        if (found := _identity(output, 1)) is not None:
            existing[found] = output
        with suppress(OSError, ValueError):
            path = Path(output).absolute()
            if path.parent not in folders:
                folders[path.parent] = path.parent.resolve()
            target: Path | None = folders[path.parent] / path.name
            if path.is_symlink():
                target = _target(path)
            if (
                output != "-"
                and target is not None
                and (other := targets.setdefault(target, output)) != output
            ):
                raise SameOutputError(
                    f"{other} and {output} are one file: name another for one of the outputs"
                )
    for name in (os.fspath(name) for name in inputs) if existing else ():
        if (found := _identity(name, 0)) in existing and found is not None:
            what = "on standard input" if name == "-" else name
            output = existing[found]
            same = f", which is {'standard output' if output == '-' else output}"
            raise SameOutputError(
                f"the output would replace the input {what}{same if output != name else ''}: "
                "name another output"
            )


def _identity(name: str, stream: int) -> tuple[int, int] | None:
    """Device and inode of an existing regular file; "-" is the standard stream of that number."""
    with suppress(OSError, ValueError):
        found = os.fstat(stream) if name == "-" else Path(name).stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def check_output(path: StrPath) -> None:
    """Refuse a name that no file can be written under, before any work is done for it.

    Folders may be missing: the caller makes them when it writes. Raises OutputError.
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
    """Refuse a folder that cannot be made or written into. Raises OutputError."""
    folder = Path(path).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(
            f"{folder} is not a folder, so no files can be written into it: name another folder"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {folder} cannot be written into: change its permissions, or name another"
        )


def sync_folder(path: StrPath) -> None:
    """Flush a folder to disk, so that renames in it survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _links(path: StrPath) -> Iterator[Path]:
    """`path` and what it points to, link by link, each in its real folder; the last is no link.

    Raises OSError for a loop.
    """
    name = Path(path).absolute()
    for _ in range(_MAX_LINKS):
        name = name.parent.resolve() / name.name
        yield name
        if not name.is_symlink():
            return
        name = name.parent / name.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))


def _target(path: StrPath) -> Path | None:
    """The file to be replaced, symbolic links followed; None for a device, pipe or descriptor."""
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
    # A rename would need no write permission for the file, but its owner has taken that away.
    if not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return name


@contextmanager
def _naming(path: StrPath, temporary: Path | None = None) -> Iterator[None]:
    """Make OSErrors of writing name `path`, and not its temporary file or no file.

    Args:
        temporary: its path while the caller's code runs: errors that name other files stay.
    """
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in _WRITE_ERRORS
        if error.errno is not None and (
            temporary is None or error.filename == str(temporary) or unnamed
        ):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _open_in_place(path: StrPath) -> BinaryIO:
    """Open a device, pipe or descriptor for writing.

    A descriptor of this process is duplicated: opening it again would truncate the file behind it.
    """
    descriptor = own_descriptor(path)
    return open(os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor), "wb")


def own_descriptor(path: StrPath) -> int | None:
    """The number N for /dev/fd/N and other names of this process's descriptors, else None.

    /dev/stdout is 1.
    """
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
        # os.open applies the umask. tempfile does not, and reading the umask is not thread-safe.
        handle = os.open(temporary, flags, mode)
        if fcntl is not None:
            # On a file system without locks nothing is ever swept.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        # Another process swept it before it was locked.
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


def _remove_if_unlocked(path: Path) -> None:
    """Raises BlockingIOError if the writer still runs, OSError if that cannot be told."""
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
