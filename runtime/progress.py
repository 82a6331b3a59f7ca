"""How far a long command is: tqdm's bar on standard error.

Always holds: there is a bar only where standard error is a terminal, more than one thing is to be done, and
tqdm is installed, which the edge half does not ask for; results and errors are printed without it as with it.
"""

import sys
from typing import IO, Any


class Progress:
    """Use it in a `with` block. `shown` says whether there is a bar."""

    def __init__(self, total: int, unit: str):
        self._bar: Any = None
        if total > 1 and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit=unit, smoothing=0.05)

    @property
    def shown(self) -> bool:
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.update(count)

    def say(self, text: str, file: IO[str]) -> None:
        """Print a line, above the bar if it is on a terminal too."""
        if self._bar is not None and file.isatty():
            self._bar.write(text, file=file)
        else:
            print(text, file=file)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
