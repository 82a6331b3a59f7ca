"""edge-encode in C++: the same files, refusals and exit statuses as the Python command."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import runtime
from runtime import EdgeEncoder

DEMO = Path(__file__).resolve().parent.parent.parent / "docs" / "demo" / "golf_ball.jpg"
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
ORIENTATION = 0x0112


@pytest.fixture(scope="session")
def program(csrc_build: Path) -> Path:
    path = csrc_build / "edge-encode"
    if not path.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have libjpeg's headers")
        pytest.skip("no libjpeg: apt-get install libjpeg62-turbo-dev")
    return path


@pytest.fixture(scope="session")
def python(bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(bundle, threads=1, provider="native")


@pytest.fixture
def run(program: Path, bundle: Path, tmp_path: Path) -> Run:
    """Runs the command in an empty folder with the trained bundle."""

    def run(*arguments: object, stdin: bytes = b"", **options: Any) -> Any:
        return subprocess.run(
            [program, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"EDGECLOUD_BUNDLE": str(bundle)},
            check=False,
            **options,
        )

    return run


def _jpeg(pixels: NDArray[np.uint8], mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def _turned(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return _jpeg(pixels[:300], exif=exif)


def _xmp(pixels: NDArray[np.uint8]) -> bytes:
    packet = b'http://ns.adobe.com/xap/1.0/\x00<x tiff:Orientation="6"/>'
    plain = _jpeg(pixels)
    segment = b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet
    return plain[:2] + segment + plain[2:]


def _pnm(pixels: NDArray[np.uint8], mode: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PPM")
    return out.getvalue()


PICTURES: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "rgb": _jpeg,
    "grey": lambda pixels: _jpeg(pixels, "L"),
    "cmyk": lambda pixels: _jpeg(pixels, "CMYK"),
    "progressive": lambda pixels: _jpeg(pixels, progressive=True, quality=95),
    "4:4:4": lambda pixels: _jpeg(pixels, subsampling=0),
    "rgb components": lambda pixels: _jpeg(pixels, keep_rgb=True),
    "odd": lambda pixels: _jpeg(pixels[:231, :333]),
    "one pixel": lambda pixels: _jpeg(pixels[:1, :1]),
    "panorama": lambda pixels: _jpeg(np.tile(pixels[:9], (1, 20, 1))),
    "orientation in xmp": _xmp,
    "ppm": lambda pixels: _pnm(pixels, "RGB"),
    "pgm": lambda pixels: _pnm(pixels, "L"),
    "ppm with a comment": lambda pixels: _pnm(pixels, "RGB").replace(b"P6\n", b"P6 # made\n", 1),
} | {f"orientation {turn}": partial(_turned, orientation=turn) for turn in range(1, 10)}


@pytest.mark.parametrize("kind", PICTURES)
def test_its_file_is_that_of_the_python_command(
    run: Run, python: EdgeEncoder, golf_ball: NDArray[np.uint8], kind: str
) -> None:
    data = PICTURES[kind](golf_ball)
    done = run("-", "-o", "-", stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == python.encode(io.BytesIO(data))


def test_options_that_change_pixels(
    run: Run, bundle: Path, golf_ball: NDArray[np.uint8], python: EdgeEncoder
) -> None:
    large = _jpeg(np.asarray(Image.fromarray(golf_ball).resize((2100, 1500))))
    fast = EdgeEncoder(bundle, threads=1, provider="native", fast_jpeg=True)
    assert run("-", "-o", "-", "--fast-jpeg", stdin=large).stdout == fast.encode(io.BytesIO(large))
    odd = _jpeg(golf_ball[:123, :207])
    as_is = python.encode(io.BytesIO(odd), as_is=True)
    assert run("-", "-o", "-", "--as-is", stdin=odd).stdout == as_is
    done = run("-", "-o", "-", "--raw", "640x480", "--threads", "1", stdin=golf_ball.tobytes())
    assert done.stdout == python.encode(golf_ball)


@pytest.mark.parametrize(("option", "byte"), [("--small", 0x11), ("--no-small", 0x01)])
def test_profiles(run: Run, option: str, byte: int) -> None:
    assert run(DEMO, "-o", "-", option).stdout[1] == byte


def test_a_folder(run: Run, python: EdgeEncoder, tmp_path: Path) -> None:
    for name in ("in/b.jpg", "in/deep/er/a.JPEG", "in/.hidden.jpg", "in/.dir/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DEMO.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "bad.jpg").write_bytes(DEMO.read_bytes()[:20000])
    done = run("in", "-o", "out", "--json")
    assert done.returncode == 1
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["image"] for report in reports] == [
        "in/b.jpg",
        "in/bad.jpg",
        "in/deep/er/a.JPEG",
    ]
    assert [report["status"] for report in reports] == ["encoded", "failed", "encoded"]
    encoded = reports[0]
    assert (encoded["width"], encoded["height"]) == (224, 224)
    assert encoded["bpp"] == 8 * encoded["bytes"] / 224**2
    assert set(encoded["milliseconds"]) == {"preprocess", "encode", "write", "total"}
    assert b"passed over 1 that is no JPEG or PNM file" in done.stderr
    assert b"in/bad.jpg is damaged or cut short (its data ends before" in done.stderr
    assert b"2 encoded, 0 skipped, 1 failed; " in done.stderr
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("out/**/*.bin"))
    assert files == ["out/b.bin", "out/deep/er/a.bin"]
    assert (tmp_path / "out" / "b.bin").read_bytes() == python.encode(DEMO)
    assert not list(tmp_path.glob("**/*.partial"))


def test_the_report(run: Run, tmp_path: Path) -> None:
    done = run(DEMO, "-o", "feat.bin")
    size = (tmp_path / "feat.bin").stat().st_size
    line = f"{DEMO} -> feat.bin: {size} bytes, {8 * size / 224**2:.3f} bpp at 224x224, "
    assert done.stdout.decode().startswith(line)
    assert done.stderr == b""
    assert b" -> standard output: " in run(DEMO, "-o", "-").stderr
    assert run("--version").stdout.decode() == f"edge-encode {runtime.__version__}\n"
    assert run("--help").stdout.startswith(b"usage: edge-encode ")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([DEMO], 2, "say where the feature files go, with -o"),
        (["-o", "x"], 2, "the following arguments are required: IMAGE"),
        ([DEMO, "-o", ""], 2, "the name of the output is empty"),
        ([DEMO, DEMO, "-o", "-"], 2, "standard output takes one feature file"),
        ([DEMO, "-o", "-", "--json"], 2, "standard output carries the feature file"),
        ([DEMO, "-o", "x", "--threads", "0"], 2, "argument --threads: '0' is not a whole number"),
        ([DEMO, "-o", "x", "--raw", "640"], 2, "'640' is not WIDTHxHEIGHT"),
        ([DEMO, "-o", "x", "--pack=y"], 2, "--pack is an option of the Python command alone"),
        ([DEMO, "-o", "x", "--what"], 2, "unrecognized option '--what'"),
        ([DEMO, DEMO, "-o", "x"], 2, "several images would be written to x/golf_ball.bin"),
        (["none.jpg", "-o", "x"], 1, "edge-encode: no such file: none.jpg"),
        (["-", "-o", "x"], 1, "standard input is not a JPEG, nor a PNM of kind P5 or P6"),
        ([DEMO, "-o", "x", "--bundle", "y"], 1, "no bundle for this command in y"),
        ([DEMO, "-o", "x", "--raw", "8x8"], 1, "bytes, and --raw asks for 192"),
        ([DEMO, "-o", "/proc/none/x"], 1, "cannot write /proc/none/x: No such file or directory"),
        ([DEMO, "-o", "/dev/full"], 1, "cannot write /dev/full: No space left on device"),
        (["-", "-o", "a.jpg/x"], 1, "standard input"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value)[:40],
)
def test_refusals(run: Run, tmp_path: Path, arguments: list[Any], status: int, text: str) -> None:
    done = run(*arguments, stdin=b"GIF89a")
    assert (done.returncode, text in done.stderr.decode()) == (status, True), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"P6\n4 4\n65535\n" + bytes(96), "has levels up to 65535"),
        (
            b"P6\n4 4\n255\n" + bytes(47),
            "is damaged or cut short (its data ends before its picture does",
        ),
        (b"P5\n99999 99999\n255\n", "has too many pixels to decode safely (9999800001 pixels"),
        (b"P5\nx", "is damaged or cut short (its header)"),
        (b"\xff\xd8\xff\xe0", "is damaged or cut short ("),
        (b"", "is not a JPEG, nor a PNM"),
    ],
    ids=["16 bits", "short", "many pixels", "header", "no jpeg", "empty"],
)
def test_pictures_that_are_refused(run: Run, data: bytes, text: str) -> None:
    done = run("-", "-o", "x", stdin=data)
    assert done.returncode == 1
    assert f"edge-encode: standard input {text}" in done.stderr.decode()


def test_a_header_of_many_pixels_is_refused_before_memory_is_taken(
    run: Run, golf_ball: NDArray[np.uint8]
) -> None:
    data = bytearray(_jpeg(golf_ball))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\x00\xff\x00"
    done = run("-", "-o", "x", stdin=bytes(data))
    assert b"too many pixels to decode safely" in done.stderr


def test_no_output_replaces_an_input_or_the_bundle(
    run: Run, tmp_path: Path, copy_of: Callable[[Path], Path], bundle: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(DEMO.read_bytes())
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    for output in ("a.jpg", "link.jpg"):
        done = run("a.jpg", "-o", output)
        assert done.returncode == 1
        assert b"the output would replace the input a.jpg: name another" in done.stderr
    copy = copy_of(bundle)
    done = run("a.jpg", "-o", copy / "edge.weights", "--bundle", copy)
    assert b"the output would replace the input" in done.stderr
    assert (tmp_path / "a.jpg").read_bytes() == DEMO.read_bytes()


def test_links_devices_and_protected_files(run: Run, python: EdgeEncoder, tmp_path: Path) -> None:
    expected = python.encode(DEMO)
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "real.bin").chmod(0o640)
    (tmp_path / "link.bin").symlink_to("real.bin")
    assert run(DEMO, "-o", "link.bin").returncode == 0
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == expected
    assert (tmp_path / "real.bin").stat().st_mode & 0o777 == 0o640
    assert run(DEMO, "-o", "/dev/null").returncode == 0
    assert run(DEMO, "-o", "/dev/stdout").stdout == expected


def test_a_full_disk_leaves_the_old_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "feat.bin").write_bytes(b"old")
    done = run(DEMO, "-o", "feat.bin", preexec_fn=_allow_no_bytes)
    assert done.returncode == 1
    assert b"cannot write feat.bin: File too large" in done.stderr
    assert (tmp_path / "feat.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["feat.bin"]


def _allow_no_bytes() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_reports_that_are_lost(run: Run, program: Path, bundle: Path, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [program, DEMO, "-o", "feat.bin", "--bundle", bundle],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 1
    assert b"lines for standard output were lost: No space left on device" in done.stderr
    assert (tmp_path / "feat.bin").is_file()


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"stopped by SIGTERM")],
    ids=["INT", "TERM"],
)
def test_a_signal_is_one_line(
    program: Path, bundle: Path, tmp_path: Path, number: int, text: bytes
) -> None:
    waiting = subprocess.Popen(
        [program, "-", "-o", "feat.bin", "--bundle", bundle],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    while not _waits_for_input(waiting.pid):
        time.sleep(0.01)
    waiting.send_signal(number)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 128 + number
    assert errors == b"edge-encode: " + text + b"\n"
    assert list(tmp_path.iterdir()) == []


def _waits_for_input(pid: int) -> bool:
    """Whether a process has installed its signal handlers and sleeps."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and "State:\tS" in status


def test_real_pictures(program: Path, bundle: Path, shared: Path, tmp_path: Path) -> None:
    """200 validation images, as folders of the command; the Python engine writes the same."""
    paths = sorted((shared / "data" / "imagenette" / "val").glob("*/*"))[::9][:200]
    assert len(paths) == 200
    done = subprocess.run(
        [program, *paths, "-o", tmp_path / "out", "--bundle", bundle],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    python = EdgeEncoder(bundle, threads=1, provider="native")
    for path in paths:
        assert (tmp_path / "out" / f"{path.stem}.bin").read_bytes() == python.encode(path), path
