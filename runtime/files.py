"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into, which is flushed to disk and becomes `path` when the block ends.

    Where the block raises, or the disk does (OSError), `path` is as it was and no temporary file is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}")
    try:
        # Made by open and not by tempfile, so that the kernel applies the umask, which no thread can ask for safely.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises OSError."""
    with atomic_file(path) as file:
        file.write(data)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Flush a folder to disk: names that were given or taken in it outlast a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
