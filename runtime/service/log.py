"""The service's log: JSON lines on standard error, from a thread of its own.

Always holds: a slow or closed reader, or a full disk, loses lines, which are counted, and holds up no request; the
same line is written at most once a second, unless it is a request's.
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

_WAITING_LINES = 10_000
_LAST_SECONDS = 2.0  # for the last lines to be read
_REPEAT_SECONDS = 1.0
_REMEMBERED = 100  # different lines of late


def start_log(level: str, on_lost: Callable[[], None]) -> "Log":
    """JSON lines on standard error, whoever reads them; `on_lost` is told of each that is not written."""
    return Log(level, on_lost)


class Log:
    """Takes all lines of `logging`. `on_lost` is told of each that is not written."""

    def __init__(self, level: str, on_lost: Callable[[], None]):
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING_LINES)
        writer = _Writer(on_lost)
        writer.setFormatter(_Lines())
        self._entrance = _Entrance(waiting, on_lost)
        self._entrance.addFilter(Repeats())
        root = logging.getLogger()
        root.setLevel("WARNING")
        logging.getLogger("runtime").setLevel("INFO")
        logging.getLogger("runtime.service.app.requests").setLevel(level)
        root.addHandler(self._entrance)
        self._listener = logging.handlers.QueueListener(waiting, writer)
        self._listener.start()

    def close(self) -> bool:
        """Take no more lines, and write the last ones. False if nobody reads them: the interpreter's own end would wait as well."""
        logging.getLogger().removeHandler(self._entrance)
        last = threading.Thread(target=self._listener.stop, daemon=True)
        last.start()
        last.join(_LAST_SECONDS)
        if last.is_alive():
            return False
        if sys.stderr is not None:
            try:
                sys.stderr.flush()
            except OSError:  # would become an exit status of the interpreter's own
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return True


class Repeats(logging.Filter):
    """Lets the same line through once a second. The next one has the number of those held back, as `repeated`."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # when a line was let through, and how many were not since

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "request"):
            return True
        key = record.name, record.getMessage()
        when, held = self._last.get(key, (-_REPEAT_SECONDS, 0))
        if 0 <= record.created - when < _REPEAT_SECONDS:
            self._last[key] = when, held + 1
            return False
        if len(self._last) >= _REMEMBERED:
            self._last.clear()
        self._last[key] = record.created, 0
        record.repeated = held
        return True


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        request = getattr(record, "request", None)
        line |= (
            request
            if request is not None
            else {"logger": record.name, "message": record.getMessage()}
        )
        if repeated := getattr(record, "repeated", 0):
            line["repeated"] = repeated
        return json.dumps(line, allow_nan=False)


class _Entrance(logging.handlers.QueueHandler):
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
