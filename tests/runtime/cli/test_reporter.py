"""Lines from a thread of their own: in order, limited in number, and never waited for forever."""

import os
import sys
from unittest import mock

import pytest

from runtime.cli import reporter
from runtime.cli.reporter import Reporter


def test_lines_appear_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Reporter("image")
    lines.expect(3)
    for number in range(3):
        lines.say(f"line {number}", sys.stdout)
        lines.advance()
    lines.say("nowhere", None)
    assert lines.close()
    assert lines.lost == 0
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\n"


def test_a_reader_that_does_not_read_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    lines = Reporter("image")
    with (
        open(writer, "w") as file,
        mock.patch.object(reporter, "_PATIENCE", 0.2),
        mock.patch.object(reporter, "_MAX_LINES", 5),
    ):
        for number in range(40):
            lines.say(f"{number} {'x' * 100_000}", file)
        assert not lines.close()
        assert 30 <= lines.lost <= 40, "a few wait in the queue, none fits the pipe"
        os.set_blocking(reader, False)
        while lines._thread.is_alive():
            try:
                os.read(reader, 1 << 16)
            except BlockingIOError:
                lines._thread.join(0.01)
    os.close(reader)
