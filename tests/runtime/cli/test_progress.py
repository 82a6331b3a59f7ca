"""The progress bar: on a terminal only, and a terminal that goes away stops nothing."""

import sys

import pytest
from commands import Capture

from runtime.cli.progress import Progress


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pytest.importorskip("tqdm", reason="tqdm comes with the train extra")
    with Progress(3, "image") as progress:
        assert not progress.shown, "standard error is no terminal here"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(1, "image") as progress:
        assert not progress.shown
    with Progress(3, "image") as progress:
        assert progress.shown
        progress.advance(2)
        progress.say("a line", sys.stderr)
        progress.say("a result", sys.stdout)
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "a line\n" in captured.err
    assert "2/3" in captured.err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(3, "image") as progress:
        assert not progress.shown


def test_a_terminal_that_goes_away_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("tqdm", reason="tqdm comes with the train extra")

    class Terminal:
        gone = False

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return len(text)

        def flush(self) -> None:
            self.write("")

    for begin in (True, False):
        terminal = Terminal()
        terminal.gone = not begin
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(1000, "image") as progress:
            assert progress.shown is begin
            terminal.gone = True
            for _ in range(1000):
                progress.advance()
            progress.say("a line", sys.stderr)
            progress.say("a result", sys.stdout)
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(3, "image") as progress:
        progress.say("a line", sys.stderr)
    assert capsys.readouterr().out == "a result\na result\n"
