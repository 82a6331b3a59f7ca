"""What all commands share: signals, errors, and lines on streams that are closed or full."""

import argparse
import asyncio
import errno
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import command
from runtime.errors import ClosedStreamError, ImageError
from runtime.options import number as number_type

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGHUP"), reason="signals and streams of POSIX systems"
)
Capture = pytest.CaptureFixture[str]
SIGNALS = [
    (signal.SIGINT, "interrupted"),
    (signal.SIGTERM, "stopped by SIGTERM"),
    (signal.SIGHUP, "stopped by SIGHUP"),
]


def call(work: Any) -> int:
    """Run a command whose `main` calls `work`; gives its status."""
    return command.command("c")(lambda argv: work() or 0)()


def python(
    code: str, shell: str = '"$0" -c "$1"', **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `code` by a line of bash that sets its streams; $0 is Python, and $1 the program."""
    program = f"import os, signal, sys\nfrom runtime.cli import command\n{code}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    arguments = ["bash", "-c", shell, sys.executable, program]
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, **{"env": environment, **options}
    )


@pytest.mark.parametrize(("number", "line"), SIGNALS)
def test_a_signal_is_one_line_and_its_status(
    number: signal.Signals, line: str, capsys: Capture
) -> None:
    before = [signal.getsignal(found) for found, _ in SIGNALS]
    cleaned: list[int] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception:
            pytest.fail("no handler of errors stops a signal")
        finally:
            cleaned.append(1)

    assert call(work) == 128 + number
    assert cleaned == [1]
    assert capsys.readouterr().err == f"c: {line}\n"
    assert [signal.getsignal(found) for found, _ in SIGNALS] == before


def test_a_signal_that_the_caller_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nohup` does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "line"), SIGNALS)
def test_a_library_that_replaces_the_exception_of_a_signal(
    number: signal.Signals, line: str, capsys: Capture
) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise ImportError("numpy failed to import") from None

    assert call(work) == 128 + number
    assert capsys.readouterr().err == f"c: stopped by {number.name}\n"


@pytest.mark.parametrize(("number", "line"), SIGNALS)
def test_a_signal_goes_through_an_event_loop(
    number: signal.Signals, line: str, capsys: Capture
) -> None:
    async def wait() -> None:
        asyncio.get_running_loop().call_soon(lambda: os.kill(os.getpid(), number))
        await asyncio.sleep(60)

    assert call(lambda: asyncio.run(wait())) == 128 + number
    assert capsys.readouterr().err == f"c: {line}\n"


CLEANING = """
command._ONE_SIGNAL_SECONDS = {seconds}
@command.command("c")
def main(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), {second})
        print("cleaned", flush=True)
sys.exit(main())
"""


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once(second: str) -> None:
    done = python(CLEANING.format(seconds=-1, second=f"signal.{second}"))
    assert (done.returncode, done.stdout) == (128 + signal.Signals[second], "")


def test_signals_that_come_together_are_one() -> None:
    """As `timeout` and systemd send them."""
    done = python(CLEANING.format(seconds=1e9, second="signal.SIGHUP"))
    assert (done.returncode, done.stdout, done.stderr) == (
        143,
        "cleaned\n",
        "c: stopped by SIGTERM\n",
    )


def test_errors_are_one_line_and_status_1(capsys: Capture) -> None:
    for error, line in (
        (ImageError("x.jpg is odd: mend it"), "x.jpg is odd: mend it"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.bin"),
            "x.bin: No space left on device: free some space",
        ),
        (MemoryError(), "there is not enough memory: "),
    ):

        def work(error: Exception = error) -> None:
            raise error

        assert call(work) == 1
        assert capsys.readouterr().err.startswith(f"c: {line}")
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0)


def test_errors_of_the_system_are_explained() -> None:
    assert command.explain(OSError(errno.EMFILE, "Too many open files")) == (
        "Too many open files: raise the limit for open files (ulimit -n)"
    )
    assert (
        command.explain(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"))
        == "a and b: Invalid cross-device link"
    )
    assert command.explain(OSError("a text of a library")) == "a text of a library"
    assert command.explain(PermissionError(errno.EACCES, "Permission denied", b"x")).startswith(
        "x: Permission denied: change its"
    )


SAYS = """
@command.command("c")
def main(argv):
    for index in range(3):
        command.say(f"line {index}", sys.stdout)
        command.say(f"note {index}", sys.stderr)
    return len(os.listdir(os.curdir)) and 7 if os.path.exists("x") else 0
sys.exit(main())
"""
ALL = "note 0\nnote 1\nnote 2\n"


@pytest.mark.parametrize(
    ("streams", "status", "out", "err"),
    [
        ("", 0, "line 0\nline 1\nline 2\n", ALL),
        ("<&-", 0, "line 0\nline 1\nline 2\n", ALL),
        (">&-", 0, "", ALL),
        ("2>&-", 0, "line 0\nline 1\nline 2\n", ""),
        ("<&- >&- 2>&-", 0, "", ""),
        (
            ">/dev/full",
            1,
            "",
            ALL + "c: lines for standard output were lost: No space left on device\n",
        ),
        ("2>/dev/full", 0, "line 0\nline 1\nline 2\n", ""),
        (">/dev/full 2>/dev/full", 1, "", ""),
        ("> >(exec true)", 0, "", ALL),
        ("2> >(exec true)", 0, "line 0\nline 1\nline 2\n", ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_streams_that_take_nothing_stop_nothing(
    streams: str, status: int, out: str, err: str
) -> None:
    done = python(
        SAYS if "exec" not in streams else "import time\ntime.sleep(0.5)\n" + SAYS,
        f'"$0" -c "$1" {streams}',
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_cannot_be_printed(unbuffered: str) -> None:
    """argparse itself ignores the error of a write that does not wait in a buffer."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

    def run(streams: str) -> subprocess.CompletedProcess[str]:
        code = 'command.command("c")(lambda argv: command.Parser("c").parse_args(sys.argv[1:]))()'
        return python(code, f'"$0" -c "$1" {streams}', env=environment)

    done = run("--help >/dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "c: lines for standard output were lost: No space left on device\n",
    )
    done = run("--wrong 2>/dev/full")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert run("--wrong 2>&-").returncode == 2
    assert run("--help >&-").returncode == 0
    assert run("--help").stdout.startswith("usage: c [-h]\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("name", ["edge_encode", "edge_send", "cloud_decode", "cloud_serve"])
def test_the_help_of_each_command(name: str) -> None:
    shell = f'PYTHONUNBUFFERED=1 "$0" -m runtime.cli.{name} --help >/dev/full'
    done = python("", shell)
    assert done.returncode == 1
    assert done.stderr.endswith("lines for standard output were lost: No space left on device\n")


def test_descriptors_that_are_closed_become_no_files(tmp_path: Path) -> None:
    code = (
        'command.command("c")'
        '(lambda argv: print(open("x", "w").fileno(), file=open("y", "w")) or 0)()'
    )
    python(
        code,
        '"$0" -c "$1" <&- >&- 2>&-',
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int((tmp_path / "y").read_text()) > 2


def test_a_non_blocking_stream_loses_nothing() -> None:
    """Another program may have made it non-blocking."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = (
        'command.command("c")'
        '(lambda argv: [command.say("x" * 999, sys.stdout) for _ in range(500)] and 0)()'
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom runtime.cli import command\n{code}"],
        stdout=writer,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert len(stream.read()) == 500_000
    assert child.wait() == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_characters_that_an_encoding_lacks_become_escapes(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    command.say("caf\udce9 \u65e5 \x1b[31m\r", stream)
    assert isinstance(stream.buffer, io.BytesIO)
    text = stream.buffer.getvalue().decode(encoding)
    assert text == (
        "caf\\udce9 \u65e5 \\x1b[31m\\x0d\n"
        if "utf" in encoding
        else "caf\\udce9 \\u65e5 \\x1b[31m\\x0d\n"
    )


def test_streams_that_are_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command.say("x", None)
    with open(tmp_path / "x", "w") as stream:
        pass
    command.say("x", stream)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ClosedStreamError, match="standard input is closed: name a file"):
        command.standard_input()
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ClosedStreamError, match="standard output is closed: name a file"):
        command.standard_output()
    assert call(lambda: 0) == 0
    assert not command.lost(sys.stdout)


def test_numbers_of_options() -> None:
    whole, part = number_type(int, 1, 4096), number_type(float, 0, 1)
    assert (whole("1"), whole("4096"), part("0.5")) == (1, 4096, 0.5)
    for text in ("0", "4097", "1.5", "nan", "", "9" * 5000):
        with pytest.raises(
            argparse.ArgumentTypeError, match="is not a whole number from 1 to 4,096"
        ):
            whole(text)
    for text in (str(math.nan), "inf", "-0.1", "1e9"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 0 to 1"):
            part(text)
