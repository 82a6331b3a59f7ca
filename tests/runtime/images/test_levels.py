"""Pixel levels: those of unknown range are refused, and memory stays close to the pixels' size."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_images import chunk, picture, png, saved
from PIL import Image, TiffImagePlugin

from runtime import errors
from runtime.images.preprocess import preprocess


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16, np.int8])
def test_levels_of_unknown_range_in_a_file(kind: type) -> None:
    """Such as 0 to 1 in float, or 0 to 255 in int32: read as 16-bit levels, both would be black."""
    if kind in (np.int16, np.int8):
        levels = Image.fromarray(
            picture()[..., 0].astype(np.uint16 if kind == np.int16 else np.uint8)
        )
        file = saved(levels, "TIFF", tiffinfo={TiffImagePlugin.SAMPLEFORMAT: 2})
    else:
        file = saved(
            Image.fromarray((picture()[..., 0] / (255 if kind == np.float32 else 1)).astype(kind)),
            "TIFF",
        )
    with pytest.raises(
        errors.UnknownLevelsError,
        match=r"nothing says which levels .*: convert it to 8 bits, or unsigned 16",
    ):
        preprocess(file)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_levels_of_unknown_range_in_a_pil_image(mode: str) -> None:
    with pytest.raises(errors.UnknownLevelsError, match=f"the image has mode {mode}, and"):
        preprocess(Image.fromarray(picture()).convert("L").convert(mode))


def test_a_tiff_whose_zero_is_white() -> None:
    """Pillow inverts eight bits, but not sixteen."""
    grey = picture()[..., 0]
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    with pytest.raises(errors.UnknownLevelsError, match="zero is white"):
        preprocess(saved(wide, "TIFF", tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0}))


@pytest.mark.parametrize("form", ["TIFF", "PNG", "PPM", "JPEG2000"])
def test_sixteen_bits_are_known_by_their_format(form: str) -> None:
    """Whichever mode Pillow uses for them."""
    grey = picture()[..., 0]
    file = saved(Image.fromarray(grey.astype(np.uint16) * 257), form)
    assert np.array_equal(preprocess(file, as_is=True), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(preprocess(Image.open(file), as_is=True)[..., 0], grey)


def test_twelve_bits() -> None:
    """Two levels in three bytes. 4095 is white, and not 1/16 of it, as in 16 bits."""
    levels = np.array([0, 4095, 2048, 1024] * 16, int).reshape(8, 8)
    packed = b"".join(
        bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
        for first, second in levels.reshape(-1, 2).tolist()
    )
    tags = (
        (256, 8),
        (257, 8),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(packed)),
    )
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + bytes(4)
    )
    file = io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory)
    assert np.array_equal(preprocess(file, as_is=True)[..., 0], levels >> 4)


def test_a_transparent_colour_has_the_files_bit_depth() -> None:
    """At two, four and sixteen bits; the next level stays opaque."""
    for depth in (2, 4):
        step, per_byte = 255 // (2**depth - 1), 8 // depth
        row = bytes([sum((1 + (k % 2)) << (8 - depth * (k + 1)) for k in range(per_byte))]) * (
            8 // per_byte
        )
        found = preprocess(
            png(depth, 0, 8, 8, (b"\0" + row) * 8, chunk(b"tRNS", b"\0\1")), as_is=True
        )
        assert found[0, :2, 0].tolist() == [255, 2 * step]
    grey = struct.pack(">8H", *[0x1234, 0x1235] * 4)
    found = preprocess(
        png(16, 0, 8, 8, (b"\0" + grey) * 8, chunk(b"tRNS", b"\x12\x34")), as_is=True
    )
    assert found[0, :2].tolist() == [[255] * 3, [0x12] * 3]
    key = struct.pack(">3H", 0x0102, 0x0304, 0x0506)
    colours = (key + struct.pack(">3H", 0x0102, 0x0304, 0x0507)) * 4
    file = png(16, 2, 8, 8, (b"\0" + colours) * 8, chunk(b"tRNS", key))
    for source in (file, Image.open(file)):
        assert preprocess(source, as_is=True)[0, :2].tolist() == [[255] * 3, [1, 3, 5]]


PEAK = """
import sys, warnings
warnings.simplefilter("ignore")
from PIL import Image
from runtime.images.preprocess import preprocess
Image.init()
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
preprocess(sys.argv[1], as_is=sys.argv[2] == "as_is")
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize(
    ("depth", "colour", "others", "pixel_bytes"),
    [
        (16, 0, (), 2 + 1),
        (16, 0, (chunk(b"tRNS", b"\0\1"),), 2 + 1),
        (1, 0, (), 1 + 1),
        (8, 0, (), 1),
        (8, 3, (chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"\1")), 1 + 4),
        (8, 4, (), 4 + 1),
        (8, 6, (), 4 + 4),
        (16, 2, (chunk(b"tRNS", bytes(6)),), 4 + 4 + 1),
    ],
)
def test_peak_memory(
    tmp_path: Path, depth: int, colour: int, others: tuple[bytes, ...], pixel_bytes: int
) -> None:
    """At most Pillow's pixels and our levels, and three bytes more with as_is."""
    side, form = 3000, "as_is" if depth == 16 else "cropped"
    row = b"\0" + bytes((side * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8)
    path = tmp_path / "large.png"
    path.write_bytes(png(depth, colour, side, side, row * side, *others).getvalue())
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), form], capture_output=True, text=True, check=True
    )
    assert (
        int(result.stdout)
        < (pixel_bytes + (3 if form == "as_is" else 0)) * side * side / 2**20 + 30
    )
