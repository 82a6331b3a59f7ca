"""The spool: a folder of feature files that wait to be delivered, and the results of those that were.

    lock                       held by the one process that uses the folder
    pending/NUMBER-KEY.spool   accepted and not delivered; the least number is the oldest
    refused/NUMBER-KEY.spool   refused by the server for good, kept for whoever asks why
    results.jsonl              one line a key, delivered or refused, in the order of the answers
    reserve                    room on the disk for results, given up bit by bit when the disk is full

A key is the SHA-256 of the feature file, in hexadecimal. A .spool file is a line of JSON, which names the image, and the
feature file's bytes. The last line of a key in results.jsonl says where its file belongs: "delivered", nowhere;
"refused", in refused/; "requeued", in pending/. Opening the folder makes that true.

Always holds: what accept() returned for is on the disk, and stays there until its result is; a key has one result,
unless a refused one was put back on purpose; a process that ends anywhere, or a disk that is full, leaves a
folder that opens with nothing lost; nothing is accepted without room to record its result; pending and refused files
together stay within the bound.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import (
    DamagedResultsError,
    DamagedSpoolFileError,
    SpoolDiskError,
    SpoolFullError,
    SpoolInUseError,
)
from ..files import sync_folder, write_atomically

DELIVERED, REFUSED, REQUEUED = "delivered", "refused", "requeued"
_BLOCK = 4096  # what the smallest file takes of most disks
_RESERVE, _STEP = (
    64 * _BLOCK,
    4 * _BLOCK,
)  # a result takes less than a block, and those that are delivered give theirs back
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")
_NAME = re.compile(r"(\d{12,})-([0-9a-f]{64})\.spool")
_LINE = re.compile(
    rb'\{"key": "([0-9a-f]{64})", "status": "(?:delivered|refused|requeued)", .*\}\n'
)


def key_of(data: bytes) -> str:
    """The key under which a feature file is delivered."""
    return hashlib.sha256(data).hexdigest()


class Entry(NamedTuple):
    """A file of the spool: its place in the order, its key, and the bytes that it takes of the disk."""

    number: int
    key: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.number:012d}-{self.key}.spool"


class Spool:
    """Opens a spool, makes it if need be, and mends what a killed process left. May be shared between threads.

    Args:
        folder: a folder of this spool alone.
        limit: bytes of disk, in blocks of 4096, that pending and refused files may take together.

    Raises SpoolInUseError, DamagedResultsError, SpoolDiskError.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 256 << 20):
        self.folder, self.limit = Path(folder), limit
        self._mutex = threading.Lock()
        self._lock = self._results = -1
        self._end = 0  # of the last whole line of the results
        try:
            for part in (self._pending_folder, self._refused_folder):
                part.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._reserved = self._reserve_file.stat().st_size if self._reserve_file.exists() else 0
            self._keep_reserve()
            created = not self.results_file.exists()
            self._results = os.open(
                self.results_file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
            if created:
                sync_folder(self.folder)
                sync_folder(self.folder.absolute().parent)
            self._offsets = self._read_results()
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
        for handle in (self._results, self._lock):
            if handle >= 0:
                os.close(handle)
        self._lock = self._results = -1

    @property
    def results_file(self) -> Path:
        return self.folder / "results.jsonl"

    def fits(self, image: str, data: bytes) -> bool:
        """Whether there is room for a feature file."""
        return self._size + _on_disk(len(_content(image, data))) <= self.limit

    def pending(self) -> list[Entry]:
        """What waits, oldest first."""
        with self._mutex:
            return sorted(self._pending.values())

    def result(self, key: str) -> dict[str, Any] | None:
        """The recorded result of a key, None if it has none: `key`, `status`, `time`, and what was recorded with it."""
        last = self._last_line(key)
        return last if last and last["status"] != REQUEUED else None

    def accept(self, image: str, data: bytes) -> Entry | dict[str, Any]:
        """Put a feature file on the disk. Where its key waits already, that entry; where it has a result, the result.

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
                self._keep_reserve()
                if self._reserved < _STEP:
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
        """The image's name and the feature file.

        Raises DamagedSpoolFileError where the bytes are not those that were accepted, SpoolDiskError.
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
            # The feature file is whole; only its name was hit.
            return "?", data

    def finish(self, entry: Entry, status: str, **details: Any) -> dict[str, Any]:
        """Record the result of a pending entry, DELIVERED or REFUSED, then delete its file or move it aside.

        Raises SpoolDiskError; the entry is then still pending.
        """
        with self._mutex:
            try:
                result = self._record(entry.key, status, **details)
            except OSError as error:
                raise SpoolDiskError(
                    f"{self.results_file} cannot be written, {entry.key[:16]} stays in the spool: {error}"
                ) from error
            del self._pending[entry.key]
            if status == REFUSED:
                self._refused[entry.key] = entry
            else:
                self._size -= entry.size
            # The result stands: a file that cannot be put away now is when the spool is opened next.
            with contextlib.suppress(OSError):
                self._put(entry, status, self._pending_folder)
            self._keep_reserve()
        return result

    def requeue_refused(self) -> int:
        """Put everything that was refused back among what waits, in its old place; returns how many files.

        Raises SpoolDiskError.
        """
        with self._mutex:
            # Its owner may have deleted some.
            entries = [
                entry
                for entry in self._refused.values()
                if (self._refused_folder / entry.name).exists()
            ]
            for entry in entries:
                try:
                    self._record(entry.key, REQUEUED)
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

    @property
    def _reserve_file(self) -> Path:
        return self.folder / "reserve"

    def _full(self, image: str) -> str:
        refused = f", {len(self._refused)} of them refused" if self._refused else ""
        remedy = ", or delete what is in refused/" if self._refused else ""
        return (
            f"the spool {self.folder} is full, {len(self._pending) + len(self._refused)} feature files in {self._size} of "
            f"{self.limit} bytes{refused}: {image} is not accepted; deliver the spool first{remedy}, or allow more with --spool-mb"
        )

    def _keep_reserve(self) -> None:
        """Make the reserve whole, as far as the disk has room."""
        if self._reserved >= _RESERVE:
            return
        with (
            contextlib.suppress(OSError),
            open(self._reserve_file, "r+b" if self._reserved else "wb", buffering=0) as file,
        ):
            file.seek(self._reserved)
            try:
                while self._reserved < _RESERVE:
                    # Bytes that were never written, and on some file systems zeros, take no room.
                    self._reserved += file.write(os.urandom(_RESERVE - self._reserved))
            finally:
                os.fsync(file.fileno())

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do what writes to the disk; where that is full, a part of the reserve is given up for it, and another. Raises OSError."""
        while True:
            try:
                return work()
            except OSError as error:
                if error.errno not in _NO_ROOM or self._reserved <= 0:
                    raise
            self._reserved = max(0, self._reserved - _STEP)
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self._reserve_file, self._reserved)
            sync_folder(self.folder)  # some file systems give the blocks back only then

    def _take_lock(self) -> int:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SpoolInUseError(
                f"the spool {self.folder} is in use by another edge-send: wait until it ends, or name another folder with --spool"
            ) from None
        return handle

    def _read_results(self) -> dict[bytes, int]:
        """Where each key's last line begins. A last line that was not written whole is cut off."""
        offsets: dict[bytes, int] = {}
        with open(self.results_file, "rb") as file:
            for count, line in enumerate(file, 1):
                match = _LINE.fullmatch(line)
                if not match or (not file.peek(1) and not _is_json(line)):
                    if file.read(1):
                        raise DamagedResultsError(
                            f"line {count} of {self.results_file} is no result: move the file away, or mend the line; "
                            "images whose results are away are sent again when they are named again"
                        )
                    os.ftruncate(self._results, self._end)
                    os.fsync(self._results)
                    break
                offsets[bytes.fromhex(match[1].decode())] = self._end
                self._end += len(line)
        return offsets

    def _scan(self, folder: Path) -> dict[str, Entry]:
        """A folder's entries by key, oldest first; temporary files of a killed process are deleted."""
        entries = []
        for file in os.scandir(folder):
            if match := _NAME.fullmatch(file.name):
                entries.append(Entry(int(match[1]), match[2], _on_disk(file.stat().st_size)))
            elif file.name.startswith(".") and file.is_file(follow_symlinks=False):
                Path(file.path).unlink()
        return {entry.key: entry for entry in sorted(entries)}

    def _reconcile(self) -> None:
        """Put each file where its key's last result says."""
        for entries, folder in (
            (self._pending, self._pending_folder),
            (self._refused, self._refused_folder),
        ):
            for entry in list(entries.values()):
                last = self._last_line(entry.key)
                status = last["status"] if last else None
                if status and self._put(entry, status, folder):
                    del entries[entry.key]
                    if status != DELIVERED:
                        (self._refused if status == REFUSED else self._pending)[entry.key] = entry

    def _put(self, entry: Entry, status: str, folder: Path) -> bool:
        """Take an entry's file from `folder` to where `status` says; whether it had to go.

        The folders are not synced: what a power cut undoes here is done again when the spool is opened.
        """
        target = {DELIVERED: None, REFUSED: self._refused_folder, REQUEUED: self._pending_folder}[
            status
        ]
        if target is None:
            (folder / entry.name).unlink()
        elif target != folder:
            # A name may need a block.
            self._with_room(lambda: os.replace(folder / entry.name, target / entry.name))
        return target != folder

    def _record(self, key: str, status: str, **details: Any) -> dict[str, Any]:
        """Append a line and flush it to the disk."""
        result = {
            "key": key,
            "status": status,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **details,
        }
        line = json.dumps(result, allow_nan=False).encode() + b"\n"
        self._with_room(lambda: self._append(line))
        self._offsets[bytes.fromhex(key)] = self._end
        self._end += len(line)
        return result

    def _append(self, line: bytes) -> None:
        """Write a line behind the last whole one; what one that failed left there is cut off first."""
        if os.fstat(self._results).st_size != self._end:
            os.ftruncate(self._results, self._end)
        written = 0
        while written < len(line):
            written += os.write(self._results, line[written:])
        os.fsync(self._results)

    def _last_line(self, key: str) -> dict[str, Any] | None:
        offset = self._offsets.get(bytes.fromhex(key))
        if offset is None:
            return None
        with open(self.results_file, "rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        return line


def _content(image: str, data: bytes) -> bytes:
    return json.dumps({"image": image}, allow_nan=False).encode() + b"\n" + data


def _on_disk(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
