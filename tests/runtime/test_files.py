"""Output files: whole or not at all, never in place of an input or device; temporary files."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from runtime import files
from runtime.errors import OutputError, SameOutputError

pytestmark = pytest.mark.skipif(
    not hasattr(os, "mkfifo"), reason="pipes and devices have names on POSIX systems"
)


@pytest.fixture(autouse=True)
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are swept once per process: let each test begin as a new process."""
    monkeypatch.setattr(files, "_swept", set())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_another_as_a_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    files.write_atomically(path, b"before")
    path.chmod(0o640)
    with files.atomic_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"before")

    def write_and_fail() -> None:
        with files.atomic_file(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["x.bin"]


def test_an_error_names_the_file_and_not_its_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(FileNotFoundError) as missing:
        files.write_atomically(tmp_path / "no" / "x.bin", b"")
    assert missing.value.filename == str(tmp_path / "no" / "x.bin")
    with pytest.raises(OSError, match=r"x\.bin") as full, files.atomic_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(path)
    with pytest.raises(OSError, match="other") as other, files.atomic_file(path):
        raise OSError(errno.EACCES, "Permission denied", "other")
    assert other.value.filename == "other"

    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"x\.bin"):
        files.write_atomically(path, b"x")
    assert names(tmp_path) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/next")
    (tmp_path / "there" / "next").symlink_to("../there/x.bin")  # which does not exist yet
    for data in (b"1", b"2"):
        files.write_atomically(tmp_path / "link", data)
        assert (tmp_path / "there" / "x.bin").read_bytes() == data
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["next", "x.bin"]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="symbolic links"):
        files.write_atomically(tmp_path / "circle", b"")


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to(os.devnull)
    for name in (os.devnull, tmp_path / "null"):
        files.write_atomically(name, b"x")
        assert Path(os.devnull).is_char_device()
    assert names(tmp_path) == ["null"]


def test_a_pipe_gets_all_data_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with suppress(RuntimeError), files.atomic_file(pipe) as file:
        file.write(b"half")
        raise RuntimeError
    with files.atomic_file(pipe) as file:
        file.write(b"whole")
    reader.join()
    assert got == [b"whole"]
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe", "temporary"]
    assert names(tmp_path / "temporary") == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors have names in /proc")
def test_a_descriptor_keeps_its_position(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        file.write(b"before ")
        file.flush()
        name = f"/dev/fd/{file.fileno()}"
        assert files.own_descriptor(name) == file.fileno()
        files.write_atomically(name, b"after")
        file.write(b".")
    assert (tmp_path / "x").read_bytes() == b"before after."
    assert files.own_descriptor("/dev/stdout") == 1
    assert files.own_descriptor(tmp_path / "x") is None


def test_a_file_that_may_not_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"kept")
    path.chmod(0o400)
    access = os.access
    # Patched, because root may write everything.
    monkeypatch.setattr(os, "access", lambda name, mode: Path(name) != path and access(name, mode))
    with pytest.raises(PermissionError, match=r"x\.bin"):
        files.write_atomically(path, b"lost")
    with pytest.raises(OutputError, match=r"x\.bin cannot be written \(Permission denied\)"):
        files.check_output(path)
    assert path.read_bytes() == b"kept"


HOLD = """
import sys
from runtime import files
with files.{made}({name!r}):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("made", ["atomic_file", "temporary_folder"])
def test_files_of_killed_processes_are_swept_and_no_others(tmp_path: Path, made: str) -> None:
    target = str(tmp_path / "x.bin")
    kept = [".x.bin.0123456789abcdef", ".hidden", "x.0123456789abcdef.partial", ".x.0123.partial"]
    for name in kept:
        (tmp_path / name).touch()
    code = HOLD.format(made=made, name=target)
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        assert len(names(tmp_path)) == len(kept) + 2
        files.sweep(tmp_path)
        assert len(names(tmp_path)) == len(kept) + 2, "their writers still run"
        holders[0].kill()
        holders[0].wait()
        files.sweep(tmp_path)
        assert len(names(tmp_path)) == len(kept) + 2, "once in a process"
        files._swept.clear()
        files.write_atomically(tmp_path / "y.bin", b"")
        assert len(names(tmp_path)) == len(kept) + 2, "one is gone, and y.bin is new"
    finally:
        for holder in holders:
            holder.communicate()
    assert set(kept) < set(names(tmp_path))
    assert set(names(tmp_path)) - set(kept) == {"y.bin"} | (
        {"x.bin"} if made == "atomic_file" else set()
    )


def test_a_temporary_folder_is_renamed_or_removed(tmp_path: Path) -> None:
    with files.temporary_folder(tmp_path / "made") as folder:
        (folder / "x").touch()
        os.replace(folder, tmp_path / "made")
    with suppress(RuntimeError), files.temporary_folder(tmp_path / "failed") as folder:
        (folder / "x").touch()
        raise RuntimeError
    assert names(tmp_path) == ["made"]


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path: Path) -> None:
    image, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    image.touch()
    other.touch()
    (tmp_path / "hard").hardlink_to(image)
    (tmp_path / "soft").symlink_to("a.jpg")
    (tmp_path / "folder").symlink_to(".")
    for name in ("a.jpg", "hard", "soft", "folder/a.jpg", "folder/./a.jpg"):
        with pytest.raises(
            SameOutputError, match=r"would replace the input .*a\.jpg.*: name another output"
        ):
            files.refuse_same_file(f"{tmp_path}/{name}", [other, tmp_path / "missing", image])
    with pytest.raises(SameOutputError, match=r"which is .*hard"):
        files.refuse_same_file(tmp_path / "hard", [image])
    files.refuse_same_files([other, tmp_path / "new"], [image, "no\0name"])
    files.refuse_same_file(os.devnull, [os.devnull])


def test_two_outputs_that_are_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to("sub")
    (tmp_path / "x").symlink_to("sub/new")
    for pair in (("sub/a", "linked/a"), ("x", "sub/new")):
        with pytest.raises(SameOutputError, match=r"sub/(a|new) .*are one file|are one file"):
            files.refuse_same_files([tmp_path / name for name in pair], [])
    files.refuse_same_files([tmp_path / "sub" / "a", tmp_path / "a", "/dev/null", "/dev/null"], [])


def test_a_file_on_standard_input_is_an_input(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    code = "import sys\nfrom runtime import files\nfiles.refuse_same_file(sys.argv[1], ['-'])"
    with open(tmp_path / "a.jpg", "rb") as image:
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.jpg"],
            stdin=image,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "would replace the input on standard input, which is" in done.stderr


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("", None, "is empty"),
        ("folder", Path.mkdir, "is a folder: name a file in it"),
        ("new/", None, "is a folder: name a file in it"),
        (
            "circle",
            lambda path: path.symlink_to(path),
            r"cannot be written \(Too many levels of symbolic links\)",
        ),
        ("s", make_socket, "cannot be written into: name another"),
        (
            "file/x",
            lambda path: path.parent.touch(),
            r"cannot be written \(Not a directory\)|is not a folder",
        ),
        ("x" * 300, None, r"cannot be written \(File name too long\)"),
    ],
)
def test_a_name_that_no_file_can_be_written_under(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], None] | None,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path / name)
    with pytest.raises(OutputError, match=reason):
        files.check_output(name)


def test_names_that_files_can_be_written_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("x", "new/deep/x", "pipe", "dangling", os.devnull):
        files.check_output(name)
    files.check_folder("new/deep")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        files.check_folder("file/deep")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written into: change its permissions"):
        files.check_folder("new/deep")
