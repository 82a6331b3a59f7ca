"""The spool: its results and refusals, and a process that dies at each step of its work."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from deliveries import accept

from runtime.delivery.spool import DELIVERED, REFUSED, Spool, key_of
from runtime.errors import (
    DamagedResultsError,
    DamagedSpoolFileError,
    SpoolDiskError,
    SpoolFullError,
    SpoolInUseError,
)


def test_what_is_accepted_outlasts_the_process_oldest_first(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        for number in range(12):
            accept(spool, f"image {number}", bytes([number, 10, 13]))
    with Spool(tmp_path / "spool") as spool:
        entries = spool.pending()
        assert [spool.read(entry) for entry in entries] == [
            (f"image {number}", bytes([number, 10, 13])) for number in range(12)
        ]
        spool.finish(entries[0], DELIVERED, image="image 0")
        assert accept(spool, "later", b"later").number == 13
    with Spool(tmp_path / "spool") as spool:
        assert [entry.number for entry in spool.pending()] == list(range(2, 14))


def test_a_key_has_one_result(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        entry = accept(spool, "a", b"data")
        assert spool.accept("b", b"data") == entry
        result = spool.finish(entry, DELIVERED, image="a", classes=[])
        assert spool.accept("c", b"data") == result
        assert spool.pending() == []
    with Spool(tmp_path) as spool:
        assert spool.accept("d", b"data") == result
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [result]
    assert result["key"] == key_of(b"data")


def test_what_is_refused_is_kept_and_may_be_put_back(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        first, second = accept(spool, "a", b"first"), accept(spool, "b", b"second")
        refused = spool.finish(first, REFUSED, code="unknown_model")
        assert (tmp_path / "refused" / first.name).is_file()
        assert spool.pending() == [second]
        assert spool.accept("a", b"first") == refused
    with Spool(tmp_path) as spool:
        assert spool.pending() == [second]
        assert spool.requeue_refused() == 1
        assert spool.pending() == [first, second]
        assert spool.result(first.key) is None
        assert spool.read(first) == ("a", b"first")
        spool.finish(first, DELIVERED)
    with Spool(tmp_path) as spool:
        assert spool.pending() == [second]
        assert spool.requeue_refused() == 0


def test_the_bound_refuses_new_files_and_drops_none(tmp_path: Path) -> None:
    with Spool(tmp_path, limit=3 * 4096) as spool:
        entries = [accept(spool, str(number), bytes([number]) * 1000) for number in range(3)]
        assert not spool.fits("d", b"d")
        with pytest.raises(
            SpoolFullError,
            match=r"3 feature files in 12288 of 12288 bytes: d is not accepted.*--spool-mb",
        ):
            spool.accept("d", b"d")
        assert spool.pending() == entries
        spool.finish(entries[0], DELIVERED)
        with pytest.raises(SpoolFullError):
            spool.accept("d", b"d" * 5000)
        accept(spool, "d", b"d")
    with Spool(tmp_path, limit=3 * 4096) as spool, pytest.raises(SpoolFullError):
        spool.accept("e", b"e")


def test_two_processes_do_not_share_a_spool(tmp_path: Path) -> None:
    code = f"from runtime.delivery.spool import Spool; Spool({str(tmp_path)!r})"
    with Spool(tmp_path):
        with pytest.raises(SpoolInUseError, match="in use by another edge-send"):
            Spool(tmp_path)
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "SpoolInUseError" in result.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "torn",
    [
        b'{"key": "12',
        b"\0" * 100,
        b'{"key": "' + b"0" * 64 + b'", "status": "delivered", "ti\0\0"}\n',
        b"\0\0\0}\n",
    ],
)
def test_a_torn_last_result_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    with Spool(tmp_path) as spool:
        done = spool.finish(accept(spool, "a", b"a"), DELIVERED)
        entry = accept(spool, "b", b"b")
    whole = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(whole + torn)
    with Spool(tmp_path) as spool:
        assert (tmp_path / "results.jsonl").read_bytes() == whole
        assert spool.result(done["key"]) == done
        assert spool.pending() == [entry]
        spool.finish(entry, DELIVERED)
    with Spool(tmp_path) as spool:
        assert spool.pending() == []


def test_a_damaged_result_among_others_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for data in (b"a", b"b"):
            spool.finish(accept(spool, "a", data), DELIVERED)
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"no result\n" + lines[1])
    with pytest.raises(
        DamagedResultsError, match=r"line 1 of .*results.jsonl is no result: move the file away"
    ):
        Spool(tmp_path)


def test_results_may_be_moved_away(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        refused = accept(spool, "a", b"a")
        spool.finish(refused, REFUSED)
        spool.finish(accept(spool, "b", b"b"), DELIVERED)
        waiting = accept(spool, "c", b"c")
    (tmp_path / "results.jsonl").rename(tmp_path / "taken.jsonl")
    with Spool(tmp_path) as spool:
        assert spool.pending() == [waiting]
        assert (tmp_path / "refused" / refused.name).is_file()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        entry = accept(spool, "a", b"a" * 50)
        path = tmp_path / "pending" / entry.name
        path.write_bytes(path.read_bytes()[:-1] + b"b")
        with pytest.raises(DamagedSpoolFileError, match="encode and send the image again"):
            spool.read(entry)
        path.write_bytes(b"no name\n" + b"a" * 50)
        assert spool.read(entry) == ("?", b"a" * 50)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolDiskError, match="cannot be used"):
        Spool(tmp_path / "file")


def test_refused_files_count_towards_the_bound(tmp_path: Path) -> None:
    with Spool(tmp_path, limit=3 * 4096) as spool:
        entries = [accept(spool, str(number), bytes([number])) for number in range(3)]
        for entry in entries[:2]:
            spool.finish(entry, REFUSED)
        match = (
            r"3 feature files in 12288 of 12288 bytes, 2 of them refused: "
            r"d is not accepted.*or delete what is in refused/"
        )
        with pytest.raises(SpoolFullError, match=match):
            spool.accept("d", b"d")
    (tmp_path / "refused" / entries[0].name).unlink()  # by its owner
    with Spool(tmp_path, limit=3 * 4096) as spool:
        accept(spool, "d", b"d")
        (tmp_path / "refused" / entries[1].name).unlink()
        assert spool.requeue_refused() == 0
        assert len(spool.pending()) == 2


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    (tmp_path / "pending" / f".name.{'0' * 16}.partial").write_bytes(b"half")
    (tmp_path / "pending" / ".folder").mkdir()
    with Spool(tmp_path):
        assert [path.name for path in (tmp_path / "pending").iterdir()] == [".folder"]


class Died(BaseException):
    """The process is killed: no `except Exception` of the code under test catches it."""


class Disk:
    """Counts the calls that change the disk; call number `last`, and all after it, fail."""

    NAMES = ("open", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir")

    def __init__(self, last: int | None = None):
        self.last = last
        self.calls: list[str] = []
        self.real = {name: getattr(os, name) for name in self.NAMES}

    def call(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            self.calls.append(name)
            if self.last is not None and len(self.calls) >= self.last:
                if name == "write" and len(self.calls) == self.last:
                    self.real["write"](args[0], args[1][: len(args[1]) // 2])
                raise Died
            return self.real[name](*args, **keywords)

        return call

    def watched(self) -> AbstractContextManager[Any]:
        return mock.patch.multiple(os, **{name: self.call(name) for name in self.NAMES})


def test_what_is_promised_is_flushed_first(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        disk = Disk()
        with disk.watched():
            entry = accept(spool, "a", b"a" * 5000)
        # The feature file is written through a file object, which does not call os.write.
        assert disk.calls == ["open", "fsync", "replace", "open", "fsync"]
        disk = Disk()
        with disk.watched():
            spool.finish(entry, DELIVERED)
        assert disk.calls == ["write", "fsync", "unlink"]


def test_dying_at_every_step(tmp_path: Path) -> None:
    sent = [b"one" * 20, b"two" * 20, b"three" * 20]
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        accepted, recorded = [], []
        disk = Disk(last)
        try:
            with disk.watched():
                spool = Spool(folder)
                for data in sent:
                    accept(spool, data.decode(), data)
                    accepted.append(data)
                for entry, status in zip(
                    spool.pending(), (DELIVERED, REFUSED, REFUSED), strict=True
                ):
                    spool.finish(entry, status)
                    recorded.append(entry.key)
                spool.requeue_refused()
                for entry in spool.pending():
                    spool.finish(entry, DELIVERED)
        except Died:
            pass
        for handle in _open_in(folder):  # as the kernel does for a killed process
            os.close(handle)
        with Spool(folder) as spool:
            history: dict[str, list[str]] = {key_of(data): [] for data in sent}
            for line in (folder / "results.jsonl").read_text().splitlines():
                history[json.loads(line)["key"]].append(json.loads(line)["status"])
            waiting = [spool.read(entry)[1] for entry in spool.pending()]
            refused = [file.name[13:77] for file in (folder / "refused").iterdir()]
            for data in accepted:
                status = history[key_of(data)][-1:]
                assert (data in waiting) == (status in ([], ["requeued"])), last
                assert (key_of(data) in refused) == (status == ["refused"]), last
            assert all(statuses.count("delivered") <= 1 for statuses in history.values()), last
            assert all(history[key] for key in recorded), last
            assert set(waiting) <= set(sent)
            assert waiting == sorted(waiting, key=sent.index)
            assert not [
                file for file in (folder / "pending").iterdir() if file.name.startswith(".")
            ]
            # The spool still works.
            for data in sent:
                spool.accept("again", data)
            spool.requeue_refused()
            for entry in spool.pending():
                spool.finish(entry, DELIVERED)
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        assert sorted(line["key"] for line in lines if line["status"] == "delivered") == sorted(
            map(key_of, sent)
        ), last
        if len(disk.calls) < last:
            break
    assert last > 30


def _open_in(folder: Path) -> list[int]:
    handles = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if folder in link.readlink().parents:
                handles.append(int(link.name))
    return handles
