"""The command edge-encode in C++ writes what the Python command writes, and refuses what it refuses.

`native` is the Python package's engine of the same arithmetic, with which all bytes are compared.
"""

import fcntl
import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_images import picture, saved
from numpy.typing import NDArray
from PIL import Image

import runtime
from runtime import EdgeEncoder
from runtime.codec.feature_file import Profile, parse
from runtime.errors import ImageError

PROJECT = Path(__file__).resolve().parent.parent.parent
GOLF_BALL = PROJECT / "docs" / "demo" / "golf_ball.jpg"
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def program(csrc_build: Path) -> Path:
    built = csrc_build / "edge-encode"
    if not built.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have libjpeg")
        pytest.skip("no libjpeg: apt-get install libjpeg62-turbo-dev")
    return built


@pytest.fixture
def run(program: Path, bundle: Path, tmp_path: Path) -> Run:
    """Runs the command in a folder of its own, with the trained ours_n4."""

    def start(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "EDGECLOUD_BUNDLE": str(bundle)},
            check=False,
            timeout=60,
        )

    return start


@pytest.fixture(scope="session")
def native(bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(bundle, threads=1, provider="native")


def _encoded(run: Run, data: bytes, *options: str) -> bytes:
    """The feature file of an image on standard input."""
    done = run("-", "-o", "-", *options, stdin=data)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _exif(orientation: int, kind: int = 3, count: int = 1, order: str = "<") -> bytes:
    """An EXIF block with one entry, the orientation."""
    value = struct.pack(order + ("H2x" if kind in (3, 8) else "I"), orientation)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    entry = struct.pack(order + "HHHI", 1, 0x0112, kind, count) + value
    return b"Exif\0\0" + head + entry + bytes(4)


def _photo(width: int = 300, height: int = 280) -> Image.Image:
    return Image.open(GOLF_BALL).crop((100, 60, 100 + width, 60 + height))


def _jpegs() -> dict[str, bytes]:
    """JPEGs of all kinds that libjpeg and Pillow read alike."""
    files = {"golf ball": GOLF_BALL.read_bytes()}

    def add(name: str, image: Image.Image, **options: object) -> None:
        files[name] = saved(image, "JPEG", **options).getvalue()

    photo = _photo()
    add("grey", photo.convert("L"))
    add("cmyk", photo.convert("CMYK"), quality=90)
    add("rgb", photo, keep_rgb=True)
    add("progressive", photo, progressive=True)
    add("grey progressive", photo.convert("L"), progressive=True)
    add("restarts", photo, restart_marker_blocks=3)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        add(subsampling, photo, subsampling=subsampling)
    for width, height in ((1, 1), (1, 90), (77, 1), (255, 257), (333, 31), (17, 8)):
        add(f"{width}x{height}", _photo(width, height))
    return files


JPEGS = _jpegs()


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs(run: Run, native: EdgeEncoder, name: str) -> None:
    assert _encoded(run, JPEGS[name]) == native.encode(BytesIO(JPEGS[name]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation(run: Run, native: EdgeEncoder, orientation: int, order: str) -> None:
    image = Image.fromarray(picture(320, 288))
    exif = _exif(orientation, order=order)
    data = saved(image, "JPEG", exif=exif, quality=95).getvalue()
    assert _encoded(run, data) == native.encode(BytesIO(data))
    turned = _encoded(run, data) != _encoded(run, saved(image, "JPEG", quality=95).getvalue())
    assert turned is (2 <= orientation <= 8)


@pytest.mark.parametrize(
    "exif",
    [
        _exif(6, kind=4),
        _exif(6, kind=3, count=2),
        _exif(1 << 16, kind=4),
        _exif(6)[:20],
        _exif(6)[:10],
        b"Exif\0\0",
        b"Exif\0\0XX" + _exif(6)[8:],
        _exif(6).replace(b"\x12\x01", b"\x13\x01"),
    ],
)
def test_odd_metadata_mean_what_they_mean_to_pillow(
    run: Run, native: EdgeEncoder, exif: bytes
) -> None:
    data = saved(Image.fromarray(picture(320, 288)), "JPEG", exif=exif).getvalue()
    assert _encoded(run, data) == native.encode(BytesIO(data))


@pytest.mark.parametrize(
    ("xmp", "exif", "turns"),
    [
        (b'<x tiff:Orientation="6"/>', b"", True),
        (b"<tiff:Orientation>8</tiff:Orientation>", b"", True),
        (b"<tiff:Orientation>x<tiff:Orientation>3", b"", True),
        (b"<tiff:Orientation", b"", False),
        (b'<x tiff:Orientation="6"/>', _exif(1), False),
    ],
)
def test_orientation_in_xmp(
    run: Run, native: EdgeEncoder, xmp: bytes, exif: bytes, turns: bool
) -> None:
    image = Image.fromarray(picture(320, 288))
    data = saved(image, "JPEG", xmp=xmp, exif=exif).getvalue()
    assert _encoded(run, data) == native.encode(BytesIO(data))
    assert (_encoded(run, data) != _encoded(run, saved(image, "JPEG").getvalue())) is turns


def _pnms() -> dict[str, bytes]:
    colours, greys = picture(90, 70), picture(90, 70)[..., 0]
    plain = " ".join(map(str, colours.ravel())).encode()
    return {
        "P6": saved(Image.fromarray(colours), "PPM").getvalue(),
        "P5": saved(Image.fromarray(greys), "PPM").getvalue(),
        "P3": b"P3\n90 # columns\n70 255\n" + plain,
        "P2": b"P2 90\t70\n255\n" + b"\n".join(b"%d" % grey for grey in greys.ravel()) + b"\n",
        "comments": b"P6 #a\n# b\n90 70#c\r 255\n" + colours.tobytes(),
        "few levels": b"P6 90 70 100\n" + (colours // 2).tobytes(),
        "few plain levels": b"P3 90 70 9\n" + " ".join(map(str, colours.ravel() // 27)).encode(),
        "levels above the largest": b"P5 90 70 200\n" + greys.tobytes(),
        "one pixel": b"P5 1 1 255\n\x80",
        "bytes behind": b"P5 1 1 255\n\x80 and more",
    }


PNMS = _pnms()


@pytest.mark.parametrize("name", PNMS)
def test_pnms(run: Run, native: EdgeEncoder, name: str) -> None:
    assert _encoded(run, PNMS[name]) == native.encode(BytesIO(PNMS[name]))


def test_raw_pixels(run: Run, native: EdgeEncoder, golf_ball: NDArray[np.uint8]) -> None:
    data = _encoded(run, golf_ball.tobytes(), "--raw", "640x480")
    assert data == native.encode(golf_ball)
    assert data != _encoded(run, golf_ball.tobytes(), "--raw", "480x640")
    done = run("-", "-o", "x.bin", "--raw", "640x481", stdin=golf_ball.tobytes())
    assert done.returncode == 1
    assert b"standard input has 921600 bytes, and --raw asks for 923520" in done.stderr


@pytest.mark.parametrize("size", [(640, 480), (333, 257), (8, 8), (23, 30)])
def test_as_is(run: Run, native: EdgeEncoder, size: tuple[int, int]) -> None:
    data = saved(Image.open(GOLF_BALL).crop((0, 0, *size)), "JPEG").getvalue()
    made = _encoded(run, data, "--as-is")
    assert made == native.encode(BytesIO(data), as_is=True)
    assert parse(made).width == size[0] // 8 * 8


def test_fast_jpeg(run: Run, bundle: Path) -> None:
    fast = EdgeEncoder(bundle, threads=1, provider="native", fast_jpeg=True)
    for side in (1000, 1023, 1024, 2048, 4100):
        image = Image.open(GOLF_BALL).resize((side + 64, side))
        data = saved(image, "JPEG").getvalue()
        assert _encoded(run, data, "--fast-jpeg") == fast.encode(BytesIO(data)), side
    # It has no effect together with --as-is, and leaves a panorama's short side.
    data = saved(Image.open(GOLF_BALL).resize((2048, 400)), "JPEG").getvalue()
    for options in ([], ["--as-is"]):
        made = _encoded(run, data, "--fast-jpeg", *options)
        assert made == fast.encode(BytesIO(data), bool(options))


@pytest.mark.parametrize(
    ("option", "profile"), [("--small", Profile.CONTEXT), ("--no-small", Profile.STATIC)]
)
def test_either_profile(run: Run, bundle: Path, option: str, profile: Profile) -> None:
    encoder = EdgeEncoder(bundle, threads=1, profile=profile, provider="native")
    made = _encoded(run, GOLF_BALL.read_bytes(), option)
    assert made == encoder.encode(GOLF_BALL)
    assert parse(made).profile is profile


def test_imagenette(run: Run, native: EdgeEncoder, shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "data" / "imagenette" / "val").glob("*/*"))[::9][:200]
    assert len(paths) == 200
    assert run(*paths, "-o", tmp_path / "out").returncode == 0
    for path in paths:
        made = (tmp_path / "out" / path.with_suffix(".bin").name).read_bytes()
        assert made == native.encode(path), path


# ---- Names, folders and reports ----


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images, files that are none, hidden ones, and links."""
    root = tmp_path / "photos"
    (root / "sub" / ".hidden").mkdir(parents=True)
    small = saved(_photo(64, 48), "JPEG").getvalue()
    for name in ("b.JPG", "a.jpeg", "sub/c.d.jpg", ".no.jpg", "sub/.hidden/no.jpg"):
        (root / name).write_bytes(small)
    (root / "sub" / "e.ppm").write_bytes(PNMS["P6"])
    (root / "notes.txt").touch()
    (root / "none").touch()
    (root / "gone.jpg").symlink_to("nothing")
    (root / "linked").symlink_to("sub")
    return root


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
def test_patterns(
    run: Run, photos: Path, tmp_path: Path, pattern: str, outputs: list[str]
) -> None:
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
def test_names_are_printed_safely(
    program: Path, bundle: Path, tmp_path: Path, name: bytes
) -> None:
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


# ---- Refusals ----

USAGE = [
    (["x.jpg"], "say where the feature files go, with -o"),
    (["-o", "x"], "the following arguments are required: IMAGE"),
    (["x.jpg", "-o", ""], "the name of the output is empty: name a file or a folder"),
    (["x.jpg", "-o"], "argument -o: expected one argument"),
    (["x.jpg", "--bundle"], "argument --bundle: expected one argument"),
    (["x.jpg", "-o", "-", "--json"], "standard output carries the feature file: use --json"),
    (["x.jpg", "-o", "/dev/stdout", "--json"], "standard output carries the feature file"),
    (["x.jpg", "y.jpg", "-o", "-"], "standard output takes one feature file: name a folder"),
    (["a/x.jpg", "b/x.png", "-o", "d/"], "several images would be written to d/x.bin: encode them"),
    (["x.jpg", "y.jpg", "-o", str(GOLF_BALL)], "is a file: name a folder for several images"),
    (["x.jpg", "-o", "y", "--threads", "0"], "argument --threads: '0' is not a whole number from"),
    (["x.jpg", "-o", "y", "--raw", "640"], "argument --raw: '640' is not WIDTHxHEIGHT"),
    (["x.jpg", "-o", "y", "--raw", "0x5"], "argument --raw: '0' is not a whole number from 1 to"),
    (["x.jpg", "-o", "y", "--frob"], "unrecognized arguments: --frob"),
    (["x.jpg", "-o", "y", "-q"], "unrecognized arguments: -q"),
    *(
        (["x.jpg", "-o", "y", *option], f"{option[0]} is an option of the Python command alone")
        for option in (
            ["--pack", "x.parquet"],
            ["--workers", "2"],
            ["--resume"],
            ["--tune"],
            ["--rate", "3"],
            ["--provider", "cpu"],
        )
    ),
]


@pytest.mark.parametrize(("arguments", "text"), USAGE)
def test_wrong_usage(run: Run, tmp_path: Path, arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: edge-encode ")
    assert done.stderr.decode().splitlines()[-1].startswith(f"edge-encode: error: {text}") or (
        text in done.stderr.decode().splitlines()[-1]
    )
    assert done.stdout == b""
    assert list(tmp_path.iterdir()) == []


def _damaged() -> dict[str, bytes]:
    whole = JPEGS["golf ball"]
    middle = len(whole) // 2
    return {
        "cut": whole[:middle],
        "overwritten": whole[:middle] + bytes(2000) + whole[middle + 2000 :],
        "unfinished": JPEGS["progressive"][: len(JPEGS["progressive"]) * 2 // 3],
        "header alone": whole[:100],
        "cut P6": PNMS["P6"][:-1],
        "cut P2": PNMS["P2"][:-4],
        "level too large": b"P2 1 1 9\n10",
        "no number": b"P2 2 1 9\n1 x",
        "long number": b"P2 1 1 9\n" + b"1" * 30,
        "no largest level": b"P5 1 1 0\n1",
        "large largest level": b"P5 1 1 65536\n12",
        "long header": b"P5 1 1111111111111 255\n1",
        "end of header": b"P6 1",
        "nothing": b"",
        "text": b"an image",
        "a lie about its size": b"P6 13000 13000 255\n12",
        "many pixels": b"P6 20000 20000 255\n12",
        "sides that overflow": b"P6 999999999 999999999 255\n12",
    }


@pytest.mark.parametrize("name", _damaged())
def test_what_is_no_whole_image_is_refused_as_in_python(
    run: Run, native: EdgeEncoder, tmp_path: Path, name: str
) -> None:
    (tmp_path / "bad").write_bytes(_damaged()[name])
    with pytest.raises(ImageError) as refused:
        native.encode(tmp_path / "bad")
    done = run("bad", GOLF_BALL, "-o", "out")
    assert done.returncode == 1, "and the other image is encoded"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["golf_ball.bin"]
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    # The same words before the reason in parentheses, which here is libjpeg's and there Pillow's.
    python = str(refused.value).removeprefix(f"{tmp_path}/").partition(" (")[0]
    if "that Pillow can read" in python:
        python = "bad is not an image that this command can read"
    assert lines[0].startswith(f"edge-encode: {python}")


def test_what_only_python_reads_is_refused(run: Run) -> None:
    for data in (saved(_photo(), "PNG").getvalue(), saved(_photo(), "WEBP").getvalue()):
        done = run("-", "-o", "-", stdin=data)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"standard input is not an image that this command can read" in done.stderr
        assert b"use the Python command" in done.stderr
    done = run("-", "-o", "-", stdin=b"P5 1 1 65535\n12")
    assert b"levels up to 65535, and this command reads those up to 255" in done.stderr
    done = run("**/*.jpg", "-o", "out")
    assert b"has **, which the Python command alone knows" in done.stderr


def test_missing_things(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").touch()
    for arguments, text in (
        (["missing.jpg", "-o", "x"], "no such file: missing.jpg"),
        (["", "-o", "x"], "no such file: a name of no characters"),
        (["x" * 300, "-o", "x"], "no such file, for the name is too long"),
        (["empty", "-o", "x"], "no image in empty, passed over 1 that is no JPEG or PNM file "),
        (["*.jpg", "-o", "x"], "no image in *.jpg: name a folder or a pattern that has some"),
        ([GOLF_BALL, "-o", "x", "--bundle", "gone"], "gone"),
        ([GOLF_BALL, "-o", "x", "--bundle", "empty"], "empty"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert text in done.stderr.decode()
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("size", [(1, 90), (1064, 1000)])
def test_sizes_that_cannot_be_encoded_as_they_are(
    run: Run, native: EdgeEncoder, size: tuple[int, int]
) -> None:
    data = saved(Image.open(GOLF_BALL).resize(size), "JPEG").getvalue()
    with pytest.raises(ImageError) as refused:
        native.encode(BytesIO(data), as_is=True)
    done = run("-", "-o", "-", "--as-is", stdin=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"edge-encode: standard input: {refused.value}\n"


def test_a_damaged_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("edge.tables", "edge.weights"):
        data = bytearray((bundle / name).read_bytes())
        data[-1] ^= 1
        (tmp_path / "broken" / name).write_bytes(data)
    done = run(GOLF_BALL, "-o", "-", "--bundle", "broken")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"export the bundle again" in done.stderr


# ---- Outputs ----


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


def test_two_outputs_that_are_one_file_are_refused(
    run: Run, photos: Path, tmp_path: Path
) -> None:
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
    from runtime.files import sweep

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
