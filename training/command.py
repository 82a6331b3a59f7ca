"""What all training commands share: exit statuses, signals, types of options, and printing.

    @command("training.train", resumes=True)
    def main(argv: list[str] | None = None) -> int: ...

Always holds: Ctrl-C, SIGTERM and SIGHUP end a command with one line and status 130, 143 or 129, and
its temporary files are removed; an error is one line `NAME: why` and status 1; a line that cannot
be printed, because its stream is closed or full, is lost and stops nothing.
"""

import argparse
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, TypeVar

T = TypeVar("T")
_received: list[int] = []  # the signals that are ending this process


class TrainingError(RuntimeError):
    """A command cannot start or continue: options or data do not fit, or a loss is not finite."""


class Terminated(BaseException):
    """SIGINT, SIGTERM or SIGHUP was received. Like KeyboardInterrupt it is not an Exception."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def command(name: str, resumes: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a command's `main`, which takes its arguments and gives its exit status.

    `resumes` says that the command keeps its state in --run_dir, so that a stopped run can resume.
    """
    more = (
        "; start it again with the same --run_dir, and it resumes after its last whole epoch"
        if resumes
        else ""
    )

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> int:
            restore = _catch_signals()
            try:
                return main(argv)
            except (KeyboardInterrupt, Terminated):
                return _stopped(name, more)
            except (TrainingError, ValueError, OSError) as error:
                say(f"{name}: {error}", sys.stderr)
            except RuntimeError as error:  # torch has no class for a dead loading process
                # torchrun's processes all get the signal; here another one ended before this one.
                if _received:
                    return _stopped(name, more)
                reason = _machine_limit(error)
                if reason is None:
                    raise
                say(f"{name}: {reason}{more}", sys.stderr)
            finally:
                restore()
            return 1

        return run

    return decorate


def heed_signals() -> None:
    """Raise Terminated if a signal came and its exception was lost.

    Python drops an exception that a handler raises in some places, for one right after a fork.
    """
    if _received:
        raise Terminated(_received[0])


def leads() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def say(text: str, file: IO[str] | None) -> None:
    """Print a line, or lose it if the stream is closed or full.

    Letters that the stream's encoding lacks are written as escapes.
    """
    if file is None:
        return
    with suppress(OSError, ValueError, AttributeError):
        try:
            print(text, file=file, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(file, "encoding", None) or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
        except BrokenPipeError:
            # Otherwise Python would print the error once more at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def progress(items: Iterable[T], title: str) -> Iterable[T]:
    """`items`, with a bar on a terminal."""
    if not on_terminal():
        return items
    from tqdm import tqdm

    return tqdm(items, title)


def number(kind: type, least: float, most: float, what: str = "") -> Callable[[str], float]:
    """An argparse type: an int or a float from `least` to `most`, called `what` in its message."""
    what = what or ("a whole number" if kind is int else "a number")

    def parse(text: str) -> float:
        with suppress(ValueError):
            value: float = kind(text)
            if least <= value <= most:  # false for nan
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least:,} to {most:,}")

    parse.range = (least, most)  # type: ignore[attr-defined]
    return parse


def part(text: str) -> float:
    """An argparse type: a part of something, above 0 and not above 1."""
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a part above 0, to 1")


part.range = (0, 1)  # type: ignore[attr-defined]


def _stopped(name: str, more: str) -> int:
    number = signal.Signals(_received[0] if _received else signal.SIGINT)
    if leads():  # torchrun and Ctrl-C stop all processes, and one line is enough
        why = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        say(f"{name}: {why}{more}", sys.stderr)
    return 128 + number


def _machine_limit(error: RuntimeError) -> str | None:
    """The message for an error that comes from the machine's limits; None for any other error."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "not enough memory" in text:
        return f"out of memory ({text.splitlines()[0]}): give a smaller --batch_size"
    if "gloo" in text.lower() or type(error).__name__.startswith("Dist"):
        return f"another process of the run ended ({text.splitlines()[0]})"
    if "DataLoader worker" in text:
        return (
            f"an image loading process died ({text.splitlines()[0]}): "
            "give more shared memory, or --workers 0"
        )
    return None


def _catch_signals() -> Callable[[], None]:
    """Make the signals that end a command raise Terminated in the main thread.

    A signal that is ignored or already has a handler is left alone. Gives a function that undoes
    this.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    creator = os.getpid()

    def terminate(received: int, _: object) -> None:
        if os.getpid() != creator:  # an image loading process that was just forked
            os._exit(128 + received)
        _received.append(received)
        for other, handler in before.items():  # a second signal ends the process at once
            signal.signal(other, handler)
        raise Terminated(received)

    numbers = [
        signal.SIGINT,
        signal.SIGTERM,
        *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
    ]
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {found: handler for found in numbers if (handler := signal.getsignal(found)) in usual}
    for found in before:
        signal.signal(found, terminate)

    def restore() -> None:
        for found, handler in before.items():
            signal.signal(found, handler)

    return restore
