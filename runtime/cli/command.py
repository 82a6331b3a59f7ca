"""What all commands share: exit statuses, signals, the parser, and printing.

    @command("edge-encode")
    def main(argv: list[str] | None = None) -> int: ...

Always holds: Ctrl-C, SIGTERM and SIGHUP end a command with one line and status 130, 143 or 129, and
its temporary files are removed. A second signal ends it at once. Standard output and standard error
may be closed or full: a line that cannot be printed stops nothing, and if lines for standard output
were lost, one message at the end says so.
"""

import argparse
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

EXIT_DONE, EXIT_FAILURE, EXIT_REFUSED = 0, 1, 4  # 2, wrong usage, is given by argparse
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
    errno.ELOOP: "repair the symbolic links",
}
# `timeout`, systemd and terminals may send several signals at once, which count as one.
_ONE_SIGNAL_SECONDS = 0.5
_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_lost: dict[str, OSError] = {}  # by a stream's name, why it takes no more lines


class Terminated(SystemExit):
    """SIGTERM or SIGHUP came.

    Like KeyboardInterrupt, it is not caught by `except Exception`, and asyncio passes it on.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class Parser(argparse.ArgumentParser):
    """A parser whose help and messages are printed as other lines are.

    argparse itself ignores errors of writing, so that lost help would be a success.
    """

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = file or sys.stderr
        if message and stream is not None:
            _print(message, stream, end="")


def command(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a command's `main`, which takes its arguments and gives its exit status.

    `main` may handle KeyboardInterrupt and Terminated itself if it has more to say. An
    EdgeCloudError, OSError or MemoryError that it raises becomes one line and status 1.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            _mend_streams()
            _lost.clear()
            signals = _Signals()
            try:
                status = _run(name, main, argv, signals)
            except SystemExit as ending:  # argparse raises it after its help or a usage error
                code = ending.code
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
        # A library may replace the signal's exception, as the import of a C module does.
        if signals.received is not None:
            say(f"{name}: stopped by {signal.Signals(signals.received).name}", sys.stderr)
            return 128 + signals.received
        if not isinstance(error, EdgeCloudError | OSError | MemoryError):
            raise
        say(f"{name}: {explain(error)}", sys.stderr)
        return EXIT_FAILURE


def explain(error: Exception) -> str:
    """Why something failed, for a person.

    For an error of the operating system: the file, what is wrong, and a remedy if one is known.
    """
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
    """Print a line; it is lost if the stream is closed or full.

    Characters that the stream's encoding lacks are printed as escapes, and so are control
    characters, because a terminal would obey those in a file's name.
    """
    if file is not None:
        _print(text.translate(_CONTROL), file)


def lost(file: IO[str] | None) -> bool:
    """Whether lines for this stream were lost."""
    return file is not None and _name_of(file) in _lost


def standard_input() -> BinaryIO:
    """Standard input, for bytes. Raises ClosedStreamError."""
    if sys.stdin is None:
        raise ClosedStreamError("standard input is closed: name a file")
    return sys.stdin.buffer


def standard_output() -> BinaryIO:
    """Standard output, for bytes. Raises ClosedStreamError."""
    if sys.stdout is None:
        raise ClosedStreamError("standard output is closed: name a file")
    return sys.stdout.buffer


class _Signals:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt or Terminated in the main thread.

    Signals that are already handled or ignored are left alone. A second signal ends the process at
    once, in case cleaning up takes too long.
    """

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
    """Open descriptors 0, 1 and 2 if they are closed, and make them blocking.

    If one were closed, the next file to be opened would get its number, and libraries would print
    into that file. A stream that another program made non-blocking would lose lines while its
    reader is busy.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # open() takes the lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        with suppress(OSError, AttributeError):  # Windows knows it for pipes only, since 3.12
            os.set_blocking(descriptor, True)


def _print(text: str, file: IO[str], end: str = "\n") -> None:
    try:
        try:
            print(text, file=file, end=end, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(file, "encoding", "ascii")
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            print(text, file=file, end=end, flush=True)
    except OSError as error:
        _lose(file, error)
    except ValueError:  # this process closed the stream
        pass


def _name_of(file: IO[str]) -> str:
    return "standard output" if file is sys.stdout else "standard error"


def _lose(file: IO[str], error: OSError) -> None:
    """Note that a stream takes no more, and send all further lines to the null device.

    Otherwise each further line would fail, and so would the interpreter's flush at its end.
    """
    _lost.setdefault(_name_of(file), error)
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        file.flush()


def _finish(name: str, status: int) -> int:
    """Flush the streams, report lost lines, and give the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError as error:
                _lose(stream, error)
            except ValueError:  # this process closed the stream
                pass
    why = _lost.get("standard output")
    # A reader that has closed its end, as `head` does, is no error.
    if why is None or why.errno == errno.EPIPE:
        return status
    say(f"{name}: lines for standard output were lost: {why.strerror}", sys.stderr)
    return status or EXIT_FAILURE
