"""edge-encode and cloud-decode with streams that are closed, full, or named as files."""

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import GOLF_BALL, Capture, command, shell

from runtime.cli import cloud_decode as cloud_cli

pytestmark = pytest.mark.usefixtures("default_bundle")


def test_logits_into_devices_and_folders(feat: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cloud_cli.main([str(feat), "--logits", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()
    assert cloud_cli.main([str(feat), "--logits", str(tmp_path)]) == 1
    assert "is a folder: name a file in it" in capsys.readouterr().err
    assert cloud_cli.main([str(feat), "--logits", "/dev/full"]) == 1
    assert "cannot write the logits: /dev/full: No space left on device" in capsys.readouterr().err


def test_standard_output_by_its_name_has_no_report(feat: Path, feature_bytes: bytes) -> None:
    encoded = command("edge_encode", str(GOLF_BALL), "-o", "/dev/stdout")
    assert (encoded.returncode, encoded.stdout) == (0, feature_bytes)
    assert b"-> /dev/stdout: " in encoded.stderr
    logits = command("cloud_decode", str(feat), "--logits", "/dev/stdout")
    assert np.load(io.BytesIO(logits.stdout)).shape == (1, 10)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_reports_that_nobody_reads_stop_no_encoding(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in "abc":
        shutil.copy(GOLF_BALL, tmp_path / "photos" / f"{name}.jpg")
    for index, (streams, status, err) in enumerate(
        (
            ("<&- >&- 2>&-", 0, ""),
            ("2>&1 | exec true; exit ${PIPESTATUS[0]}", 0, ""),
            (
                ">/dev/full",
                1,
                "edge-encode: lines for standard output were lost: No space left on device\n",
            ),
        )
    ):
        out = tmp_path / f"out{index}"
        done = shell(
            f'"$0" -m runtime.cli.edge_encode "$1" -o "$2" {streams}', tmp_path / "photos", out
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, "", err)
        assert sorted(path.name for path in out.iterdir()) == ["a.bin", "b.bin", "c.bin"]


def test_a_closed_stream_that_is_needed_is_refused(feat: Path) -> None:
    for line, text in (
        (
            '"$0" -m runtime.cli.edge_encode - -o "$1.new" <&-',
            "standard input is closed: name a file",
        ),
        ('"$0" -m runtime.cli.edge_encode "$2" -o - >&-', "standard output is closed: name a file"),
        (
            '"$0" -m runtime.cli.cloud_decode "$1" >&-',
            "standard output is closed, and there is no other output: open it, or name a file",
        ),
        ('"$0" -m runtime.cli.cloud_decode - <&-', "standard input is closed: name a file"),
    ):
        done = shell(line, feat, GOLF_BALL)
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_decoding_stops_if_nobody_reads_the_classes(
    feat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    files = [str(feat)] * 3
    for options, note in (
        (["--json"], "the last 2 of 3 files were not decoded"),
        (["--info"], "the last 2 of 3 files were not decoded"),
        (["--logits", str(tmp_path / "logits.npy")], None),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
            assert cloud_cli.main([*files, *options]) == 1
            sys.stdout.close()
        err = capsys.readouterr().err
        assert "lines for standard output were lost: No space left on device" in err
        assert ("not decoded" in err) is bool(note)
        assert note is None or note in err
    assert np.load(tmp_path / "logits.npy").shape == (3, 10)
