"""Lines that are printed from a thread of their own, so that their reader delays nothing else.

Always holds: no call here waits for a stream, except close(), and that not for long if nothing is
read. Lines appear in the order in which they were given. Lines that are lost are counted.
"""

import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import IO

from .command import say
from .progress import Progress

_MAX_LINES = 10_000  # that may wait for a slow reader
_PATIENCE = 10.0  # seconds without a line being read, after which the rest is lost


class Reporter:
    """Prints lines, and a progress bar if there can be one."""

    def __init__(self, unit: str):
        self._unit = unit
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._said = self._printed = 0  # lines that were given, and that were printed
        self._handled = 0  # entries of the queue
        self._done = 0  # steps of the bar
        self._progress = Progress(0, unit)
        self._thread = threading.Thread(target=self._print, name="reporter", daemon=True)
        self._thread.start()

    def say(self, text: str, file: IO[str] | None, beside_bar: bool = True) -> None:
        """Print a line; with `beside_bar` False, not if it would share the terminal with a bar."""
        self._said += 1
        if self._work.qsize() < _MAX_LINES:
            self._work.put(partial(self._say, text, file, beside_bar))

    @property
    def lost(self) -> int:
        """How many lines were not printed; to be read after close()."""
        return self._said - self._printed

    def expect(self, total: int) -> None:
        """Set how many steps there are."""
        if sys.stderr is not None:  # the bar's stream
            self._work.put(partial(self._expect, total))

    def advance(self) -> None:
        """Count a step that is done."""
        if self._work.qsize() < _MAX_LINES:
            self._work.put(self._advance)

    def close(self) -> bool:
        """Wait until everything is printed; False if a stream took nothing for too long."""
        self._work.put(self._end_bar)
        self._work.put(None)
        while self._thread.is_alive():
            handled = self._handled
            self._thread.join(_PATIENCE)
            if self._thread.is_alive() and self._handled == handled:
                return False
        return True

    def _print(self) -> None:
        while (work := self._work.get()) is not None:
            # The bar may raise these if its stream fails. Lines never do.
            with suppress(OSError, ValueError):
                work()
            self._handled += 1

    def _say(self, text: str, file: IO[str] | None, beside_bar: bool) -> None:
        if file is None or not (self._progress.shown and file.isatty()):
            say(text, file)
        elif beside_bar:
            self._progress.say(text, file)
        self._printed += 1

    def _expect(self, total: int) -> None:
        self._end_bar()
        self._progress = Progress(total, self._unit)
        self._progress.advance(self._done)

    def _advance(self) -> None:
        self._done += 1
        self._progress.advance()

    def _end_bar(self) -> None:
        self._progress.__exit__()
        self._progress = Progress(0, self._unit)


def say_if_read(text: str) -> None:
    """Print a line on standard error, unless that would have to wait for its reader."""
    with suppress(OSError, ValueError, AttributeError):
        if select.select([], [sys.stderr.fileno()], [], 0)[1]:
            say(text, sys.stderr)
