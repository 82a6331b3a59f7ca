"""The spool: a folder of feature files that wait for delivery, and the results of delivered ones.

    lock                       held by the one process that uses the folder
    pending/NUMBER-KEY.spool   accepted and not delivered; the smallest number is the oldest
    refused/NUMBER-KEY.spool   refused by the server for good; kept, so that it can be examined
    results.jsonl              a line for each result, in the order of the answers (results.py)
    reserve                    room on the disk for results when the disk is full (reserve.py)

A key is the SHA-256 of the feature file, in hexadecimal. A .spool file is a line of JSON that names
the image, followed by the feature file's bytes. The last line of a key in results.jsonl says where
its file belongs: "delivered", nowhere; "refused", in refused/; "requeued", in pending/. Opening the
folder moves each file to where it belongs.

Always holds: when accept() returns, the feature file is on the disk, and it stays there until its
result is. A key has one result, unless a refused file was put back on purpose. If the process ends
at any step, or the disk is full, the folder opens again with nothing lost. Nothing is accepted
without room to record its result. Pending and refused files together stay within the limit.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DamagedSpoolFileError, SpoolDiskError, SpoolFullError, SpoolInUseError
from ..files import sync_folder, write_atomically
from .reserve import BLOCK, Reserve
from .results import DELIVERED, REFUSED, REQUEUED, Results

__all__ = ["DELIVERED", "REFUSED", "Entry", "Spool", "key_of"]

_NAME = re.compile(r"(\d{12,})-([0-9a-f]{64})\.spool")


def key_of(data: bytes) -> str:
    """The key under which a feature file is delivered."""
    return hashlib.sha256(data).hexdigest()


class Entry(NamedTuple):
    """A file of the spool: its place in the order, its key, and the bytes of disk that it takes."""

    number: int
    key: str
    size: int

    @property
    def name(self) -> str:
        """The file's name, in pending/ or refused/."""
        return f"{self.number:012d}-{self.key}.spool"


class Spool:
    """Opens a spool, creates it if needed, and repairs what a killed process left.

    Threads may share it.

    Args:
        folder: a folder that nothing else uses.
        limit: bytes of disk, in blocks of 4096, that pending and refused files may take together.

    Raises SpoolInUseError, DamagedResultsError, SpoolDiskError.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 256 << 20):
        self.folder, self.limit = Path(folder), limit
        self._mutex = threading.Lock()
        self._opened = contextlib.ExitStack()
        try:
            for part in (self._pending_folder, self._refused_folder):
                part.mkdir(parents=True, exist_ok=True)
            self._opened.callback(os.close, self._take_lock())
            self._reserve = Reserve(self.folder / "reserve")
            self._reserve.fill()
            self._results = Results(self.results_file)
            self._opened.callback(self._results.close)
            self._pending = self._scan(self._pending_folder)
            self._refused = self._scan(self._refused_folder)
            self._reconcile()
        except OSError as error:
            self.close()
            raise SpoolDiskError(f"the spool {self.folder} cannot be used: {error}") from error
        except BaseException:
            self.close()
            raise
        entries = (*self._pending.values(), *self._refused.values())
        self._next = max((entry.number for entry in entries), default=0) + 1
        self._size = sum(entry.size for entry in entries)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process use the folder."""
        self._opened.close()

    @property
    def results_file(self) -> Path:
        """The file of results: a line of JSON for each."""
        return self.folder / "results.jsonl"

    def fits(self, image: str, data: bytes) -> bool:
        """Whether there is room for a feature file."""
        return self._size + _on_disk(len(_content(image, data))) <= self.limit

    def pending(self) -> list[Entry]:
        """The entries that wait for delivery, oldest first."""
        with self._mutex:
            return sorted(self._pending.values())

    def result(self, key: str) -> dict[str, Any] | None:
        """The recorded result of a key: `key`, `status`, `time`, and the details given to finish().

        None if the key has no result.
        """
        last = self._results.last(key)
        return last if last and last["status"] != REQUEUED else None

    def accept(self, image: str, data: bytes) -> Entry | dict[str, Any]:
        """Write a feature file to the disk.

        Gives its entry, or the result that its key has already. A key that is pending is not
        written again.

        Raises SpoolFullError, SpoolDiskError; the file is then not in the spool.
        """
        key = key_of(data)
        with self._mutex:
            if key in self._pending:
                return self._pending[key]
            known = self.result(key)
            if known is not None:
                return known
            content = _content(image, data)
            entry = Entry(self._next, key, _on_disk(len(content)))
            if self._size + entry.size > self.limit:
                raise SpoolFullError(self._full(image))
            try:
                self._reserve.fill()
                if not self._reserve.usable:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                write_atomically(self._pending_folder / entry.name, content)
                sync_folder(self._pending_folder)
            except OSError as error:
                with contextlib.suppress(OSError):
                    (self._pending_folder / entry.name).unlink()
                raise SpoolDiskError(
                    f"the spool {self.folder} cannot be written, {image} is not accepted: {error}"
                ) from error
            self._next += 1
            self._pending[key] = entry
            self._size += entry.size
            return entry

    def read(self, entry: Entry) -> tuple[str, bytes]:
        """The image's name and the feature file of a pending entry.

        Raises DamagedSpoolFileError if the bytes are not those that were accepted, SpoolDiskError.
        """
        path = self._pending_folder / entry.name
        try:
            line, _, data = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise SpoolDiskError(f"{path} cannot be read: {error}") from error
        if key_of(data) != entry.key:
            raise DamagedSpoolFileError(
                f"{path} does not hold what was written to it: encode and send the image again"
            )
        try:
            return str(json.loads(line)["image"]), data
        except (ValueError, KeyError, TypeError):
            # The feature file is intact; only the line with the name is damaged.
            return "?", data

    def finish(self, entry: Entry, status: str, **details: Any) -> dict[str, Any]:
        """Record the result of a pending entry, then delete its file or move it to refused/.

        Args:
            status: DELIVERED or REFUSED.
            details: recorded with the result; JSON.

        Raises SpoolDiskError; the entry is then still pending.
        """
        with self._mutex:
            try:
                result = self._record(entry.key, status, details)
            except OSError as error:
                raise SpoolDiskError(
                    f"{self.results_file} cannot be written, "
                    f"{entry.key[:16]} stays in the spool: {error}"
                ) from error
            del self._pending[entry.key]
            if status == REFUSED:
                self._refused[entry.key] = entry
            else:
                self._size -= entry.size
            # The result is recorded. A file that cannot be moved now is moved at the next opening.
            with contextlib.suppress(OSError):
                self._put(entry, status, self._pending_folder)
            self._reserve.fill()
        return result

    def requeue_refused(self) -> int:
        """Put all refused files back into pending/, in their old order; gives how many.

        Raises SpoolDiskError.
        """
        with self._mutex:
            # The spool's owner may have deleted some of the files.
            entries = [
                entry
                for entry in self._refused.values()
                if (self._refused_folder / entry.name).exists()
            ]
            for entry in entries:
                try:
                    self._record(entry.key, REQUEUED, {})
                    self._put(entry, REQUEUED, self._refused_folder)
                except OSError as error:
                    raise SpoolDiskError(
                        f"the spool {self.folder} cannot be written: {error}"
                    ) from error
                self._pending[entry.key] = self._refused.pop(entry.key)
        return len(entries)

    @property
    def _pending_folder(self) -> Path:
        return self.folder / "pending"

    @property
    def _refused_folder(self) -> Path:
        return self.folder / "refused"

    def _full(self, image: str) -> str:
        count = len(self._pending) + len(self._refused)
        refused = f", {len(self._refused)} of them refused" if self._refused else ""
        remedy = ", or delete what is in refused/" if self._refused else ""
        return (
            f"the spool {self.folder} is full, {count} feature files in {self._size} of "
            f"{self.limit} bytes{refused}: {image} is not accepted; "
            f"deliver the spool first{remedy}, or allow more with --spool-mb"
        )

    def _take_lock(self) -> int:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SpoolInUseError(
                f"the spool {self.folder} is in use by another edge-send: "
                "wait until it ends, or name another folder with --spool"
            ) from None
        return handle

    def _scan(self, folder: Path) -> dict[str, Entry]:
        """A folder's entries by key, oldest first.

        Temporary files of a killed process are deleted.
        """
        entries = []
        for file in os.scandir(folder):
            if match := _NAME.fullmatch(file.name):
                entries.append(Entry(int(match[1]), match[2], _on_disk(file.stat().st_size)))
            elif file.name.startswith(".") and file.is_file(follow_symlinks=False):
                Path(file.path).unlink()
        return {entry.key: entry for entry in sorted(entries)}

    def _reconcile(self) -> None:
        """Move each file to where the last result of its key says."""
        for entries, folder in (
            (self._pending, self._pending_folder),
            (self._refused, self._refused_folder),
        ):
            for entry in list(entries.values()):
                last = self._results.last(entry.key)
                status = last["status"] if last else None
                if status and self._put(entry, status, folder):
                    del entries[entry.key]
                    if status != DELIVERED:
                        (self._refused if status == REFUSED else self._pending)[entry.key] = entry

    def _put(self, entry: Entry, status: str, folder: Path) -> bool:
        """Move an entry's file from `folder` to where `status` says; gives whether it had to move.

        The folders are not synced: a move that a power cut undoes is repeated at the next opening.
        """
        target = {DELIVERED: None, REFUSED: self._refused_folder, REQUEUED: self._pending_folder}[
            status
        ]
        if target is None:
            (folder / entry.name).unlink()
        elif target != folder:
            # A new name in a folder may need a block.
            self._reserve.with_room(lambda: os.replace(folder / entry.name, target / entry.name))
        return target != folder

    def _record(self, key: str, status: str, details: dict[str, Any]) -> dict[str, Any]:
        return self._reserve.with_room(lambda: self._results.append(key, status, details))


def _content(image: str, data: bytes) -> bytes:
    return json.dumps({"image": image}, allow_nan=False).encode() + b"\n" + data


def _on_disk(length: int) -> int:
    """Bytes of disk that a file of `length` bytes takes, in whole blocks."""
    return -(-length // BLOCK) * BLOCK
