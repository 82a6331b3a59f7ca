"""edge-encode on many images: which, in what order, where to, several at a time, resumed, packed; and one that is bad among them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder, errors, files
from runtime.cli import edge_encode as edge_cli
from runtime.cli import workers as workers_module
from runtime.cli.progress import Progress
from runtime.cli.workers import map_ordered
from runtime.codec import feature_file
from runtime.codec.feature_file import Profile
from runtime.images.find import TargetError, describe, find, image_suffixes, to_files, to_rows

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def default_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))


@pytest.fixture
def photos(tmp_path: Path, golf_ball: NDArray[np.uint8]) -> Path:
    """A folder of five different images in three folders, a hidden one, and a text."""
    folder = tmp_path / "photos"
    for index, name in enumerate(
        ("b.jpg", "a.PNG", "sub/c.jpeg", "sub/deep er/d.webp", "z[1].jpg")
    ):
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
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


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
    with pytest.raises(
        TargetError,
        match=r"several images would be written to new/b\.bin: encode them to different folders",
    ):
        jobs([one, f"{photos}/b.png"], "new")
    with pytest.raises(TargetError, match=r"have the key b\.jpg"):
        to_rows(find([one, one]))


def test_an_image_is_what_pillow_opens() -> None:
    found = image_suffixes()
    assert {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".mpo",
        ".png",
        ".webp",
        ".tga",
        ".j2k",
        ".jp2",
        ".tiff",
        ".qoi",
        ".ico",
    } < found
    # A program that draws, a film, what has no decoder of its own, and what is only written.
    assert found.isdisjoint(
        {
            ".eps",
            ".ps",
            ".wmf",
            ".emf",
            ".mpg",
            ".h5",
            ".grib",
            ".bufr",
            ".pdf",
            ".palm",
            ".heic",
            "",
            ".txt",
        }
    )


def test_folders_and_patterns_follow_the_same_rules(photos: Path) -> None:
    for name in ("e.jfif", "f.J2K", "g.tga", ".trash/sub/h.jpg", "sub/.hidden.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    for name in ("x.heic", "y.HEIC", "z.heif", "no", "ends.", "a name. With spaces"):
        (photos / "sub" / name).write_bytes(b"x")
    os.mkfifo(photos / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(
            os.path.relpath(photos / "s.png")
        )  # an absolute name may be too long for a socket
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "round.jpg").symlink_to("round.jpg")
    (photos / "again").symlink_to("sub")
    (photos / "sub" / "above").symlink_to("..")
    (photos / "link.jpg").symlink_to("b.jpg")
    expected = sorted([*NAMES, "e.jfif", "f.J2K", "g.tga", "link.jpg"])
    passed_over = {
        ".heic": 2,
        ".heif": 1,
        ".txt": 1,
        "no suffix": 3,
        "pipe": 1,
        "socket": 1,
        "broken link": 2,
        "linked folder": 2,
    }
    for argument in ("", "**", "**/*", "**/**/*"):
        counts: Counter[str] = Counter()
        assert [name for _, name in find([str(photos / argument)], counts)] == expected
        assert counts == passed_over, argument


def test_hidden_files_are_found_where_the_pattern_has_their_dot(photos: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [name for _, name in find([f"{photos}/{pattern}"])]

    assert names(".*.jpg") == ["._b.jpg"]
    assert names(".trash/*.jpg") == ["e.jpg"]
    assert names(".tr*/*") == [".trash/e.jpg"]
    assert names("[s.]*/c.*") == ["sub/c.jpeg"], "a dot in brackets is none, as in a shell"
    (photos / "linked").symlink_to("sub")
    assert names("l*/*.jpeg") == ["linked/c.jpeg"], "other parts than ** follow links"
    assert names("*/deep er/*") == ["linked/deep er/d.webp", "sub/deep er/d.webp"]


def test_a_suffix_that_a_pattern_spells_out_is_wanted(photos: Path, capsys: Capture) -> None:
    (photos / "x.dat").write_bytes((photos / "b.jpg").read_bytes())
    assert [name for _, name in find([f"{photos}/*.dat"])] == ["x.dat"]
    (photos / "x.heic").write_bytes(bytes(20) + b"heic")
    status, rows, _ = run(capsys, f"{photos}/*.heic", "-o", photos.parent / "out")
    assert status == 1
    assert "convert it to JPEG" in rows[0]["error"]


def test_heic_pictures_are_images_where_their_decoder_is_installed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = Image.EXTENSION.copy()
    monkeypatch.setattr(Image, "EXTENSION", registered)
    decoder = types.SimpleNamespace(
        register_heif_opener=lambda: registered.update({".heic": "PNG"})
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", decoder)
    image_suffixes.cache_clear()
    try:
        find([f"{photos}/named.heic"])
        assert registered[".heic"] == "PNG", "for a file that is named, too"
        (photos / "x.heic").touch()
        assert f"{photos}/x.heic" in dict(find([str(photos)]))
    finally:
        image_suffixes.cache_clear()


def test_what_is_passed_over_is_said_once(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("x.heic", "sub/y.HEIC"):
        (photos / name).touch()
    note = "edge-encode: passed over 3 that are no image files (.heic 2, .txt 1); convert .heic and .heif to JPEG, or install pillow-heif"
    assert edge_cli.main([str(photos), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines() == [note]
    status, rows, err = run(capsys, photos, "-o", tmp_path / "out")
    assert (status, len(rows)) == (0, len(NAMES))
    assert json.loads(err.splitlines()[0]) == {"passed_over": {".heic": 2, ".txt": 1}}
    assert describe(Counter({".txt": 1})) == "passed over 1 that is no image file (.txt 1)"
    many = Counter({f".{index}": 9 - index for index in range(8)})
    assert (
        describe(many)
        == "passed over 44 that are no image files (.0 9, .1 8, .2 7, .3 6, .4 5, others 9)"
    )


def test_a_folder_or_a_pattern_without_images(tmp_path: Path, capsys: Capture) -> None:
    for argument in (str(tmp_path), f"{tmp_path}/*.jpg"):
        with pytest.raises(errors.ImageNotFoundError, match="no image in"):
            find([argument])
    assert edge_cli.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "no image in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.txt").touch()
    with pytest.raises(
        errors.ImageNotFoundError,
        match=r"no image in .*, passed over 1 that is no image file \(\.txt 1\): name a",
    ):
        find([str(tmp_path)])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder"
)
def test_a_folder_that_cannot_be_read_is_an_error(photos: Path) -> None:
    (photos / "sub").chmod(0)
    try:
        for argument in (photos, photos / "**" / "*.jpg"):
            with pytest.raises(PermissionError):
                find([str(argument)])
    finally:
        (photos / "sub").chmod(0o755)


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
    # Another profile, or another size, is not done yet.
    assert {
        row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]
    } == {"encoded"}
    assert run(capsys, photos, "-o", out, "--no-small", "--as-is")[0] == 0
    assert {
        row["status"] for row in run(capsys, photos, "-o", out, "--resume", "--no-small")[1]
    } == {"encoded"}


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
    for result, _ in map_ordered(work, jobs, 3):
        assert result["image"] == str(given)
        with lock:
            given += 1
    assert given == 1000
    assert most <= workers_module._AHEAD * 3 + 1


def test_temporary_files_of_many_threads(tmp_path: Path) -> None:
    """The umask is the process's: no thread may change it, not for a moment."""
    before = os.umask(0o027)
    try:
        threads = [
            threading.Thread(target=files.write_atomically, args=(tmp_path / f"{index}", b"x"))
            for index in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert len(list(tmp_path.iterdir())) == 50
    finally:
        os.umask(before)


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


def test_errors_that_know_no_name_get_the_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    Image.new("RGB", (4, 4)).save(photos / "b.jpg")
    status, rows, _ = run(
        capsys, photos / "b.jpg", photos / "a.PNG", "-o", tmp_path / "out", "--as-is"
    )
    assert (status, rows[1]["status"]) == (1, "encoded")
    assert rows[0]["error"].startswith(f"{photos}/b.jpg: an image of 4x4 pixels")


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
    monkeypatch.setattr(edge_cli, "_MAX_STDIN_BYTES", 1 << 20)
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
    """It waits for a pipe that nobody writes, and has encoded the rest."""
    os.mkfifo(tmp_path / "pipe")
    # Started in a shell's background, it would ignore Ctrl-C.
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom runtime.cli import edge_encode as edge_cli\n"
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


@pytest.mark.parametrize("workers", [1, 3])
def test_work_that_has_not_begun_is_given_up(workers: int) -> None:
    begun: list[int] = []
    results = map_ordered(lambda job: begun.append(job) or job, range(1000), workers)
    for result in results:
        if result == 5:
            break
    results.close()
    assert 6 <= len(begun) <= 6 + workers_module._AHEAD * workers
    assert threading.active_count() == 1 or not any(
        "ThreadPool" in thread.name for thread in threading.enumerate()
    )


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_workers_share_an_encoder(
    bundle: Path, golf_ball: NDArray[np.uint8], provider: str
) -> None:
    """The same feature files from four threads at once as from one."""
    if provider == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra")
    encoder = EdgeEncoder(bundle, 1, provider=provider, workers=4)
    images = [np.roll(golf_ball, 31 * index, axis=1) for index in range(24)]
    expected = [encoder.encode(image) for image in images]
    jobs = [(str(index), "") for index in range(len(images))]
    assert [
        data
        for _, data in map_ordered(lambda job: ({}, encoder.encode(images[int(job[0])])), jobs, 4)
    ] == expected
    assert len(set(expected)) > 12


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


def test_a_terminal_that_goes_away_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("tqdm", reason="tqdm comes with the train extra")

    class Terminal:
        gone = False

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return len(text)

        def flush(self) -> None:
            self.write("")

    for begin in (True, False):
        terminal = Terminal()
        terminal.gone = not begin
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(1000, "image") as progress:
            assert progress.shown is begin
            terminal.gone = True
            for _ in range(1000):
                progress.advance()
            progress.say("a line", sys.stderr)
            progress.say("a result", sys.stdout)
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(3, "image") as progress:
        progress.say("a line", sys.stderr)
    assert capsys.readouterr().out == "a result\na result\n"


def test_a_pattern_in_a_folder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(
        errors.ImageNotFoundError,
        match=r"no image in .*nothing/\*\.jpg: name a folder or a pattern that has some",
    ):
        find([str(tmp_path / "nothing" / "*.jpg")])
