"""What all commands do alike: exit statuses, signals, numbers in options, and lines on streams that may be closed or full.

    @command("edge-encode")
    def main(argv: list[str] | None = None) -> int: ...

Always holds: Ctrl-C, SIGTERM and SIGHUP end a command with one line and status 130, 143 or 129, and its temporary files
are removed on the way; a line that cannot be printed stops nothing, and that lines were lost is said once at the end.
"""

import argparse
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO, BinaryIO

from .errors import ClosedStreamError

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED = 128 + signal.SIGINT

_lost: dict[str, OSError] = {}  # why a stream takes no more, by its name


class Terminated(BaseException):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt, no `except Exception` stops it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def command(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a command's `main`, which takes its arguments and gives its exit status.

    `main` may catch KeyboardInterrupt and Terminated itself where it has more to say.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            _open_missing_descriptors()
            _lost.clear()
            restore = _catch_signals()
            try:
                status = main(argv)
            except KeyboardInterrupt:
                say(f"{name}: interrupted", sys.stderr)
                status = EXIT_INTERRUPTED
            except Terminated as signalled:
                say(f"{name}: stopped by {signalled}", sys.stderr)
                status = 128 + signalled.number
            finally:
                restore()
            return _finish(name, status)

        return run

    return decorate


def say(text: str, file: IO[str] | None) -> None:
    """Print a line. A stream that is closed or full loses it; letters that its encoding lacks become escapes."""
    if file is None:
        return
    try:
        try:
            print(text, file=file, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(file, "encoding", "ascii")
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except OSError as error:
        _lose(file, error)
    except ValueError:  # the stream was closed by this process
        pass


def standard_input() -> BinaryIO:
    """Standard input's bytes. Raises ClosedStreamError."""
    if sys.stdin is None:
        raise ClosedStreamError("standard input is closed: name a file")
    return sys.stdin.buffer


def standard_output() -> BinaryIO:
    """Standard output for bytes. Raises ClosedStreamError."""
    if sys.stdout is None:
        raise ClosedStreamError("standard output is closed: name a file")
    return sys.stdout.buffer


def number(kind: type, least: float, most: float) -> Callable[[str], float]:
    """An argparse type: an int or a float from `least` to `most`."""
    what = "a whole number" if kind is int else "a number"

    def parse(text: str) -> float:
        with suppress(ValueError):
            value: float = kind(text)
            if least <= value <= most:  # not true of nan
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least:,} to {most:,}")

    return parse


def _catch_signals() -> Callable[[], None]:
    """SIGTERM and SIGHUP raise Terminated in the main thread, where nobody else handles or ignores them.

    Gives what sets them back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def terminate(received: int, _: object) -> None:
        # A second one must not interrupt what the first one cleans up.
        for other in taken:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(received)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    taken = [found for found in numbers if signal.getsignal(found) == signal.SIG_DFL]
    for found in taken:
        signal.signal(found, terminate)

    def restore() -> None:
        for found in taken:
            signal.signal(found, signal.SIG_DFL)

    return restore


def _open_missing_descriptors() -> None:
    """A descriptor 0, 1 or 2 that is closed would become the next file, into which libraries then print."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _lose(file: IO[str], error: OSError) -> None:
    """Send what a stream is given from now on to nowhere, so that each further line costs nothing and the exit is quiet."""
    _lost.setdefault("standard output" if file is sys.stdout else "standard error", error)
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        file.flush()


def _finish(name: str, status: int) -> int:
    """The last lines are flushed here, where it can still be said that they were lost."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:
            _lose(sys.stdout, error)
        except ValueError:
            pass
    why = _lost.get("standard output")
    # A reader that has left, as `head` does, wants no more, and no complaint.
    if why is None or why.errno == errno.EPIPE:
        return status
    say(f"{name}: lines for standard output were lost: {why.strerror}", sys.stderr)
    return status or EXIT_FAILURE
