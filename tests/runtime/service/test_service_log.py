"""The service's log with repeated lines, a full disk, and a closed stream."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from runtime.service import log as serve_log


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")

    flush = None  # type: ignore[assignment]


@pytest.fixture
def lost() -> list[None]:
    return []


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(lost: list[None], monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> str:
    """What is written of three lines, two of them the same."""
    monkeypatch.setattr(sys, "stderr", stream)
    log = serve_log.Log("INFO", lambda: lost.append(None))
    for text in ("one", "one", "two"):
        logging.getLogger("runtime.test").warning(text)
    log._listener.stop()
    return stream.getvalue() if stream else ""


def test_lines_are_json_and_a_repeated_one_is_written_once(
    lost: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in written(lost, monkeypatch, io.StringIO()).splitlines()]
    assert [line["message"] for line in lines] == ["one", "two"]
    assert (lines[0]["level"], lines[0]["logger"]) == ("warning", "runtime.test")
    assert lost == []


@pytest.mark.parametrize("stream", [Full(), None], ids=["full", "closed"])
def test_lines_that_cannot_be_written_are_counted(
    lost: list[None], monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    assert written(lost, monkeypatch, stream) == ""
    assert len(lost) == 2


def record(second: float, text: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "uvicorn.error", "msg": text, **extra})
    made.created = second
    return made


def test_the_next_line_says_how_many_were_dropped() -> None:
    repeats = serve_log.Repeats()
    records = [record(100 + second / 10, "no file") for second in range(25)]
    assert [index for index, entry in enumerate(records) if repeats.filter(entry)] == [0, 10, 20]
    assert [records[index].repeated for index in (0, 10, 20)] == [0, 9, 9]  # type: ignore[attr-defined]
    assert repeats.filter(record(102.5, "another"))
    assert all(repeats.filter(record(102.5, "a request", request={})) for _ in range(3))


def test_the_memory_of_past_lines_has_a_limit() -> None:
    repeats = serve_log.Repeats()
    assert all(repeats.filter(record(100, str(number))) for number in range(1000))
    assert len(repeats._last) <= serve_log._MAX_REMEMBERED
