"""Output files of training: each appears whole or not at all, and none replaces an input.

A small second copy of runtime/files.py, because training may not import runtime (docs/design.md).
Both use the same temporary names, `.NAME.HEX16.partial`, so each removes what a killed process of
the other left behind.

Always holds: a temporary file is locked while its writer lives, and the next write into its folder
removes it if its writer is gone. Only regular files are replaced; a symbolic link keeps its target,
and a device or a pipe is written into. A failed write raises WriteError, whatever class the library
raised: it names the file, the system's reason and a remedy.
"""

import errno
import io
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which does not let an open file be removed
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial")


class OutputError(ValueError):
    """An output that cannot be written to the path given."""


class SameOutputError(OutputError):
    """An output that is one of the inputs."""


class WriteError(OSError):
    """A file cannot be written: the disk is full, a limit is reached, or permission is missing."""


@contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """A file to write into, which becomes `path` when the block ends, flushed to disk.

    Missing folders are made. If the block raises, `path` stays as it was; an OSError in it counts
    as a failed write, so the block should only write. Raises WriteError.
    """
    try:
        with _written(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # torch.save raises its own RuntimeError while it handles the file's OSError.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise WriteError(
            f"{os.fspath(path)} cannot be written: {cause.strerror or cause}. "
            "Free space or mend permissions there, or name another place"
        ) from error


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises WriteError."""
    with atomic_file(path) as file:
        file.write(data)


def check_output(path: StrPath, inputs: Iterable[StrPath] = ()) -> None:
    """Refuse a path that cannot be written or is one of the inputs, before work is done.

    Folders may be missing: they are made when the file is written. Raises OutputError,
    SameOutputError.
    """
    name = os.fspath(path)
    if name.endswith(os.sep) or Path(name).is_dir():
        raise OutputError(f"{name} is a folder: name a file in it")
    refuse_same_file(name, inputs)
    try:
        target = _target(name)
        if target is not None:
            check_output_folder(target.parent)
    except OSError as error:
        raise OutputError(
            f"{name} cannot be written ({error.strerror}): name another file"
        ) from error


def check_output_folder(path: StrPath) -> None:
    """Refuse a folder that cannot be made or written into. Raises OutputError."""
    folder = Path(path).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(
            f"{folder} is not a folder, so nothing can be written to {os.fspath(path)}: "
            "name another place"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {folder} cannot be written into: "
            "change its permissions, or name another place"
        )


def check_space(folder: StrPath, needed: int) -> None:
    """Refuse a folder whose disk has fewer than `needed` bytes free. Raises OutputError."""
    there = Path(folder).absolute()
    while not there.is_dir():
        there = there.parent
    with suppress(OSError):
        free = shutil.disk_usage(there).free
        if free < needed:
            raise OutputError(
                f"{os.fspath(folder)} has {free:,} bytes free, and at least {needed:,} are needed: "
                "free some, or name another place"
            )


def refuse_same_file(output: StrPath, inputs: Iterable[StrPath]) -> None:
    """Refuse an output that is one of the inputs, also by another name. Raises SameOutputError."""
    for name in inputs:
        same = False
        with suppress(OSError, ValueError):  # ValueError: a name with a zero byte
            there = Path(output).stat()
            same = stat.S_ISREG(there.st_mode) and os.path.samestat(Path(name).stat(), there)
        if same:
            which = (
                "" if os.fspath(name) == os.fspath(output) else f", which is {os.fspath(output)}"
            )
            raise SameOutputError(
                f"the output would replace the input {os.fspath(name)}{which}: name another output"
            )


def sweep(folder: StrPath) -> None:
    """Remove the temporary files and folders in `folder` whose writers are gone."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_dead(Path(entry.path))


@contextmanager
def _written(path: StrPath) -> Iterator[BinaryIO]:
    target = _target(path)
    if target is None:
        # A device or pipe cannot be replaced: it gets all the data at once when the block ends.
        whole = io.BytesIO()
        yield whole
        with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as out:
            out.write(whole.getvalue())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    temporary, handle = _make_locked(target)
    try:
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        with open(handle, "wb", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _target(path: StrPath) -> Path | None:
    """The regular file to replace, after symbolic links; None for a device or pipe."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    # Renaming would replace a read-only file, too, which its owner meant to keep.
    if Path(path).exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    name = Path(path).absolute()
    name = name.parent.resolve() / name.name
    # /dev/stdout links to a descriptor below /proc, which is written into, never replaced.
    while name.is_symlink() and not name.is_relative_to("/proc"):
        name = name.parent / name.readlink()
        name = name.parent.resolve() / name.name
    return name if stat.S_ISREG(mode) and not name.is_relative_to("/proc") else None


def _make_locked(target: Path) -> tuple[Path, int]:
    """A new temporary file for `target`, and the descriptor that holds its lock."""
    flags = (
        os.O_RDWR
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_CLOEXEC", 0)
        | getattr(os, "O_BINARY", 0)
    )
    while True:
        temporary = target.with_name(f".{target.name[:40]}.{os.urandom(8).hex()}.partial")
        # os.open and not tempfile, so that the kernel applies the umask: reading it is not
        # thread-safe.
        handle = os.open(temporary, flags, 0o666)
        if fcntl is not None:
            # On a file system without locks nothing is swept either.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        # Another process swept it before it was locked.
        os.close(handle)


def _remove_if_dead(path: Path) -> None:
    """Raises BlockingIOError if the writer lives, OSError if that cannot be known."""
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
