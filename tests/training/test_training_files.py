"""Output files of training: written whole or not at all, and never in place of an input; what
killed processes leave behind is removed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from runtime import files as runtime_files
from training import files


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


def test_a_new_file_has_the_umasks_permissions_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "deep" / "new", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "deep" / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "deep" / "new").chmod(0o600)
    files.write_atomically(tmp_path / "deep" / "new", b"2")
    assert (tmp_path / "deep" / "new").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep" / "new").read_bytes() == b"2"


def test_links_are_followed_and_devices_and_pipes_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real/file"), ("null", "/dev/null"), ("pipe_link", "pipe")):
        (tmp_path / name).symlink_to(target)
    files.write_atomically(tmp_path / "link", b"through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"through"
    files.write_atomically(tmp_path / "null", b"gone")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_atomically(tmp_path / "pipe_link", b"piped")
    reader.join()
    assert found == [b"piped"]


def test_a_descriptor_is_written_into(tmp_path: Path) -> None:
    code = (
        "from training.files import write_atomically\n"
        "print('first', flush=True); write_atomically('/dev/stdout', b'second')"
    )
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_bytes() == b"first\nsecond"
    assert Path("/dev/stdout").is_symlink()


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError), files.atomic_file(tmp_path / "file") as file:
        file.writelines([b"new", "no bytes"])
    assert (tmp_path / "file").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_line_whatever_the_library_raises(tmp_path: Path) -> None:
    """/dev/full gives ENOSPC, which torch turns into a RuntimeError, as on a full disk."""
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(
        files.WriteError, match=r"full cannot be written: No space left on device\. Free space"
    ) as caught:
        files.write_atomically(tmp_path / "full", b"1")
    assert "\n" not in str(caught.value)
    refused = pytest.raises(files.WriteError, match=r"last.pt cannot be written: No space left")
    with (
        refused,
        files.atomic_file(tmp_path / "last.pt"),
        open("/dev/full", "r+b", buffering=0) as full,
    ):
        torch.save({"a": torch.zeros(9)}, full)
    # Other errors keep their class.
    with pytest.raises(RuntimeError, match="other"), files.atomic_file(tmp_path / "last.pt"):
        raise RuntimeError("other")
    with pytest.raises(files.WriteError, match="it is a folder"):
        files.write_atomically(tmp_path, b"1")


def test_a_limit_on_the_size_of_files_is_a_write_error(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\nfrom training.files import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with atomic_file(sys.argv[1]) as file: torch.save({'a': torch.zeros(100_000)}, file)\n"
        "except WriteError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "last.pt")], capture_output=True, text=True
    )
    assert "last.pt cannot be written: File too large." in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweeper", [files.write_atomically, runtime_files.write_atomically])
def test_what_a_killed_process_left_is_swept_by_training_and_by_runtime(
    tmp_path: Path, sweeper
) -> None:
    code = (
        "import os, signal, sys\nfrom training.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "last.pt")], check=False)
    assert len(leftovers(tmp_path)) == 1
    with files.atomic_file(tmp_path / "living"):
        sweeper(tmp_path / "other", b"1")
        assert [name.split(".")[1] for name in leftovers(tmp_path)] == ["living"]


def test_outputs_that_cannot_be_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "hard")
    files.check_output(tmp_path / "new" / "deep" / "file")
    files.check_output("/dev/null", ["/dev/null"])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(files.OutputError, match=r"loop cannot be written \(Too many levels"):
        files.check_output(tmp_path / "loop")
    for name in ("file", "link", "hard"):
        with pytest.raises(files.SameOutputError, match="would replace the input"):
            files.check_output(tmp_path / name, [tmp_path / "none", tmp_path / "file"])
    for output, text in (
        (tmp_path, "is a folder: name a file in it"),
        (f"{tmp_path}/new/", "is a folder"),
        (tmp_path / "file" / "x", "file is not a folder"),
    ):
        with pytest.raises(files.OutputError, match=text):
            files.check_output(output)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for output in (tmp_path / "new", tmp_path / "file", "/dev/null"):
        with pytest.raises(files.OutputError, match="cannot be written"):
            files.check_output(output)


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    files.check_space(tmp_path / "new" / "run", 1)
    with pytest.raises(
        files.OutputError, match=r"bytes free, and at least 1,152,921,504,606,846,976 are needed"
    ):
        files.check_space(tmp_path / "new", 1 << 60)


def test_both_copies_know_each_others_temporaries() -> None:
    assert files._TEMPORARY.pattern == runtime_files._TEMPORARY.pattern
