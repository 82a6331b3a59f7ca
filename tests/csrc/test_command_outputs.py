"""Outputs of edge-encode in C++: whole or not at all, also after signals and on full disks."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cpp_command import GOLF_BALL, JPEGS, Run

from runtime.codec.feature_file import parse
from runtime.files import sweep


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["a.jpg"], "a.jpg"),
        (["a.jpg"], "hard.bin"),
        (["a.jpg"], "soft"),
        (["hard.bin"], "."),
        (["a.jpg"], "copy/edge.tables"),
        (["-"], "a.jpg"),
    ],
)
def test_an_output_that_is_an_input_is_refused_before_work(
    program: Path, bundle: Path, tmp_path: Path, inputs: list[str], output: str
) -> None:
    (tmp_path / "copy").mkdir()
    for name in ("edge.tables", "edge.weights"):
        (tmp_path / "copy" / name).write_bytes((bundle / name).read_bytes())
    image = tmp_path / "a.jpg"
    image.write_bytes(JPEGS["1x1"])
    (tmp_path / "hard.bin").hardlink_to(image)
    (tmp_path / "soft").symlink_to("a.jpg")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with open(image, "rb") as stream:
        done = subprocess.run(
            [program, *inputs, "-o", output, "--bundle", "copy"],
            stdin=stream,
            capture_output=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 1
    assert b"the output would replace the input" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_outputs_that_are_one_file_are_refused(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.bin").symlink_to("b.bin")
    done = run("photos", "-o", "out")
    assert done.returncode == 1
    assert b"out/a.bin and out/b.bin are one file: name another" in done.stderr
    assert not (tmp_path / "out" / "b.bin").exists()


def test_outputs_that_cannot_be_written(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "b.bin").mkdir(parents=True)
    (out / "a.bin").symlink_to("/dev/full")
    done = run("photos", "-o", "out")
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    full = "cannot write out/a.bin: No space left on device: free some space"
    assert f"edge-encode: photos/a.jpeg: {full}" in lines
    assert "edge-encode: photos/b.JPG: cannot write out/b.bin: Is a directory" in lines
    assert (out / "sub" / "c.d.bin").exists(), "the other images are encoded"
    (tmp_path / "file").touch()
    for image, output, text in (
        ("photos", "file/out/", "is not a folder, so no files can be written into it: name anoth"),
        (GOLF_BALL, "file/out/x.bin", "is not a folder, so no files can be written into it: name"),
        (GOLF_BALL, "/proc/version", "/proc/version"),
    ):
        done = run(image, "-o", output)
        assert done.returncode == 1
        assert text in done.stderr.decode()
        assert done.stdout == b"", "refused before any work"


def test_a_file_is_replaced_whole_and_keeps_its_mode(run: Run, tmp_path: Path) -> None:
    target, link = tmp_path / "feat.bin", tmp_path / "link"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to("feat.bin")
    assert run("-", "-o", "link", stdin=b"no image").returncode == 1
    assert target.read_bytes() == b"before"
    assert run(GOLF_BALL, "-o", "link").returncode == 0
    assert link.is_symlink()
    assert parse(target.read_bytes()).width == 224
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feat.bin", "link"]


def test_a_full_disk(program: Path, bundle: Path, tmp_path: Path) -> None:
    command = [program, GOLF_BALL, "--bundle", bundle]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, "-o", "-"], stdout=full, stderr=-1, check=False)
        assert done.returncode == 1
        assert b"cannot write standard output: No space left on device" in done.stderr
        target = tmp_path / "feat.bin"
        done = subprocess.run([*command, "-o", target], stdout=full, stderr=-1, check=False)
        assert done.returncode == 1
        assert b"lines for standard output were lost: No space left on device" in done.stderr
        assert target.exists(), "the report is lost, and not the feature file"
    # A limit on the size of files ends a write as a full disk does, in the middle.
    target.unlink()
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 0; exec "$@" > /dev/null', "-", *command]
    done = subprocess.run([*limited, "-o", target], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"File too large: raise the limit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe(program: Path, bundle: Path, tmp_path: Path, photos: Path) -> None:
    command = [program, "--bundle", bundle]

    def into_closed(*arguments: str) -> tuple[int, bytes]:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*command, *arguments], stdout=writer, stderr=-1, cwd=tmp_path, check=False
        )
        os.close(writer)
        return done.returncode, done.stderr

    status, text = into_closed("photos/a.jpeg", "-o", "-")
    assert status == 1
    assert b"photos/a.jpeg: cannot write standard output: Broken pipe" in text
    # A reader of reports that has seen enough, as `head` has, is no error.
    status, text = into_closed("photos", "-o", "out")
    assert status == 0
    assert b"Broken pipe" not in text
    assert len(list((tmp_path / "out").rglob("*.bin"))) == 4
    assert into_closed("--help")[0] == 0


def test_closed_streams(program: Path, bundle: Path, tmp_path: Path) -> None:
    line = f'"$0" "$@" --bundle "{bundle}" 0<&- 1>&-'
    command = ["bash", "-c", line, program]
    for arguments, status, text in (
        (["-", "-o", "x.bin"], 1, b"standard input is closed: name a file"),
        ([GOLF_BALL, "-o", "-"], 1, b"standard output is closed: name a file"),
        ([GOLF_BALL, "-o", "x.bin"], 0, b""),
    ):
        done = subprocess.run(
            [*command, *arguments], stderr=subprocess.PIPE, cwd=tmp_path, check=False
        )
        assert done.returncode == status, done.stderr
        assert text in done.stderr
    assert parse((tmp_path / "x.bin").read_bytes()).width == 224


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGINT, "edge-encode: interrupted"),
        (signal.SIGTERM, "edge-encode: stopped by SIGTERM"),
        (signal.SIGHUP, "edge-encode: stopped by SIGHUP"),
    ],
)
def test_a_signal(
    program: Path, bundle: Path, tmp_path: Path, number: signal.Signals, text: str
) -> None:
    # It waits for standard input, after a first image.
    command = [program, GOLF_BALL, "-", "-o", "out", "--bundle", bundle]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) and None,
    ) as process:
        assert process.stdout is not None
        assert b"golf_ball.bin" in process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err.decode().splitlines() == [text]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["golf_ball.bin"]


def test_a_signal_while_a_file_is_written_leaves_no_temporary_file(
    program: Path, bundle: Path, tmp_path: Path
) -> None:
    """Signals at many moments: the target is whole or missing, and nothing else is left."""
    whole = None
    for step in range(30):
        target = tmp_path / f"{step}.bin"
        with subprocess.Popen(
            [program, GOLF_BALL, "-o", target, "--bundle", bundle],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(0.002 * step)
            process.terminate()
        assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        if target.exists():
            whole = whole or target.read_bytes()
            assert target.read_bytes() == whole
    assert all(path.suffix == ".bin" for path in tmp_path.iterdir())


def test_its_temporary_file_is_locked_as_pythons_is(
    program: Path, bundle: Path, tmp_path: Path
) -> None:
    """So runtime.files.sweep removes what a killed process left, and nothing that is in use."""
    left = tmp_path / ".feat.bin.0123456789abcdef.partial"
    left.touch()
    with open(left) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(
            [program, GOLF_BALL, "-o", tmp_path / "feat.bin", "--bundle", bundle], check=False
        )
        assert done.returncode == 0
        assert left.exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["feat.bin"]
