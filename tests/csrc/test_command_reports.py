"""edge-encode in C++: which images it finds, and what it prints, as the Python command does."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from cpp_command import GOLF_BALL, JPEGS, PNMS, Run

import runtime
from runtime import EdgeEncoder


def test_a_folder(run: Run, native: EdgeEncoder, photos: Path, tmp_path: Path) -> None:
    done = run("photos/", "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["a.jpeg", "b.JPG", "sub/c.d.jpg", "sub/e.ppm"]
    assert [row["image"] for row in rows] == [f"photos/{name}" for name in names]
    outputs = ["out/a.bin", "out/b.bin", "out/sub/c.d.bin", "out/sub/e.bin"]
    assert [row["output"] for row in rows] == outputs
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        tmp_path / name for name in outputs
    ]
    for name, output in zip(names, outputs, strict=True):
        assert (tmp_path / output).read_bytes() == native.encode(photos / name)
    passed_over, summary = done.stderr.decode().splitlines()
    assert json.loads(passed_over) == {
        "passed_over": {".txt": 1, "no suffix": 1, "broken link": 1, "linked folder": 1}
    }
    assert summary.startswith("4 encoded, 0 skipped, 0 failed; ")


@pytest.mark.parametrize(
    ("pattern", "outputs"),
    [
        ("photos/*.jpeg", ["a.bin"]),
        ("photos/*/?.*", ["sub/c.d.bin", "sub/e.bin", "linked/c.d.bin", "linked/e.bin"]),
        ("photos/[ab].*", ["a.bin", "b.bin"]),
        ("photos/*.txt", ["notes.bin"]),
    ],
)
def test_patterns(run: Run, photos: Path, tmp_path: Path, pattern: str, outputs: list[str]) -> None:
    (photos / "notes.txt").write_bytes(PNMS["P5"])
    done = run(pattern, "-o", "out")
    assert done.returncode == 0, done.stderr
    made = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.bin")]
    assert sorted(map(str, made)) == sorted(outputs)


def test_a_pattern_that_is_a_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x[1].jpg").write_bytes(JPEGS["1x1"])
    assert run("x[1].jpg", "-o", "x.bin").returncode == 0
    assert (tmp_path / "x.bin").exists()


def test_the_report(run: Run, native: EdgeEncoder, tmp_path: Path) -> None:
    done = run(GOLF_BALL, "-o", "feat.bin")
    size = (tmp_path / "feat.bin").stat().st_size
    head = f"{GOLF_BALL} -> feat.bin: {size} bytes, {8 * size / 224**2:.3f} bpp at 224x224, "
    assert done.stdout.decode().startswith(head)
    assert done.stdout.endswith(b" ms\n")
    assert done.stderr == b""
    row = json.loads(run(GOLF_BALL, "-o", "feat.bin", "--json").stdout)
    milliseconds = row.pop("milliseconds")
    assert row == {
        "status": "encoded",
        "image": str(GOLF_BALL),
        "output": "feat.bin",
        "bytes": size,
        "bpp": 8 * size / 224**2,
        "width": 224,
        "height": 224,
    }
    assert set(milliseconds) == {"preprocess", "encode", "write", "total"}
    parts = sum(milliseconds.values()) - milliseconds["total"]
    assert milliseconds["total"] == pytest.approx(parts, abs=0.01)
    # To standard output goes the feature file alone.
    done = run(GOLF_BALL, "-o", "-")
    assert done.stdout == native.encode(GOLF_BALL)
    assert f"{GOLF_BALL} -> standard output: {size} bytes".encode() in done.stderr
    assert run(GOLF_BALL, "-o", "/dev/stdout").stdout == done.stdout


@pytest.mark.parametrize("name", [b'q"\\\x1b\x7f.jpg', "ä\u0085€😀.jpg".encode(), b"\xff\xc3.jpg"])
def test_names_are_printed_safely(program: Path, bundle: Path, tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(JPEGS["1x1"])
    command = [program, name, "-o", "out/", "--bundle", bundle]
    done = subprocess.run([*command, "--json"], capture_output=True, cwd=tmp_path, check=True)
    assert os.fsencode(json.loads(done.stdout)["image"]) == name
    line = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True).stdout
    assert line.decode().rstrip("\n").isprintable()


def test_help_and_version(run: Run) -> None:
    text = run("--help").stdout.decode()
    for option in ("--output", "--bundle", "--as-is", "--fast-jpeg", "--raw", "--small", "--json"):
        assert option in text
    assert run("-h").stdout.decode() == text
    assert run("--version").stdout.decode() == f"edge-encode {runtime.__version__}\n"


def test_levels_and_bytes_of_a_variable_rate_bundle(
    run: Run, variable_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    """The options, the files and the reports of the Python command."""
    python = EdgeEncoder(variable_bundle, threads=1, provider="native")
    bundle = ["--bundle", variable_bundle]
    for options, asked, members in (
        (["--rate", "7.5"], {"rate": 7.5}, {"level": 7.5, "kept_channels": None}),
        (["--max-bytes", "400", "--rate=15"], {"rate": 15, "max_bytes": 400}, {}),
        (["--max-bytes", "13"], {"max_bytes": 13}, {"level": 0, "kept_channels": 0}),
        ([], {}, {"level": 8, "kept_channels": None}),
    ):
        done = run(GOLF_BALL, "-o", "feat.bin", "--json", *bundle, *options)
        assert done.returncode == 0, done.stderr
        data = (tmp_path / "feat.bin").read_bytes()
        assert data == python.encode(GOLF_BALL, **asked)
        row = json.loads(done.stdout)
        assert row["bytes"] == len(data)
        assert row | members == row
    assert run("photos", "-o", "out", *bundle, "--target-bytes", "300").returncode == 0
    names = ["a.jpeg", "b.JPG", "sub/c.d.jpg", "sub/e.ppm"]
    files = python.encode_batch([photos / name for name in names], target_bytes=300)
    for name, file in zip(names, files, strict=True):
        assert (tmp_path / "out" / name).with_suffix(".bin").read_bytes() == file


def test_what_cannot_be_asked_of_a_bundle(run: Run, variable_bundle: Path, tmp_path: Path) -> None:
    done = run(GOLF_BALL, "-o", "x.bin", "--rate", "3")
    assert done.returncode == 1
    assert b": the bundle has one rate: leave out rate, max_bytes and target_bytes" in done.stderr
    done = run(GOLF_BALL, "-o", "x.bin", "--max-bytes", "12", "--bundle", variable_bundle)
    assert done.returncode == 1
    assert (
        b"golf_ball.jpg: 12 bytes are too few: a feature file of 224x224 pixels has at least 13"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []
