"""Outputs of edge-encode that are inputs, that are one file, or that cannot be written."""

import os
from pathlib import Path

import pytest
from commands import Capture
from photo_folder import run

from runtime.cli import edge_encode as edge_cli
from runtime.codec import feature_file

pytestmark = pytest.mark.usefixtures("default_bundle")


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["b.jpg"], ["-o", "b.jpg"]),
        (["b.jpg"], ["-o", "hard.bin"]),
        (["b.jpg"], ["-o", "soft"]),
        (["b.jpg"], ["--pack", "b.jpg"]),
        (["b.jpg", "hard.bin"], ["-o", "."]),
        (["hard.bin"], ["-o", "."]),
        (["sub", "sub/b.bin"], ["-o", "sub"]),
        (["sub"], ["--pack", "sub/c.jpeg"]),
        (["b.jpg"], ["-o", "{bundle}/labels.txt"]),
        (["b.jpg"], ["--pack", "{bundle}/manifest.json"]),
    ],
)
def test_an_output_that_is_an_input_is_refused_before_work(
    photos: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    inputs: list[str],
    options: list[str],
) -> None:
    monkeypatch.chdir(photos)
    (photos / "hard.bin").hardlink_to("b.jpg")
    (photos / "soft").symlink_to("b.jpg")
    (photos / "sub" / "b.bin").symlink_to("../b.jpg")
    monkeypatch.setattr(edge_cli, "encode_all", None)
    before = {
        path: path.read_bytes()
        for path in (*photos.rglob("*.*"), *bundle.iterdir())
        if path.is_file()
    }
    assert edge_cli.main([*inputs, *(option.format(bundle=bundle) for option in options)]) == 1
    assert "the output would replace the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_two_outputs_that_are_one_file_are_refused(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.bin").symlink_to("b.bin")
    assert edge_cli.main([str(photos), "-o", str(tmp_path / "out")]) == 1
    assert "a.bin and" in (err := capsys.readouterr().err)
    assert "are one file" in err


def test_an_output_that_fails_names_itself_and_its_image(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.bin").symlink_to("/dev/full")
    (out / "b.bin").mkdir()
    os.mkfifo(out / "z[1].bin")
    pipe = os.open(out / "z[1].bin", os.O_RDWR)  # so that it has a reader
    status, rows, err = run(capsys, photos, "-o", out, "--resume")
    expected = [
        f"{photos}/a.PNG: cannot write {out}/a.bin: No space left on device: free some space",
        f"{photos}/b.jpg: cannot write {out}/b.bin: Is a directory",
    ]
    assert status == 1
    assert [row["status"] for row in rows] == ["failed", "failed", "encoded", "encoded", "encoded"]
    assert [row["error"] for row in rows[:2]] == expected
    assert [f"edge-encode: {line}" in err for line in expected] == [True, True]
    assert feature_file.parse(os.read(pipe, 1 << 16)).width == 224
    os.close(pipe)


def test_a_place_that_cannot_be_written_is_refused_once(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    for options in (
        ["-o", f"{tmp_path}/file/out/"],
        ["--pack", f"{tmp_path}/file/x.parquet"],
        ["--pack", str(tmp_path)],
    ):
        assert edge_cli.main([str(photos), *options]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2, "what was passed over, and the refusal"
        assert (
            "cannot be written" in lines[1]
            or "is not a folder" in lines[1]
            or "is a folder" in lines[1]
        )
