"""What all commands do alike: exit statuses, signals, numbers in options, and lines on streams that may be closed or full.

    @command("edge-encode")
    def main(argv: list[str] | None = None) -> int: ...

Always holds: Ctrl-C, SIGTERM and SIGHUP end a command with one line and status 130, 143 or 129, and its temporary files
are removed on the way; a second signal ends it at once. A line that cannot be printed stops nothing, and that lines were
lost is said once at the end.
"""

import errno
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, BinaryIO

from ..errors import ClosedStreamError, EdgeCloudError

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED = 128 + signal.SIGINT

_REMEDIES = {
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit for the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit for open files (ulimit -n)",
    errno.ENFILE: "end other programs, or raise the system's limit for open files",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "mend the symbolic links",
}
_ONE_SIGNAL_SECONDS = (
    0.5  # `timeout`, systemd and terminals send several signals at once, which count as one
)
_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_lost: dict[str, OSError] = {}  # why a stream takes no more, by its name


class Terminated(SystemExit):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt, no `except Exception` stops it, and asyncio lets it through."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


def command(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a command's `main`, which takes its arguments and gives its exit status.

    `main` may catch KeyboardInterrupt and Terminated itself where it has more to say. What it raises of EdgeCloudError,
    OSError and MemoryError is one line, and status 1.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            _mend_streams()
            _lost.clear()
            signals = _Signals()
            try:
                status = _run(name, main, argv, signals)
            except SystemExit as leaving:  # argparse's, after its help or a usage error
                code = leaving.code
                raise SystemExit(_finish(name, code) if isinstance(code, int) else code) from None
            finally:
                signals.restore()
            return _finish(name, status)

        return run

    return decorate


def _run(name: str, main: Callable[..., int], argv: list[str] | None, signals: "_Signals") -> int:
    try:
        return main(argv)
    except KeyboardInterrupt:
        say(f"{name}: interrupted", sys.stderr)
        return EXIT_INTERRUPTED
    except Terminated as signalled:
        say(f"{name}: stopped by {signalled}", sys.stderr)
        return 128 + signalled.number
    except Exception as error:
        if (
            signals.received is not None
        ):  # a library made another error of it, as C modules do that are being imported
            say(f"{name}: stopped by {signal.Signals(signals.received).name}", sys.stderr)
            return 128 + signals.received
        if not isinstance(error, EdgeCloudError | OSError | MemoryError):
            raise
        say(f"{name}: {explain(error)}", sys.stderr)
        return EXIT_FAILURE


def explain(error: Exception) -> str:
    """Why something failed, for a person: of the system's errors the file, what is wrong, and a remedy where one is known."""
    if isinstance(error, MemoryError):
        return "there is not enough memory: end other programs, or give it less to do at a time"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    names = " and ".join(
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes)
    )
    what = error.strerror or os.strerror(error.errno)
    return ": ".join(part for part in (names, what, _REMEDIES.get(error.errno, "")) if part)


def say(text: str, file: IO[str] | None) -> None:
    """Print a line. A stream that is closed or full loses it.

    Letters that its encoding lacks become escapes, and so do control characters of file names, which a terminal would obey.
    """
    if file is None:
        return
    text = text.translate(_CONTROL)
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


def lost(file: IO[str] | None) -> bool:
    """Whether a stream has been found to take no more."""
    return file is not None and _name_of(file) in _lost


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


class _Signals:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt or Terminated in the main thread, where nobody else handles or ignores
    them; a second one, which then finds the command cleaning up for too long, ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            found = getattr(signal, name, None)
            if found is not None and signal.getsignal(found) in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):
                self._before[found] = signal.signal(found, self._stop)

    def _stop(self, received: int, _: object) -> None:
        if self.received is None:
            self.received, self._at = received, time.monotonic()
            raise KeyboardInterrupt if received == signal.SIGINT else Terminated(received)
        if time.monotonic() - self._at > _ONE_SIGNAL_SECONDS:
            os._exit(128 + received)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _mend_streams() -> None:
    """A descriptor 0, 1 or 2 that is closed would become the next file, into which libraries then print. One that another
    program has set to not waiting would lose what comes while its other end is busy."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # takes the lowest that is free
        with suppress(OSError, AttributeError):  # Windows has it for pipes, and lately
            os.set_blocking(descriptor, True)


def _name_of(file: IO[str]) -> str:
    return "standard output" if file is sys.stdout else "standard error"


def _lose(file: IO[str], error: OSError) -> None:
    """Send what a stream is given from now on to nowhere, so that each further line costs nothing and the exit is quiet."""
    _lost.setdefault(_name_of(file), error)
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        file.flush()


def _finish(name: str, status: int) -> int:
    """The last lines are flushed here, where it can still be said that they were lost."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError as error:
                _lose(stream, error)
            except ValueError:  # the stream was closed by this process
                pass
    why = _lost.get("standard output")
    # A reader that has left, as `head` does, wants no more, and no complaint.
    if why is None or why.errno == errno.EPIPE:
        return status
    say(f"{name}: lines for standard output were lost: {why.strerror}", sys.stderr)
    return status or EXIT_FAILURE
