"""Export's outputs: checked before work, removed when it is stopped, and never over an input."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export import cli as command
from export import inputs as export_inputs
from export import stages

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(
    tmp_path: Path,
    random_checkpoint: Path,
    random_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    ready_graphs: None,
) -> Path:
    """A folder with a checkpoint and an older bundle, where exporting graphs takes no time."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(random_checkpoint, "c.safetensors")
    shutil.copytree(random_bundle, "old")
    return tmp_path


def export(*arguments: str) -> int:
    return command.main(["ours_n0", "--checkpoint", "c.safetensors", *arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "c.safetensors"], "exists and is not a bundle"),
        (["--out", "c.safetensors/new"], "c.safetensors is not a folder"),
        (
            ["--out", "new", "--refit", "old", "--counts", "old"],
            "old is a folder: name a file in it",
        ),
        (
            ["--out", "new", "--refit", "old", "--counts", "link"],
            "would replace the input c.safetensors, which is link",
        ),
        (
            ["--out", "new", "--refit", "old", "--counts", "c.ranges.json"],
            "counts and ranges would both be c.ranges.json",
        ),
        (
            [
                "--out",
                "new",
                "--calibrate",
                "old",
                "--ranges",
                "labels.txt",
                "--labels",
                "labels.txt",
            ],
            "would replace the input labels.txt",
        ),
        (
            ["--out", "new", "--validate", "old", "--ranges", "c.safetensors/x"],
            "c.safetensors is not a folder",
        ),
        (
            ["--out", "old", "--refit", "old", "--counts", "old/counts.json"],
            "old/counts.json lies in old",
        ),
    ],
)
def test_outputs_are_refused_before_the_checkpoint_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], text: str
) -> None:
    monkeypatch.setattr(export_inputs, "load_model", lambda *_: pytest.fail("work was done"))
    Path("link").symlink_to("c.safetensors")
    Path("labels.txt").touch()
    assert export(*arguments) == 1
    assert text in capsys.readouterr().err
    assert names(place) == ["c.safetensors", "labels.txt", "link", "old"]


def test_a_mount_point_and_a_full_disk_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    assert export("--out", "new") == 1
    assert "new has 0 bytes free" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    assert (
        command.main(
            ["ours_n0", "--checkpoint", str(place / "c.safetensors"), "--out", str(place / "old")]
        )
        == 1
    )
    assert "is a mount point" in capsys.readouterr().err


def test_a_link_to_a_bundle_keeps_pointing_at_it_and_has_the_umasks_permissions(
    place: Path,
) -> None:
    Path("link").symlink_to("old")
    before = (place / "old" / "manifest.json").stat().st_ino
    mask = os.umask(0o027)
    try:
        assert export("--out", "link", "--labels", "link/labels.txt") == 0
    finally:
        os.umask(mask)
    assert (place / "old").stat().st_mode & 0o777 == 0o750
    assert Path("link").is_symlink()
    assert (place / "old" / "manifest.json").stat().st_ino != before
    assert names(place) == ["c.safetensors", "link", "old"]


def stop(number: int) -> Callable:
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "export: interrupted\n"),
        (signal.SIGTERM, 143, "export: stopped by SIGTERM\n"),
        (signal.SIGHUP, 129, "SIGHUP\n"),
    ],
)
@pytest.mark.parametrize("moment", ["export.stages.export_cloud", "export.bundle._sha256"])
def test_a_signal_is_one_line_and_leaves_the_old_bundle_and_nothing_else(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    number: int,
    status: int,
    said: str,
    moment: str,
) -> None:
    monkeypatch.setattr(moment, stop(number))
    before = (place / "old" / "manifest.json").read_bytes()
    assert export("--out", "old") == status
    error = capsys.readouterr().err
    assert error.endswith(said)
    assert error.count("\n") == 1
    assert names(place) == ["c.safetensors", "old"]
    assert (place / "old" / "manifest.json").read_bytes() == before


def test_a_bundle_that_is_in_the_way_comes_back_when_the_new_one_cannot_take_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    before = (place / "old" / "manifest.json").read_bytes()
    monkeypatch.setattr(os, "rename", fail_once)
    assert export("--out", "old") == 130
    assert len(calls) == 3
    assert (place / "old" / "manifest.json").read_bytes() == before
    assert names(place) == ["c.safetensors", "old"]


def test_what_a_killed_export_left_is_swept_by_the_next(place: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from runtime.files import temporary_folder\n"
        "with temporary_folder('new') as work:\n"
        "    (work / 'edge.onnx').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(names(place)) == 3
    assert export("--out", "new") == 0
    assert names(place) == ["c.safetensors", "new", "old"]


def test_a_disk_that_gets_full_names_the_bundle_and_a_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stages, "export_cloud", full)
    assert export("--out", "new") == 1
    remedy = "new cannot be written: free space there, or name another folder with --out"
    assert f"export: {remedy}: [Errno 28]" in capsys.readouterr().err
    assert names(place) == ["c.safetensors", "old"]
