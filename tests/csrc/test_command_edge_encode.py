"""edge-encode in C++ writes the bytes that the Python command writes with the engine `native`."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from cpp_command import GOLF_BALL, JPEGS, PNMS, Run
from made_images import picture, saved
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder
from runtime.codec.feature_file import Profile, parse


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
        _exif(6, kind=3, count=0),
        _exif(6, kind=200),
        _exif(6, kind=7),
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


@pytest.mark.parametrize("junk", [b"\0", b"junk\xff\0junk", b"\xff\xff", b"\xff\xd0"])
def test_junk_before_metadata(run: Run, native: EdgeEncoder, junk: bytes) -> None:
    image = Image.fromarray(picture(320, 288))
    data = saved(image, "JPEG", exif=_exif(6)).getvalue().replace(b"\xff\xe1", junk + b"\xff\xe1")
    assert _encoded(run, data) == native.encode(BytesIO(data))
    assert _encoded(run, data) != _encoded(run, saved(image, "JPEG").getvalue())


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


@pytest.mark.parametrize("name", PNMS)
def test_pnms(run: Run, native: EdgeEncoder, name: str) -> None:
    assert _encoded(run, PNMS[name]) == native.encode(BytesIO(PNMS[name]))


def test_raw_pixels(run: Run, native: EdgeEncoder, golf_ball: NDArray[np.uint8]) -> None:
    data = _encoded(run, golf_ball.tobytes(), "--raw", "640x480")
    assert data == native.encode(golf_ball)
    assert data != _encoded(run, golf_ball.tobytes(), "--raw", "480x640")
    for size, asked in (("640x481", 923520), ("8x8", 192)):
        done = run("-", "-o", "x.bin", "--raw", size, stdin=golf_ball.tobytes())
        assert done.returncode == 1
        text = f"standard input has 921600 bytes, and --raw asks for {asked}: check the size"
        assert text in done.stderr.decode()
    done = run("-", "-o", "x.bin", "--raw", "13378x13378")
    assert b"too many pixels to decode safely (178970884 pixels" in done.stderr


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
