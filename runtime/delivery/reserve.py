"""Room that a spool keeps on its disk, so that results can still be recorded when the disk is full.

A full disk would otherwise block itself: files leave the spool only after their result is written.

Always holds: the reserve takes real blocks of the disk, so that giving a part of it up makes room
for a result.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..files import sync_folder

BLOCK = 4096  # bytes that even the smallest file takes on most disks

_T = TypeVar("_T")
_SIZE = 64 * BLOCK
# Bytes given up at a time. A result takes less than a block, and the feature file that is deleted
# after it gives one back.
_STEP = 4 * BLOCK
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The reserve in `path`, which need not exist. Call fill() to make it whole."""

    def __init__(self, path: Path):
        self._path = path
        self._size = path.stat().st_size if path.exists() else 0

    @property
    def usable(self) -> bool:
        """Whether there is enough of it to record a result."""
        return self._size >= _STEP

    def fill(self) -> None:
        """Make the reserve whole, as far as the disk has room."""
        if self._size >= _SIZE:
            return
        with (
            contextlib.suppress(OSError),
            open(self._path, "r+b" if self._size else "wb", buffering=0) as file,
        ):
            file.seek(self._size)
            try:
                while self._size < _SIZE:
                    # Random, because holes, and on some file systems zeros, take no blocks.
                    self._size += file.write(os.urandom(_SIZE - self._size))
            finally:
                os.fsync(file.fileno())

    def with_room(self, work: Callable[[], _T]) -> _T:
        """Run `work`, which writes to the disk. While the disk is full, give up a part and retry.

        Raises OSError when the reserve is used up, and for all other errors of the disk.
        """
        while True:
            try:
                return work()
            except OSError as error:
                if error.errno not in _NO_ROOM or self._size <= 0:
                    raise
            self._size = max(0, self._size - _STEP)
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self._path, self._size)
            sync_folder(self._path.parent)  # some file systems free the blocks only then
