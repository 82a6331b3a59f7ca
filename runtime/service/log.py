"""The service's log: JSON lines on standard error, written by a thread of its own.

Always holds: a slow or closed reader, or a full disk, loses lines, which are counted, and delays no
request. A line that repeats itself is written at most once a second, unless it is a request's.
"""

import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from .request import requests_log

_MAX_WAITING_LINES = 10_000
_LAST_SECONDS = 2.0  # for the last lines to be written
_REPEAT_SECONDS = 1.0
_MAX_REMEMBERED = 100  # different lines


def start_log(level: str, on_lost: Callable[[], None]) -> "Log":
    """Write JSON lines on standard error from now on; the arguments are those of Log."""
    return Log(level, on_lost)


class Log:
    """Writes all lines of `logging`, from now until `close`.

    Args:
        level: of requests' lines; a value of options.LOG_LEVELS.
        on_lost: called for each line that is not written.
    """

    def __init__(self, level: str, on_lost: Callable[[], None]):
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_WAITING_LINES)
        writer = _Writer(on_lost)
        writer.setFormatter(_Lines())
        self._queue = _Queue(waiting, on_lost)
        self._queue.addFilter(Repeats())
        root = logging.getLogger()
        root.setLevel("WARNING")
        logging.getLogger("runtime").setLevel("INFO")
        requests_log.setLevel(level)
        root.addHandler(self._queue)
        self._listener = logging.handlers.QueueListener(waiting, writer)
        self._listener.start()

    def close(self) -> bool:
        """Accept no more lines, and write the last ones.

        Returns False if nobody reads them. The interpreter would then wait for them when it ends.
        """
        logging.getLogger().removeHandler(self._queue)
        last = threading.Thread(target=self._listener.stop, daemon=True)
        last.start()
        last.join(_LAST_SECONDS)
        if last.is_alive():
            return False
        if sys.stderr is not None:
            try:
                sys.stderr.flush()
            except OSError:  # otherwise the interpreter would exit with a status of its own
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return True


class Repeats(logging.Filter):
    """Passes the same line once a second. The next one says in `repeated` how many were dropped."""

    def __init__(self) -> None:
        super().__init__()
        # Logger and text -> when it was last passed, and how many were dropped since.
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "request"):
            return True
        key = record.name, record.getMessage()
        when, dropped = self._last.get(key, (-_REPEAT_SECONDS, 0))
        if 0 <= record.created - when < _REPEAT_SECONDS:
            self._last[key] = when, dropped + 1
            return False
        if len(self._last) >= _MAX_REMEMBERED:
            self._last.clear()
        self._last[key] = record.created, 0
        record.repeated = dropped
        return True


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        request = getattr(record, "request", None)
        if request is None:
            line |= {"logger": record.name, "message": record.getMessage()}
        else:
            line |= request
        if repeated := getattr(record, "repeated", 0):
            line["repeated"] = repeated
        return json.dumps(line, allow_nan=False)


class _Queue(logging.handlers.QueueHandler):
    def __init__(self, waiting: "queue.Queue[logging.LogRecord]", on_lost: Callable[[], None]):
        super().__init__(waiting)
        self._on_lost = on_lost

    def handleError(self, record: logging.LogRecord) -> None:
        self._on_lost()


class _Writer(logging.StreamHandler[Any]):
    def __init__(self, on_lost: Callable[[], None]):
        super().__init__()
        self._on_lost = on_lost

    def handleError(self, record: logging.LogRecord) -> None:
        self._on_lost()
