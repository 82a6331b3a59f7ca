"""The results of a spool: results.jsonl, a line of JSON for each, in the order of the answers.

A key may have several lines, and its last one counts. Only the position of that line is kept in
memory, not the result itself.

Always holds: a line is on the disk when append() returns. A last line that was not written whole is
cut off, when the file is opened or before the next line is written. A damaged line before the last
is refused.
"""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import DamagedResultsError
from ..files import sync_folder

DELIVERED, REFUSED, REQUEUED = "delivered", "refused", "requeued"
_LINE = re.compile(
    rb'\{"key": "([0-9a-f]{64})", "status": "(?:delivered|refused|requeued)", .*\}\n'
)


class Results:
    """The results in `path`, which is created if it does not exist.

    Raises DamagedResultsError, OSError.
    """

    def __init__(self, path: Path):
        self.path = path
        self._end = 0  # of the last whole line
        created = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o666)
        try:
            if created:
                # The spool's own folder may be new as well.
                sync_folder(path.parent)
                sync_folder(path.parent.absolute().parent)
            self._offsets = self._read()
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Close the file; to be called once."""
        os.close(self._handle)

    def last(self, key: str) -> dict[str, Any] | None:
        """The last line of a key; None if it has no line."""
        offset = self._offsets.get(bytes.fromhex(key))
        if offset is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        return line

    def append(self, key: str, status: str, details: dict[str, Any]) -> dict[str, Any]:
        """Append a line and flush it to the disk; gives the line. Raises OSError."""
        result = {
            "key": key,
            "status": status,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **details,
        }
        line = json.dumps(result, allow_nan=False).encode() + b"\n"
        # A write that failed may have left the beginning of a line.
        if os.fstat(self._handle).st_size != self._end:
            os.ftruncate(self._handle, self._end)
        written = 0
        while written < len(line):
            written += os.write(self._handle, line[written:])
        os.fsync(self._handle)
        self._offsets[bytes.fromhex(key)] = self._end
        self._end += len(line)
        return result

    def _read(self) -> dict[bytes, int]:
        """The offset of each key's last line. An incomplete last line is cut off."""
        offsets: dict[bytes, int] = {}
        with open(self.path, "rb") as file:
            for count, line in enumerate(file, 1):
                match = _LINE.fullmatch(line)
                is_last = not file.peek(1)
                # Only the last line is parsed, because parsing millions of lines takes long.
                if not match or (is_last and not _is_json(line)):
                    if not is_last:
                        raise DamagedResultsError(
                            f"line {count} of {self.path} is no result: "
                            "move the file away, or repair the line; images whose results "
                            "are moved away are sent again when they are named again"
                        )
                    os.ftruncate(self._handle, self._end)
                    os.fsync(self._handle)
                    break
                offsets[bytes.fromhex(match[1].decode())] = self._end
                self._end += len(line)
        return offsets


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
