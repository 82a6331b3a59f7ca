"""The spool on a disk that is full: nothing is lost, and results can still be recorded."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from deliveries import accept

from runtime.delivery.reserve import Reserve
from runtime.delivery.spool import DELIVERED, REFUSED, Spool
from runtime.errors import SpoolDiskError


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        kept = accept(spool, "kept", b"kept")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A write beyond 60 bytes fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
        try:
            with pytest.raises(
                SpoolDiskError, match=r"cannot be written, new is not accepted: .*File too large"
            ):
                spool.accept("new", b"n" * 100)
            with pytest.raises(
                SpoolDiskError, match=r"results.jsonl cannot be written, .* stays in the spool"
            ):
                spool.finish(kept, DELIVERED)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert spool.pending() == [kept]
        assert [file.name for file in (tmp_path / "pending").iterdir()] == [kept.name]
        # The beginning of a line, which the next line replaces.
        assert (tmp_path / "results.jsonl").stat().st_size == 60
        spool.finish(kept, DELIVERED)
    with Spool(tmp_path) as spool:
        assert spool.pending() == []
        assert spool.result(kept.key)


class FullDisk:
    """A disk with room for `room` more blocks than the spool's files take; names take none."""

    def __init__(self, folder: Path, room: int = 0):
        self.folder, self.write, self.full = folder, os.write, self.taken(folder) + room

    @staticmethod
    def taken(folder: Path) -> int:
        return sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())

    def os_write(self, handle: int, data: bytes) -> int:
        size = os.fstat(handle).st_size
        if self.taken(self.folder) - -(-size // 4096) + -(-(size + len(data)) // 4096) > self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(handle, data)


def test_a_full_disk_is_drained_from_the_reserve(tmp_path: Path) -> None:
    """Results take blocks of the reserve, and each delivered file gives one back."""
    with Spool(tmp_path) as spool:
        entries = [accept(spool, str(number), bytes([number]) * 3000) for number in range(60)]
        reserve = (tmp_path / "reserve").stat().st_size
        assert reserve == 64 * 4096
        disk = FullDisk(tmp_path)
        with mock.patch.object(os, "write", disk.os_write):
            for entry in entries[:20]:
                spool.finish(entry, REFUSED, message="x" * 500)  # gives no block back
            for entry in entries[20:]:
                spool.finish(entry, DELIVERED, classes=["x" * 500])
        assert spool.pending() == []
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 60
    with Spool(tmp_path) as spool:
        assert (tmp_path / "reserve").stat().st_size == reserve


def test_a_reserve_that_is_used_up_keeps_what_waits(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        kept = accept(spool, "kept", b"kept")
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch.object(os, "write", side_effect=full),
            pytest.raises(SpoolDiskError, match=r"stays in the spool: .*No space left"),
        ):
            spool.finish(kept, DELIVERED)
        assert (tmp_path / "reserve").stat().st_size == 0
        assert spool.pending() == [kept]
        # The disk is still full: what could not be recorded is not accepted.
        with (
            mock.patch.object(Reserve, "fill"),
            pytest.raises(SpoolDiskError, match=r"new is not accepted: .*No space left"),
        ):
            spool.accept("new", b"new")
        accept(spool, "new", b"new")
        spool.finish(kept, DELIVERED)


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of one megabyte, in a mount namespace of its own, if that is allowed."""
    code = f"""
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", {str(tmp_path)!r}], check=True)
from runtime.errors import SpoolDiskError
from runtime.delivery.spool import DELIVERED, REFUSED, Spool
folder = Path({str(tmp_path)!r})
with Spool(folder / "spool") as spool:
    count = 0
    try:
        while True:
            spool.accept(str(count), count.to_bytes(2, "big") * 1500)
            count += 1
    except SpoolDiskError as error:
        assert "No space left" in str(error), error
with Spool(folder / "spool") as spool:
    entries = spool.pending()
    assert len(entries) == count > 100, count
    for index, entry in enumerate(entries):
        spool.finish(entry, REFUSED if index < 50 else DELIVERED, message="x" * 600)
    assert spool.requeue_refused() == 50
print(count)
"""
    command = [
        "unshare",
        "--mount",
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        sys.executable,
        "-c",
        code,
    ]
    probe = subprocess.run(
        [*command[:-3], "mount", "-t", "tmpfs", "none", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr!r}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
