"""edge-encode on many images: which, in what order, where to, several at a time, resumed, packed; and one that is bad among them."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder, edge_cli, errors, feature_file, files
from runtime.edge_files import TargetError, find, to_files, to_rows
from runtime.progress import Progress

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def default_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))


@pytest.fixture
def photos(tmp_path: Path, golf_ball: NDArray[np.uint8]) -> Path:
    """A folder of five different images in three folders, a hidden one, and a text."""
    folder = tmp_path / "photos"
    for index, name in enumerate(("b.jpg", "a.PNG", "sub/c.jpeg", "sub/deep er/d.webp", "z[1].jpg")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(golf_ball, 37 * index, axis=1)).save(path)
    (folder / "sub" / "notes.txt").write_text("no image")
    (folder / "._b.jpg").write_bytes(b"what macOS leaves beside an image")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "e.jpg").write_bytes(b"thrown away")
    return folder


NAMES = ["a.PNG", "b.jpg", "sub/c.jpeg", "sub/deep er/d.webp", "z[1].jpg"]
FILES = ["a.bin", "b.bin", "sub/c.bin", "sub/deep er/d.bin", "z[1].bin"]


def run(capsys: Capture, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    """Status, the lines of --json, and standard error."""
    status = edge_cli.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_keeps_its_tree_and_order(photos: Path, tmp_path: Path, encoder: EdgeEncoder, capsys: Capture) -> None:
    out = tmp_path / "out"
    for workers in (1, 3):
        status, rows, err = run(capsys, photos, "-o", out, "--workers", workers)
        assert status == 0
        assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
        assert [row["output"] for row in rows] == [str(out / name) for name in FILES]
        assert tree(out) == FILES
        assert "5 encoded, 0 skipped, 0 failed" in err
        assert all((out / file).read_bytes() == encoder.encode(photos / name) for name, file in zip(NAMES, FILES, strict=True))


def test_patterns(photos: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [name for _, name in find([f"{photos}/{pattern}"])]

    assert names("*.jpg") == ["b.jpg", "z[1].jpg"]
    assert names("[ab].*") == ["a.PNG", "b.jpg"]
    assert names("sub/*.jpeg") == ["c.jpeg"]
    assert names("**/*.webp") == ["sub/deep er/d.webp"]
    assert names("z[1].jpg") == ["z[1].jpg"], "a file that exists is not a pattern"
    assert names("s?b/**/*.webp") == ["sub/deep er/d.webp"]
    assert [image for image, _ in find([f"{photos}/sub", f"{photos}/b.jpg"])] == [
        str(photos / name) for name in ("sub/c.jpeg", "sub/deep er/d.webp", "b.jpg")
    ]


def test_where_feature_files_go(photos: Path, tmp_path: Path) -> None:
    def jobs(arguments: list[str], output: str) -> list[str]:
        return [target for _, target in to_files(arguments, find(arguments), output)]

    one = f"{photos}/b.jpg"
    assert jobs([one], "feat.bin") == ["feat.bin"]
    assert jobs([one], "new/") == ["new/b.bin"]
    assert jobs([one], str(tmp_path)) == [f"{tmp_path}/b.bin"]
    assert jobs([f"{photos}/b.*"], "new") == ["new/b.bin"], "a pattern of one image is a pattern"
    assert jobs(["-"], "-") == ["-"]
    for arguments in ([str(photos)], [f"{photos}/b.*"], [one, one]):
        with pytest.raises(TargetError, match="standard output takes one"):
            jobs(arguments, "-")
    with pytest.raises(TargetError, match=r"several images would be written to new/b\.bin: encode them to different folders"):
        jobs([one, f"{photos}/b.png"], "new")
    with pytest.raises(TargetError, match=r"have the key b\.jpg"):
        to_rows(find([one, one]))


def test_a_folder_or_a_pattern_without_images(tmp_path: Path, capsys: Capture) -> None:
    for argument in (str(tmp_path), f"{tmp_path}/*.jpg"):
        with pytest.raises(errors.ImageNotFoundError, match="no image in"):
            find([argument])
    assert edge_cli.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "no image in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_an_error(photos: Path) -> None:
    (photos / "sub").chmod(0)
    try:
        with pytest.raises(PermissionError):
            find([str(photos)])
    finally:
        (photos / "sub").chmod(0o755)


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_images_are_reported_and_stop_nothing(photos: Path, tmp_path: Path, workers: int, capsys: Capture) -> None:
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


def test_memory_that_does_not_suffice_is_one_images_failure(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole = EdgeEncoder.symbols
    calls: list[int] = []

    def symbols(self: EdgeEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return whole(self, pixels)

    monkeypatch.setattr(EdgeEncoder, "symbols", symbols)
    status, rows, _ = run(capsys, photos, "-o", tmp_path / "out", "--workers", 1)
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "failed", "encoded", "encoded", "encoded"]
    assert "does not fit the memory" in rows[1]["error"]


def test_resume(photos: Path, tmp_path: Path, bundle: Path, feature_bytes: bytes, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run(capsys, photos, "-o", out)[0] == 0
    expected = {name: (out / name).read_bytes() for name in FILES}
    (out / FILES[0]).unlink()
    (out / FILES[1]).write_bytes(expected[FILES[1]][:-1])  # cut short
    other = feature_file.parse(expected[FILES[2]])
    (out / FILES[2]).write_bytes(feature_file.pack(b"else", other.height, other.width, bytes(other.payload), True))
    before = (out / FILES[3]).stat().st_mtime_ns
    status, rows, err = run(capsys, photos, "-o", out, "--resume", "--workers", 2)
    assert status == 0
    assert [row["status"] for row in rows] == ["encoded", "encoded", "encoded", "skipped", "skipped"]
    assert rows[3] == {"status": "skipped", "image": str(photos / NAMES[3]), "output": str(out / FILES[3])}
    assert "3 encoded, 2 skipped, 0 failed" in err
    assert {name: (out / name).read_bytes() for name in FILES} == expected
    assert (out / FILES[3]).stat().st_mtime_ns == before
    # Another profile, or another size, is not done yet.
    assert {row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]} == {"encoded"}
    assert run(capsys, photos, "-o", out, "--no-small", "--as-is")[0] == 0
    assert {row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]} == {"encoded"}


def test_only_a_few_images_are_under_way() -> None:
    """However many there are, and however slow the first is; the order stays."""
    begun, given, most = [], 0, 0
    lock = threading.Lock()

    def work(job: tuple[str, str]) -> tuple[dict[str, Any], None]:
        nonlocal most
        with lock:
            begun.append(job)
            most = max(most, len(begun) - given)
        if job[0] == "0":
            time.sleep(0.2)
        return {"image": job[0]}, None

    jobs = [(str(index), "") for index in range(1000)]
    for result, _ in edge_cli.in_order(work, jobs, 3):
        assert result["image"] == str(given)
        with lock:
            given += 1
    assert given == 1000
    assert most <= edge_cli._AHEAD * 3 + 1


def test_temporary_files_of_many_threads(tmp_path: Path) -> None:
    """The umask is the process's: no thread may change it, not for a moment."""
    before = os.umask(0o027)
    try:
        threads = [threading.Thread(target=files.write_atomically, args=(tmp_path / f"{index}", b"x")) for index in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert len(list(tmp_path.iterdir())) == 50
    finally:
        os.umask(before)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_workers_share_an_encoder(bundle: Path, golf_ball: NDArray[np.uint8], provider: str) -> None:
    """The same feature files from four threads at once as from one."""
    if provider == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra")
    encoder = EdgeEncoder(bundle, 1, provider=provider, workers=4)
    images = [np.roll(golf_ball, 31 * index, axis=1) for index in range(24)]
    expected = [encoder.encode(image) for image in images]
    jobs = [(str(index), "") for index in range(len(images))]
    assert [data for _, data in edge_cli.in_order(lambda job: ({}, encoder.encode(images[int(job[0])])), jobs, 4)] == expected
    assert len(set(expected)) > 12


def test_fast_jpeg(photos: Path, tmp_path: Path, bundle: Path, golf_ball: NDArray[np.uint8], capsys: Capture) -> None:
    Image.fromarray(golf_ball).resize((1920, 1440)).save(photos / "b.jpg", quality=90)
    assert run(capsys, photos, "-o", tmp_path / "plain")[0] == 0
    assert run(capsys, photos, "-o", tmp_path / "fast", "--fast-jpeg")[0] == 0
    changed = [name for name in FILES if (tmp_path / "plain" / name).read_bytes() != (tmp_path / "fast" / name).read_bytes()]
    assert changed == ["b.bin"]
    fast = EdgeEncoder(bundle, 1, fast_jpeg=True)
    assert (tmp_path / "fast" / "b.bin").read_bytes() == fast.encode(photos / "b.jpg") == fast.encode_batch([photos / "b.jpg"])[0]


def test_pack(photos: Path, tmp_path: Path, encoder: EdgeEncoder, capsys: Capture) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the parquet extra", exc_type=ImportError)
    (photos / "b.jpg").write_bytes(b"no image")
    target = tmp_path / "new" / "features.parquet"
    status, rows, _ = run(capsys, photos, "--pack", target, "--workers", 2)
    assert status == 1
    assert [row["status"] for row in rows] == ["encoded", "failed", "encoded", "encoded", "encoded"]
    good = [name for name in NAMES if name != "b.jpg"]
    assert pq.read_table(target).to_pylist() == [
        {"key": name, "feature_file": encoder.encode(photos / name), "width": 224, "height": 224} for name in good
    ]
    assert tree(target.parent) == ["features.parquet"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_name_that_is_not_utf8(tmp_path: Path, golf_ball: NDArray[np.uint8], capsys: Capture) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the parquet extra", exc_type=ImportError)
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


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pytest.importorskip("tqdm", reason="tqdm comes with the train extra")
    with Progress(3, "image") as progress:
        assert not progress.shown, "standard error is no terminal here"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(1, "image") as progress:
        assert not progress.shown
    with Progress(3, "image") as progress:
        assert progress.shown
        progress.advance(2)
        progress.say("a line", sys.stderr)
        progress.say("a result", sys.stdout)
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "a line\n" in captured.err
    assert "2/3" in captured.err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(3, "image") as progress:
        assert not progress.shown
