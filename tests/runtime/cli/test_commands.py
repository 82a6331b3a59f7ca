"""edge-encode and cloud-decode as users call them: arguments, pipes, exit statuses, JSON."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import GOLF_BALL, Capture, command
from numpy.typing import NDArray
from PIL import Image

from runtime import files
from runtime.cli import cloud_decode as cloud_cli
from runtime.cli import edge_encode as edge_cli
from runtime.cli import image_arguments
from runtime.codec import feature_file
from runtime.codec.feature_file import Profile

pytestmark = pytest.mark.usefixtures("default_bundle")


def test_image_to_class(tmp_path: Path, feature_bytes: bytes, capsys: Capture) -> None:
    out = tmp_path / "new" / "feat.bin"
    assert edge_cli.main([str(GOLF_BALL), "-o", str(out)]) == 0
    assert out.read_bytes() == feature_bytes
    assert f"{len(feature_bytes)} bytes" in capsys.readouterr().out
    assert cloud_cli.main([str(out), "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("golf ball")
    assert [path.name for path in out.parent.iterdir()] == ["feat.bin"]


def test_through_pipes(feature_bytes: bytes) -> None:
    encoded = command("edge_encode", "-", "-o", "-", stdin=GOLF_BALL.read_bytes())
    assert encoded.returncode == 0, encoded.stderr
    assert encoded.stdout == feature_bytes
    assert b"bytes" in encoded.stderr
    decoded = command("cloud_decode", "-", "--json", stdin=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    assert json.loads(decoded.stdout)["classes"][0]["label"] == "golf ball"
    logits = command("cloud_decode", "-", "--logits", "-", stdin=encoded.stdout)
    assert np.load(io.BytesIO(logits.stdout)).shape == (1, 10)


def test_standard_input_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(image_arguments, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(5000))))
    assert edge_cli.main(["-", "-o", str(tmp_path / "feat.bin")]) == 1
    assert "more than 1000 bytes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_images_into_a_folder(
    tmp_path: Path, golf_ball: NDArray[np.uint8], capsys: Capture
) -> None:
    images = [tmp_path / f"{name}.png" for name in "abc"]
    for image in images:
        Image.fromarray(golf_ball).save(image)
    out = tmp_path / "features"
    assert edge_cli.main([*map(str, images), "-o", str(out), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(path.name for path in out.iterdir()) == ["a.bin", "b.bin", "c.bin"]
    for row in rows:
        assert row["bytes"] == Path(row["output"]).stat().st_size
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / (224 * 224))
        assert set(row["milliseconds"]) == {"preprocess", "graph", "coder", "write", "total"}
    assert (
        cloud_cli.main(
            [*map(str, sorted(out.iterdir())), "--json", "--logits", str(tmp_path / "logits.npy")]
        )
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["classes"][0]["label"] for row in rows] == ["golf ball"] * 3
    assert set(rows[0]["milliseconds"]) == {"coder", "graph", "total"}
    logits = np.load(tmp_path / "logits.npy", allow_pickle=False)
    assert logits.shape == (3, 10)
    assert logits.dtype == np.float32


def test_as_is(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "feat.bin"
    assert (
        edge_cli.main([str(GOLF_BALL), "-o", str(out), "--as-is", "--threads", "1", "--json"]) == 0
    )
    row = json.loads(capsys.readouterr().out)
    assert (row["width"], row["height"]) == (640, 480)
    assert feature_file.parse(out.read_bytes()).width == 640


def test_info_needs_no_bundle(
    feat: Path, feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", "/nowhere")
    assert cloud_cli.main(["--info", "--json", str(feat)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["width"], info["height"], info["version"], info["bytes"]) == (
        224,
        224,
        1,
        len(feature_bytes),
    )
    assert info["profile"] == "small"
    assert info["bundle"] == feature_bytes[2:6].hex()
    assert info["payload_bytes"] == len(feature_bytes) - 14
    assert cloud_cli.main(["--info", str(feat)]) == 0
    assert "payload bytes" in capsys.readouterr().out


def test_one_bad_image_does_not_stop_the_others(tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    assert edge_cli.main([str(bad), str(GOLF_BALL), "-o", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "bad.jpg is not an image" in captured.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["golf_ball.bin"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"PK\x03\x04", "not a feature file"),
        (b"\xfc\x09" + bytes(40), "version 9"),
        (None, "send it again"),
    ],
)
def test_a_refused_file_is_status_4_and_the_others_are_decoded(
    tmp_path: Path,
    feat: Path,
    feature_bytes: bytes,
    content: bytes | None,
    text: str,
    capsys: Capture,
) -> None:
    bad = tmp_path / "bad.bin"
    bad.write_bytes(feature_bytes[:-1] if content is None else content)
    logits = tmp_path / "logits.npy"
    assert cloud_cli.main([str(bad), str(feat), "--top-k", "1", "--logits", str(logits)]) == 4
    captured = capsys.readouterr()
    assert "bad.bin: " in captured.err
    assert text in captured.err
    assert "golf ball" in captured.out
    assert not logits.exists(), "logits with a missing row are not written"


def test_another_bundles_file_is_status_4(feat: Path, random_bundle: Path, capsys: Capture) -> None:
    assert cloud_cli.main([str(feat), "--bundle", str(random_bundle)]) == 4
    assert "is of bundle" in capsys.readouterr().err


def test_missing_files_are_status_1(tmp_path: Path, capsys: Capture) -> None:
    missing = str(tmp_path / "missing")
    assert edge_cli.main([missing, "-o", str(tmp_path / "out.bin")]) == 1
    assert cloud_cli.main([missing]) == 1
    assert cloud_cli.main([str(tmp_path)]) == 1
    assert edge_cli.main([str(GOLF_BALL), "-o", "-", "--bundle", missing]) == 1
    assert cloud_cli.main([missing, "--bundle", missing]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert all("missing" in line or "folder" in line for line in errors)
    assert list(tmp_path.iterdir()) == []


def test_a_feature_file_is_read_from_a_pipe_and_up_to_its_limit(
    tmp_path: Path, feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(feature_bytes,))
    writer.start()
    monkeypatch.setattr(cloud_cli, "MAX_FEATURE_FILE_BYTES", len(feature_bytes))
    assert cloud_cli.main([str(pipe), "--top-k", "1"]) == 0
    writer.join()
    assert "golf ball" in capsys.readouterr().out
    (tmp_path / "large.bin").write_bytes(feature_bytes + b"x")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(feature_bytes + b"x")))
    assert cloud_cli.main(["/dev/zero", str(tmp_path / "large.bin"), "-"]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(
        f"more than {len(feature_bytes)} bytes, no feature file is so large" in line
        for line in lines
    )


def test_logits_that_would_replace_an_input_are_refused(
    feat: Path, bundle: Path, capsys: Capture
) -> None:
    before = feat.read_bytes()
    feat.with_name("hard.npy").hardlink_to(feat)
    feat.with_name("soft.npy").symlink_to(feat.name)
    for target in (
        feat,
        feat.with_name("hard.npy"),
        feat.with_name("soft.npy"),
        bundle / "labels.txt",
    ):
        assert cloud_cli.main([str(feat), "--logits", str(target)]) == 1
        assert "the output would replace the input" in capsys.readouterr().err
    with open(feat, "rb") as stdin:
        arguments = [sys.executable, "-m", "runtime.cli.cloud_decode", "-", "--logits", str(feat)]
        done = subprocess.run(arguments, stdin=stdin, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the input on standard input" in done.stderr
    assert feat.read_bytes() == before


def test_tuning_measures_with_what_can_be_read(
    feat: Path, feature_bytes: bytes, tmp_path: Path
) -> None:
    from runtime.engine.tune import readable_inputs
    from runtime.errors import TuneError

    def read(name: str) -> NDArray[np.uint8]:
        return (
            np.frombuffer(Path(name).read_bytes(), np.uint8)
            if name.endswith("bin")
            else cloud_cli._read(f"{name}/no")
        )

    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "bad").touch()
    names = ["-", str(tmp_path / "pipe.bin"), str(tmp_path / "bad"), *[str(feat)] * 9]
    assert [len(data) for data in readable_inputs(names, read)] == [len(feature_bytes)] * 8
    with pytest.raises(TuneError, match=r"at least one readable input \(.*bad: no such file"):
        readable_inputs(names[:3], read)
    with pytest.raises(TuneError, match="there is no file among them"):
        readable_inputs(names[:2], read)


@pytest.mark.parametrize(
    ("main", "arguments", "text"),
    [
        (edge_cli.main, ["a.jpg"], "-o"),
        (edge_cli.main, ["a.jpg", "-o", ""], "the name of the output is empty"),
        (edge_cli.main, ["a.jpg", "-o", "/dev/stdout", "--json"], "standard output carries"),
        (
            edge_cli.main,
            ["a.jpg", "-o", "x", "--workers", "nan"],
            "--workers: 'nan' is not a whole number from 1 to 4,096",
        ),
        (cloud_cli.main, ["a", "--logits", ""], "the name of the output is empty"),
        (
            edge_cli.main,
            ["a.jpg", "-o", "x", "--threads", "0"],
            "--threads: '0' is not a whole number from 1 to 4,096",
        ),
        (edge_cli.main, ["a.jpg", "b.jpg", "-o", "-"], "one feature file"),
        (
            edge_cli.main,
            ["x/a.jpg", "y/a.png", "-o", "new"],
            "several images would be written to new/a.bin",
        ),
        (edge_cli.main, ["a.jpg", "b.jpg", "-o", __file__], "is a file"),
        (edge_cli.main, ["a.jpg", "-o", "-", "--json"], "--json"),
        (cloud_cli.main, [], "FILE"),
        (
            cloud_cli.main,
            ["a", "--top-k", "0"],
            "--top-k: '0' is not a whole number from 1 to 1,000,000",
        ),
        (cloud_cli.main, ["a", "--threads", "-1"], "--threads: '-1' is not"),
        (cloud_cli.main, ["-", "-"], "twice"),
    ],
)
def test_wrong_usage_is_status_2(main, arguments: list[str], text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert text in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "feat.bin"
    files.write_atomically(path, b"before")

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="full"):
            files.write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    files.write_atomically(path, b"after")
    assert path.read_bytes() == b"after"


def test_the_installed_commands_exist() -> None:
    """The two commands by the names that users type."""
    for name in ("edge-encode", "cloud-decode"):
        result = subprocess.run(
            [Path(sys.executable).parent / name, "--version"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0
        assert result.stdout.startswith(name)


def test_either_profile(bundle: Path, random_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "feat.bin"
    for options, profile in (
        ([], Profile.CONTEXT),
        (["--small"], Profile.CONTEXT),
        (["--no-small"], Profile.STATIC),
    ):
        assert (
            edge_cli.main([str(GOLF_BALL), "-o", str(out), "--bundle", str(bundle), *options]) == 0
        )
        assert feature_file.parse(out.read_bytes()).profile is profile
    out.unlink()
    capsys.readouterr()
    assert (
        edge_cli.main([str(GOLF_BALL), "-o", str(out), "--bundle", str(random_bundle), "--small"])
        == 1
    )
    assert "no context tables" in capsys.readouterr().err
    assert not out.exists()
