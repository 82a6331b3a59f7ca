"""How far a long command is: tqdm's bar on standard error.

Always holds: there is a bar only where standard error is a terminal, more than one thing is to be done, and
tqdm is installed, which the edge half does not ask for; results and errors are printed without it as with it, and a terminal
that is gone stops nothing.
"""

import sys
from contextlib import suppress
from typing import IO, Any

from .command import say


class Progress:
    """Use it in a `with` block. `shown` says whether there is a bar."""

    def __init__(self, total: int, unit: str):
        self._bar: Any = None
        if total > 1 and _is_terminal(sys.stderr):
            with suppress(ImportError, OSError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit=unit, smoothing=0.05)

    @property
    def shown(self) -> bool:
        return self._bar is not None

    def hides(self, file: IO[str] | None) -> bool:
        """Whether the bar is on the same terminal, and says enough."""
        return self.shown and _is_terminal(file)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        if self._bar is not None:
            try:
                self._bar.update(count)
            except OSError:
                self._drop()

    def say(self, text: str, file: IO[str] | None) -> None:
        """Print a line, above the bar if it is on a terminal too."""
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
        self._bar.disable = True  # or it would write again when it is collected
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
