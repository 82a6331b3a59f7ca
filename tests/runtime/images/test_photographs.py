"""Unusual photographs look as a viewer shows them, with and without fast JPEG decoding."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_images import png, saved
from numpy.typing import NDArray
from PIL import Image

from runtime import errors
from runtime.images.preprocess import FAST_SIDE, load_image, preprocess

Pixels = NDArray[np.uint8]
RED, GREEN = (200, 30, 60), (10, 220, 90)

# By EXIF orientation, how an upright image is stored. The comments say which sides of the upright
# image are the stored row 0 and column 0.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda upright: upright[::-1].transpose(1, 0, 2),  # left, bottom
}


def quarters(width: int = 96, height: int = 64) -> Pixels:
    """Four quarters of different colours, so that a turn or a flip shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = (240, 240, 240)
    return pixels


def near(found: Pixels, expected: Pixels, levels: int = 6) -> bool:
    """Equal up to JPEG's losses; 1 % of the pixels may differ more, at edges."""
    return (
        found.shape == expected.shape
        and (np.abs(found.astype(int) - expected) > levels).any(2).mean() < 0.01
    )


def png16(colour: int, samples: NDArray[np.uint16]) -> io.BytesIO:
    """A PNG of 16-bit samples [height, width, channels], which Pillow does not write."""
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    return png(16, colour, samples.shape[1], samples.shape[0], rows)


@pytest.mark.parametrize("orientation", [*STORED, 0, 9])
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    small, large = quarters(), quarters(1600, 1200)
    stored = STORED.get(orientation, STORED[1])
    file = saved(Image.fromarray(np.ascontiguousarray(stored(small))), "PNG", exif=exif)
    assert np.array_equal(preprocess(file, as_is=True), small)
    file = saved(
        Image.fromarray(np.ascontiguousarray(stored(large))), "JPEG", exif=exif, quality=95
    )
    for fast in (False, True):
        assert near(preprocess(file, fast_jpeg=fast), preprocess(large))


def test_cmyk() -> None:
    """Inverted as Adobe writes it, with its marker or without; also YCCK (the marker says 2)."""
    pixels = quarters()
    image = Image.fromarray(pixels).convert("CMYK")
    data = saved(image, "JPEG", quality=95, subsampling=0).getvalue()
    marker = data.index(b"\xff\xee\x00\x0eAdobe")
    cyan, magenta, yellow, black = image.split()
    colours = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    planes = [plane.point(lambda level: 255 - level) for plane in colours]
    ycck = bytearray(
        saved(Image.merge("CMYK", (*planes, black)), "JPEG", quality=95, subsampling=0).getvalue()
    )
    ycck[marker + 15] = 2
    for content in (data, data[:marker] + data[marker + 16 :], bytes(ycck)):
        assert Image.open(io.BytesIO(content)).mode == "CMYK"
        for fast in (False, True):
            assert near(preprocess(io.BytesIO(content), fast_jpeg=fast), preprocess(pixels))
        assert near(preprocess(io.BytesIO(content), as_is=True), pixels)


def test_grey() -> None:
    pixels = quarters(1600, 1200)
    grey = Image.fromarray(pixels).convert("L")
    expected = preprocess(grey.convert("RGB"))
    for fast in (False, True):
        assert near(preprocess(saved(grey, "JPEG", quality=95), fast_jpeg=fast), expected)
    assert np.array_equal(preprocess(saved(grey, "PNG")), expected)
    assert np.array_equal(
        preprocess(saved(grey.convert("1", dither=Image.Dither.NONE), "PNG"), as_is=True)[0, 0],
        [0, 0, 0],
    )


def test_sixteen_bits() -> None:
    """The upper eight bits are kept, in grey and in colour, with alpha and without."""
    pixels = quarters()
    wide = pixels.astype(np.uint16) * 256 + 77
    opaque = np.full((*pixels.shape[:2], 1), 65535, np.uint16)
    assert np.array_equal(preprocess(png16(2, wide), as_is=True), pixels)
    assert np.array_equal(
        preprocess(png16(6, np.concatenate([wide, opaque], 2)), as_is=True), pixels
    )
    grey = np.repeat(pixels[..., :1], 3, 2)
    assert np.array_equal(preprocess(png16(0, wide[..., :1]), as_is=True), grey)
    assert np.array_equal(
        preprocess(png16(4, np.concatenate([wide[..., :1], opaque], 2)), as_is=True), grey
    )
    assert np.array_equal(
        preprocess(saved(Image.fromarray(wide[..., 0].astype(np.uint16)), "TIFF"), as_is=True), grey
    )


def test_a_palette() -> None:
    pixels = quarters()
    image = Image.fromarray(pixels).quantize(8)
    for form in ("PNG", "GIF", "BMP"):
        assert np.array_equal(preprocess(saved(image, form), as_is=True), pixels)


def test_transparency_is_composited_on_white() -> None:
    """RGBA, grey with alpha, a palette with alpha, and a transparent colour."""
    pixels = quarters()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[32:, 48:] = 0  # the black quarter
    alpha[32:, :48] = 128
    expected = pixels.copy()
    expected[32:, 48:] = 255
    expected[32:, :48] = 247  # 240, half on white
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert (
            np.abs(
                preprocess(saved(rgba, form, **options), as_is=True).astype(int) - expected
            ).max()
            <= 1
        )
    assert np.abs(preprocess(rgba, as_is=True).astype(int) - expected).max() <= 1
    grey = preprocess(saved(rgba.convert("LA"), "PNG"), as_is=True)
    assert grey[40, 60].tolist() == [255, 255, 255]
    assert grey[40, 10].tolist() == [247, 247, 247]
    expected[32:, :48] = 240
    palette = Image.fromarray(pixels).quantize(8)
    black = palette.getpixel((95, 63))
    for form in ("PNG", "GIF"):
        assert np.array_equal(
            preprocess(saved(palette, form, transparency=black), as_is=True), expected
        )
    keyed = saved(Image.fromarray(pixels), "PNG", transparency=(0, 0, 0))
    assert np.array_equal(preprocess(keyed, as_is=True), expected)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    frames = [
        Image.fromarray(quarters()),
        Image.new("RGB", (96, 64), "blue"),
        Image.new("RGB", (96, 64), "white"),
    ]
    options = {"lossless": True} if form == "WEBP" else {}
    file = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(file).n_frames == 3
    assert np.array_equal(preprocess(file, as_is=True), quarters())


def test_progressive_jpeg() -> None:
    """It has the same coefficients in another order, and so the same pixels."""
    image = Image.fromarray(quarters(1600, 1200))
    for fast in (False, True):
        baseline, progressive = (
            preprocess(saved(image, "JPEG", progressive=flag), fast_jpeg=fast)
            for flag in (False, True)
        )
        assert np.array_equal(baseline, progressive)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_a_truncated_jpeg_is_refused(progressive: bool, fast: bool, golf_ball: Pixels) -> None:
    data = saved(
        Image.fromarray(golf_ball).resize((1280, 960)), "JPEG", progressive=progressive
    ).getvalue()
    for part in (0.02, 0.5, 0.99):
        with pytest.raises(errors.DamagedImageError, match="damaged or cut short"):
            preprocess(io.BytesIO(data[: int(part * len(data))]), fast_jpeg=fast)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_one_pixel(form: str) -> None:
    file = saved(Image.new("RGB", (1, 1), GREEN), form)
    for fast in (False, True):
        assert near(preprocess(file, fast_jpeg=fast), np.full((224, 224, 3), GREEN, np.uint8))


def test_a_phones_photograph_with_a_second_picture() -> None:
    """MPO: a JPEG followed by another, as phones write them. The first is used."""
    pixels = quarters(1600, 1200)
    file = saved(
        Image.fromarray(pixels),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (1600, 1200))],
        quality=95,
    )
    assert Image.open(file).format == "MPO"
    for fast in (False, True):
        assert load_image(file, fast).size == ((800, 600) if fast else (1600, 1200))
        assert near(preprocess(file, fast_jpeg=fast), preprocess(pixels))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((1023, 5000), (1023, 5000)), ((1024, 5000), (512, 2500)), ((4096, 4100), (512, 513))],
)
def test_a_fast_jpeg_is_decoded_at_a_fraction(
    size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    file = saved(Image.new("RGB", size, RED), "JPEG")
    assert load_image(file).size == size
    assert load_image(file, fast_jpeg=True).size == decoded
    assert min(decoded) >= FAST_SIDE


def test_fast_jpeg_leaves_alone_what_is_not_a_large_jpeg(golf_ball: Pixels) -> None:
    image = Image.fromarray(golf_ball).resize((1280, 1024))
    for file in (
        saved(image.resize((900, 800)), "JPEG"),
        saved(image, "PNG"),
        saved(image, "WEBP"),
    ):
        assert np.array_equal(preprocess(file, fast_jpeg=True), preprocess(file))
    file = saved(image, "JPEG")
    assert np.array_equal(
        preprocess(file, as_is=True, fast_jpeg=True), preprocess(file, as_is=True)
    )
    assert not np.array_equal(preprocess(file, fast_jpeg=True), preprocess(file))


PEAK = """
import sys, warnings
warnings.simplefilter("ignore")
from runtime.images.preprocess import preprocess
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
assert preprocess(sys.argv[1], fast_jpeg=sys.argv[2] == "fast").shape == (224, 224, 3)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)
def test_108_megapixels_are_in_memory_once(tmp_path: Path) -> None:
    """12000x9000 pixels take 412 MB in Pillow; fast decoding is at an eighth of each side."""
    path = tmp_path / "large.jpg"
    Image.fromarray(quarters(120, 90)).resize((12000, 9000), Image.Resampling.NEAREST).save(path)
    for mode, limit in (("full", 412 + 60), ("fast", 60)):
        result = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), mode],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(result.stdout) < limit
