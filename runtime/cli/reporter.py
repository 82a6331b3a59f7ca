"""Lines that are printed from a thread of their own, so that whoever reads them, or does not, holds up nothing else.

Always holds: no call here waits for a stream, but for `close`, and that not for long while nothing is read; lines appear in
the order in which they were said; lines that are lost are counted.
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

_MAX_LINES = 10_000  # that wait for a slow reader
_PATIENCE = 10.0  # seconds in which a reader takes nothing, after which the rest is lost


class Reporter:
    """Prints lines, and a bar of what is done where there can be one."""

    def __init__(self, unit: str):
        self._unit = unit
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._said = self._printed = 0  # lines
        self._steps = self._done = 0  # of this thread, of the bar
        self._progress = Progress(0, unit)
        self._thread = threading.Thread(target=self._print, name="reporter", daemon=True)
        self._thread.start()

    def say(self, text: str, file: IO[str] | None, beside_bar: bool = True) -> None:
        """Print a line; `beside_bar` says whether also where there is a bar on the same terminal."""
        self._said += 1
        if self._work.qsize() < _MAX_LINES:
            self._work.put(partial(self._say, text, file, beside_bar))

    @property
    def lost(self) -> int:
        """Lines that were not printed; after close."""
        return self._said - self._printed

    def expect(self, total: int) -> None:
        """So many are to be done."""
        if sys.stderr is not None:  # where a bar would be
            self._work.put(partial(self._expect, total))

    def advance(self) -> None:
        """One more is done."""
        if self._work.qsize() < _MAX_LINES:
            self._work.put(self._advance)

    def close(self) -> bool:
        """Wait until everything is printed; False where a stream took nothing for so long that the rest is lost."""
        self._work.put(self._end_bar)
        self._work.put(None)
        while self._thread.is_alive():
            steps = self._steps
            self._thread.join(_PATIENCE)
            if self._thread.is_alive() and self._steps == steps:
                return False
        return True

    def _print(self) -> None:
        while (work := self._work.get()) is not None:
            # A bar on a stream that fails; lines never raise these.
            with suppress(OSError, ValueError):
                work()
            self._steps += 1

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
    """Print a line on standard error if that takes it at once."""
    with suppress(OSError, ValueError, AttributeError):
        if select.select([], [sys.stderr.fileno()], [], 0)[1]:
            say(text, sys.stderr)
