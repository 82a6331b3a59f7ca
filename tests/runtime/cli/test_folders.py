"""edge-encode on folders: the order, bad images among good ones, --resume, pipes, and packs."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Capture
from numpy.typing import NDArray
from photo_folder import FILES, NAMES, run, tree
from PIL import Image

from runtime import EdgeEncoder
from runtime.cli import edge_encode as edge_cli
from runtime.cli import image_arguments
from runtime.codec import feature_file
from runtime.codec.feature_file import Profile

pytestmark = pytest.mark.usefixtures("default_bundle")


def test_a_folder_keeps_its_tree_and_order(
    photos: Path, tmp_path: Path, encoder: EdgeEncoder, capsys: Capture
) -> None:
    out = tmp_path / "out"
    for workers in (1, 3):
        status, rows, err = run(capsys, photos, "-o", out, "--workers", workers)
        assert status == 0
        assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
        assert [row["output"] for row in rows] == [str(out / name) for name in FILES]
        assert tree(out) == FILES
        assert "5 encoded, 0 skipped, 0 failed" in err
        assert all(
            (out / file).read_bytes() == encoder.encode(photos / name)
            for name, file in zip(NAMES, FILES, strict=True)
        )


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_images_are_reported_and_stop_nothing(
    photos: Path, tmp_path: Path, workers: int, capsys: Capture
) -> None:
    (photos / "b.jpg").write_bytes((photos / "b.jpg").read_bytes()[:9000])
    (photos / "sub" / "c.jpeg").write_bytes(b"no image")
    out = tmp_path / "out"
    status, rows, err = run(capsys, photos, "-o", out, "--workers", workers)
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "failed", "failed", "encoded", "encoded"]
    assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
    assert "damaged or cut short" in rows[1]["error"]
    assert "3 encoded, 0 skipped, 2 failed" in err
    assert err.count("edge-encode: ") == 2
    assert tree(out) == ["a.bin", "sub/deep er/d.bin", "z[1].bin"]


def test_too_little_memory_is_the_failure_of_one_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole = EdgeEncoder.graph_output
    calls: list[int] = []

    def graph_output(self: EdgeEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return whole(self, pixels)

    monkeypatch.setattr(EdgeEncoder, "graph_output", graph_output)
    status, rows, _ = run(capsys, photos, "-o", tmp_path / "out", "--workers", 1)
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "failed", "encoded", "encoded", "encoded"]
    assert "does not fit into memory" in rows[1]["error"]


def test_resume(
    photos: Path, tmp_path: Path, bundle: Path, feature_bytes: bytes, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert run(capsys, photos, "-o", out)[0] == 0
    expected = {name: (out / name).read_bytes() for name in FILES}
    (out / FILES[0]).unlink()
    (out / FILES[1]).write_bytes(expected[FILES[1]][:-1])  # cut short
    other = feature_file.parse(expected[FILES[2]])
    (out / FILES[2]).write_bytes(
        feature_file.build(
            b"else", other.height, other.width, bytes(other.payload), Profile.CONTEXT
        )
    )
    before = (out / FILES[3]).stat().st_mtime_ns
    status, rows, err = run(capsys, photos, "-o", out, "--resume", "--workers", 2)
    assert status == 0
    assert [row["status"] for row in rows] == [
        "encoded",
        "encoded",
        "encoded",
        "skipped",
        "skipped",
    ]
    assert rows[3] == {
        "status": "skipped",
        "image": str(photos / NAMES[3]),
        "output": str(out / FILES[3]),
    }
    assert "3 encoded, 2 skipped, 0 failed" in err
    assert {name: (out / name).read_bytes() for name in FILES} == expected
    assert (out / FILES[3]).stat().st_mtime_ns == before
    # A file of another profile, or of another size, is encoded again.
    assert {
        row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]
    } == {"encoded"}
    assert run(capsys, photos, "-o", out, "--no-small", "--as-is")[0] == 0
    assert {
        row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]
    } == {"encoded"}


def test_errors_that_name_no_file_get_the_name_of_the_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    Image.new("RGB", (4, 4)).save(photos / "b.jpg")
    status, rows, _ = run(
        capsys, photos / "b.jpg", photos / "a.PNG", "-o", tmp_path / "out", "--as-is"
    )
    assert (status, rows[1]["status"]) == (1, "encoded")
    assert rows[0]["error"].startswith(f"{photos}/b.jpg: an image of 4x4 pixels")


def test_pipes_and_devices_that_are_named_are_read(
    photos: Path, tmp_path: Path, feature_bytes: bytes, capsys: Capture
) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    data = (photos / "b.jpg").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    status, rows, _ = run(capsys, photos / "b.jpg", pipe, "/dev/null", "-o", tmp_path / "out")
    writer.join()
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "encoded", "failed"]
    assert (tmp_path / "out" / "pipe.bin").read_bytes() == (tmp_path / "out" / "b.bin").read_bytes()
    assert rows[2]["error"].startswith("/dev/null: ")


def test_a_device_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(image_arguments, "MAX_IMAGE_BYTES", 1 << 20)
    assert edge_cli.main(["/dev/zero", "-o", str(tmp_path / "x")]) == 1
    assert "/dev/zero has more than 1048576 bytes" in capsys.readouterr().err


INTERRUPTED = [
    (signal.SIGINT, "interrupted"),
    (signal.SIGTERM, "stopped by SIGTERM"),
    (signal.SIGHUP, "stopped by SIGHUP"),
]


@pytest.mark.parametrize(("number", "line"), INTERRUPTED)
def test_a_signal_in_a_folder_is_one_line_and_leaves_whole_files(
    photos: Path, tmp_path: Path, number: int, line: str
) -> None:
    """The command has encoded two images, and waits for a pipe that nobody writes."""
    os.mkfifo(tmp_path / "pipe")
    # If a shell runs the tests in the background, the command would ignore Ctrl-C.
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from runtime.cli import edge_encode as edge_cli\n"
    )
    out = tmp_path / "out"
    arguments = [photos / "a.PNG", photos / "b.jpg", tmp_path / "pipe", "-o", out]
    child = subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(edge_cli.main())", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        while child.poll() is None and not ((out / "a.bin").exists() and (out / "b.bin").exists()):
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate()
    finally:
        child.kill()
    assert (child.returncode, err.decode()) == (128 + number, f"edge-encode: {line}\n")
    assert tree(out) == ["a.bin", "b.bin"]


def test_fast_jpeg(
    photos: Path, tmp_path: Path, bundle: Path, golf_ball: NDArray[np.uint8], capsys: Capture
) -> None:
    Image.fromarray(golf_ball).resize((1920, 1440)).save(photos / "b.jpg", quality=90)
    assert run(capsys, photos, "-o", tmp_path / "plain")[0] == 0
    assert run(capsys, photos, "-o", tmp_path / "fast", "--fast-jpeg")[0] == 0
    changed = [
        name
        for name in FILES
        if (tmp_path / "plain" / name).read_bytes() != (tmp_path / "fast" / name).read_bytes()
    ]
    assert changed == ["b.bin"]
    fast = EdgeEncoder(bundle, 1, fast_jpeg=True)
    assert (
        (tmp_path / "fast" / "b.bin").read_bytes()
        == fast.encode(photos / "b.jpg")
        == fast.encode_batch([photos / "b.jpg"])[0]
    )


def test_pack(photos: Path, tmp_path: Path, encoder: EdgeEncoder, capsys: Capture) -> None:
    pq = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow comes with the parquet extra", exc_type=ImportError
    )
    (photos / "b.jpg").write_bytes(b"no image")
    target = tmp_path / "new" / "features.parquet"
    status, rows, _ = run(capsys, photos, "--pack", target, "--workers", 2)
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "failed", "encoded", "encoded", "encoded"]
    good = [name for name in NAMES if name != "b.jpg"]
    assert pq.read_table(target).to_pylist() == [
        {"key": name, "feature_file": encoder.encode(photos / name), "width": 224, "height": 224}
        for name in good
    ]
    assert tree(target.parent) == ["features.parquet"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_name_that_is_not_utf8(
    tmp_path: Path, golf_ball: NDArray[np.uint8], capsys: Capture
) -> None:
    pq = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow comes with the parquet extra", exc_type=ImportError
    )
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(golf_ball).save(folder / "a.jpg")
    (folder / "a.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    for options in (("-o", tmp_path / "out"), ("--pack", tmp_path / "features.parquet")):
        assert edge_cli.main([str(folder), *map(str, options)]) == 0
        assert "caf\\udce9.jpg" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "features.parquet")["key"].to_pylist() == ["caf\\udce9.jpg"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a.jpg", "--pack", "x", "-o", "y"], "leave out -o"),
        (["a.jpg", "--pack", "x", "--resume"], "--resume"),
        (["a.jpg", "-o", "x", "--workers", "0"], "--workers: '0' is not"),
        (["a.jpg", "b/a.jpg", "--pack", "x"], "several images would have the key a.jpg"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        edge_cli.main(arguments)
    assert exit_info.value.code == 2
    assert text in capsys.readouterr().err
