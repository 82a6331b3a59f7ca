"""The progress of a long command: tqdm's bar on standard error.

Always holds: there is a bar only if standard error is a terminal, there is more than one step, and
tqdm is installed, which the edge half does not require. Results and errors are printed with or
without a bar. A terminal that is gone stops nothing.
"""

import sys
from contextlib import suppress
from typing import IO, Any

from .command import say


class Progress:
    """A bar of `total` steps, called `unit`; to be used in a `with` block."""

    def __init__(self, total: int, unit: str):
        self._bar: Any = None
        if total > 1 and _is_terminal(sys.stderr):
            with suppress(ImportError, OSError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit=unit, smoothing=0.05)

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def hides(self, file: IO[str] | None) -> bool:
        """Whether a line on `file` would share the terminal with the bar."""
        return self.shown and _is_terminal(file)

    def advance(self, count: int = 1) -> None:
        """Count steps that are done."""
        if self._bar is not None:
            try:
                self._bar.update(count)
            except OSError:
                self._drop()

    def say(self, text: str, file: IO[str] | None) -> None:
        """Print a line, above the bar if they share a terminal."""
        if not self.hides(file):
            say(text, file)
            return
        try:
            self._bar.clear()
            say(text, file)
            self._bar.refresh()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        self._bar.disable = True  # otherwise it would write again when it is deleted
        self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()


def _is_terminal(file: IO[str] | None) -> bool:
    with suppress(OSError, ValueError):
        return file is not None and file.isatty()
    return False
