"""Damaged images are refused, also where Pillow decodes them without a word."""

import io
import random
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import chunk
from PIL import Image, TiffImagePlugin

from runtime import errors
from runtime.codec._coder import jpeg_damage
from runtime.images.preprocess import preprocess

END = b"\xff\xd9"


def picture(width: int = 200, height: int = 150) -> Image.Image:
    """Smooth shapes and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack(
        [128 + 90 * np.sin(columns / 9 + rows / (7 + 3 * band)) for band in range(3)], 2
    )
    return Image.fromarray(
        np.clip(waves + rng.normal(scale=12, size=waves.shape), 0, 255).astype(np.uint8)
    )


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpegs() -> dict[str, bytes]:
    image = picture()
    return {
        "baseline": saved(image, "JPEG", quality=85),
        "optimized": saved(image, "JPEG", optimize=True, subsampling=0),
        "progressive": saved(image, "JPEG", progressive=True),
        "progressive at 4:4:4": saved(image, "JPEG", progressive=True, subsampling=0, quality=95),
        "restarts": saved(image, "JPEG", restart_marker_blocks=5),
        "progressive with restarts": saved(image, "JPEG", progressive=True, restart_marker_rows=1),
        "grey": saved(image.convert("L"), "JPEG"),
        "CMYK": saved(image.convert("CMYK"), "JPEG", progressive=True),
    }


JPEGS = jpegs()


def scan_of(data: bytes) -> tuple[int, int]:
    """Where the first scan's codes begin, and where the image ends."""
    head = data.index(b"\xff\xda")
    return head + 2 + int.from_bytes(data[head + 2 : head + 4], "big"), len(data) - 2


def refused(data: bytes, fast: bool = False) -> bool:
    try:
        preprocess(io.BytesIO(data), fast_jpeg=fast)
    except errors.DamagedImageError:
        return True
    return False


@pytest.mark.parametrize("name", JPEGS)
def test_a_whole_jpeg_is_taken(name: str) -> None:
    assert jpeg_damage(JPEGS[name]) is None
    assert not refused(JPEGS[name])


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("part", [0.02, 0.25, 0.5, 0.75, 0.97])
def test_a_jpegs_scan_that_is_cut_and_ended(name: str, part: float) -> None:
    """libjpeg fills the rest with grey, and warns; Pillow drops the warning."""
    data = JPEGS[name]
    begin, end = scan_of(data)
    cut = data[: begin + int(part * (end - begin))].rstrip(b"\xff") + END
    Image.open(io.BytesIO(cut)).load()
    assert refused(cut)
    assert refused(cut, fast=True)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("value", [0x00, 0x55, 0xA7])
def test_a_jpegs_tail_that_is_overwritten(name: str, value: int) -> None:
    """As an interrupted copy leaves it. libjpeg decodes what it can of the repeated value."""
    data = JPEGS[name]
    begin, end = scan_of(data)
    for part in (0.2, 0.6):
        keep = begin + int(part * (end - begin))
        assert refused(data[:keep] + bytes([value]) * (end - keep) + END)


@pytest.mark.parametrize("name", JPEGS)
def test_a_hole_of_garbage_in_a_jpegs_scan(name: str) -> None:
    """Garbage may happen to be valid codes; of holes of 1,000 bytes nearly all are found."""
    data, chance = JPEGS[name], random.Random(0)
    begin, end = scan_of(data)
    size = min(1000, (end - begin) // 2)
    found = 0
    for _ in range(20):
        at = chance.randrange(begin, end - size)
        found += refused(
            data[:at] + bytes(chance.randrange(255) for _ in range(size)) + data[at + size :]
        )
    assert found >= 16


def test_a_lost_restart_interval() -> None:
    data = JPEGS["restarts"]
    second, fourth = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    assert jpeg_damage(data[:second] + data[fourth:]) == "a part of its data is missing"
    assert refused(data[:second] + data[fourth:])


def test_a_progressive_jpeg_without_its_last_scans() -> None:
    """Cut between two complete scans: libjpeg does not even warn."""
    data = JPEGS["progressive"]
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    tables = [data.rindex(b"\xff\xc4", 0, scan) for scan in scans[1:]]
    for cut in tables:
        assert jpeg_damage(data[:cut] + END) is not None
    assert jpeg_damage(data[: tables[-1]] + END) == "its last scans are missing"


def test_harmless_junk_is_accepted() -> None:
    """Between header segments (as one camera writes in a tenth of its files) or after the scan."""
    for data in (JPEGS["baseline"], JPEGS["progressive"]):
        expected = preprocess(io.BytesIO(data))
        tables = data.index(b"\xff\xdb")
        for harmless in (
            data[:tables] + b"\0" * 18 + data[tables:],
            data[:tables] + b"\xff" * 5 + data[tables:],
            data[:-2] + b"\0\0" + END,
            data[:-2] + b"\xff" * 40 + END,
            data + b"\0" * 5000,
            data + data,
        ):
            assert np.array_equal(preprocess(io.BytesIO(harmless)), expected)


def test_a_motion_jpeg_frame_without_huffman_tables() -> None:
    """Such frames use the standard's tables, as Pillow's files do by default."""
    data = JPEGS["baseline"]
    bare = data
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    assert jpeg_damage(bare) is None
    begin, end = scan_of(bare)
    assert jpeg_damage(bare[: (begin + end) // 2] + END) == "its data ends before its picture does"


def test_the_second_picture_of_a_phones_photograph_is_not_checked() -> None:
    data = saved(picture(), "MPO", save_all=True, append_images=[picture(64, 64)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert not refused(data[:-300] + END)
    begin, _ = scan_of(data)
    assert refused(data[: begin + 500] + bytes(2000) + data[begin + 2500 :])


@given(st.binary(max_size=300))
def test_any_bytes_are_checked_without_a_crash(junk: bytes) -> None:
    """Alone, as a scan, and over a header: the result is a reason or None."""
    data = JPEGS["progressive"]
    begin, _ = scan_of(data)
    replaced = (data[:at] + junk + data[at + len(junk) :] for at in (20, 200, 600))
    for jpeg in (junk, b"\xff\xd8" + junk, data[:begin] + junk + END, *replaced):
        assert jpeg_damage(jpeg) is None or isinstance(jpeg_damage(jpeg), str)


def test_a_huge_header_takes_no_memory() -> None:
    """65535 x 65535 in four components would need 2 GB; only what the data reaches is used."""
    frame = struct.pack(">BHHB", 8, 65535, 65535, 4) + b"".join(
        bytes([c, 0x11, 0]) for c in range(4)
    )
    scan = bytes([4, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0])
    segments = ((b"\xff\xc2", frame), (b"\xff\xda", scan))
    data = b"\xff\xd8" + b"".join(
        marker + struct.pack(">H", 2 + len(body)) + body for marker, body in segments
    )
    assert jpeg_damage(data + b"\x12\x34" + END) == "its data ends before its picture does"


def test_a_damaged_pil_image_that_is_not_loaded_yet(tmp_path: Path) -> None:
    begin, end = scan_of(JPEGS["baseline"])
    path = tmp_path / "cut.jpg"
    path.write_bytes(JPEGS["baseline"][: (begin + end) // 2] + END)
    with Image.open(path) as image, pytest.raises(errors.DamagedImageError):
        preprocess(image)


def shortened_strip(data: bytes) -> bytes:
    """A TIFF whose last strip is half as long, as the file itself says."""
    sizes = Image.open(io.BytesIO(data)).tag_v2[TiffImagePlugin.STRIPBYTECOUNTS]
    kind = "H" if max(sizes) < 1 << 16 and struct.pack(f"<{len(sizes)}H", *sizes) in data else "I"
    found = struct.pack(f"<{len(sizes)}{kind}", *sizes)
    assert data.count(found) == 1
    return data.replace(found, struct.pack(f"<{len(sizes)}{kind}", *sizes[:-1], sizes[-1] // 2))


@pytest.mark.parametrize("options", [{}, {"quality": 95}, {"strip_size": 4096}])
def test_a_jpeg_inside_a_tiff(options: dict[str, int]) -> None:
    """In strips, with the Huffman tables in a tag of their own."""
    data = saved(picture(), "TIFF", compression="jpeg", **options)
    assert not refused(data)
    tags = Image.open(io.BytesIO(data)).tag_v2
    at, size = tags[TiffImagePlugin.STRIPOFFSETS][-1], tags[TiffImagePlugin.STRIPBYTECOUNTS][-1]
    half = at + size // 2
    assert refused(data[:half] + END + bytes(at + size - half - 2) + data[at + size :])
    assert refused(shortened_strip(data))


def test_a_pngs_checksums() -> None:
    """Of all chunks that pixels come from. Pillow ignores those of the image data."""
    data = saved(picture().quantize(16), "PNG", transparency=3, compress_level=0)
    assert not refused(data)
    for kind in (b"PLTE", b"tRNS", b"IDAT"):
        damaged = bytearray(data)
        at = data.index(kind) + 4 + (900 if kind == b"IDAT" else 0)
        damaged[at] ^= 1
        with pytest.raises(errors.DamagedImageError, match=f"a wrong checksum in {kind.decode()}"):
            preprocess(io.BytesIO(bytes(damaged)))
    data = saved(picture(), "PNG")
    hole = data[: len(data) // 2] + bytes(len(data) // 2 - 50) + data[-50:]
    Image.open(io.BytesIO(hole)).load()
    assert refused(hole)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_of_too_few_rows(interlaced: bool) -> None:
    """The data ends properly, after a whole row. Complete black images are accepted."""
    black, head = bytes(50 * 151), struct.pack(">IIBBBBB", 150, 50, 8, 0, 0, 0, interlaced)
    if interlaced:
        sides = ((19, 7), (19, 7), (38, 6), (38, 13), (75, 12), (75, 25), (150, 25))
        black = bytes(sum((columns + 1) * rows for columns, rows in sides))
    for data, is_whole in ((black, True), (black[: -151 * 3], False)):
        file = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(data))
            + chunk(b"IEND", b"")
        )
        assert refused(file) != is_whole


def truncated(form: str) -> bytes:
    """An image cut in half, with lengths and an end as if it were whole."""
    image = picture()
    if form == "PNG":
        head = saved(image, "PNG")[:33]
        rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image)[:75])
        return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    if form == "WEBP":
        data = saved(image, "WEBP")
        half = len(data) // 4 * 2
        return (
            data[:4]
            + struct.pack("<I", half - 8)
            + data[8:16]
            + struct.pack("<I", half - 20)
            + data[20:half]
        )
    if form == "JPEG2000":
        data = saved(image, "JPEG2000")
        return data[: len(data) // 2] + END
    if form == "GIF":
        data = saved(image, "GIF")
        at = data.index(b"\x2c\0\0\0\0") + 10 + 1
        for _ in range(4):
            at += 1 + data[at]
        return data[:at] + b"\0;"
    return shortened_strip(saved(image, "TIFF", compression="tiff_lzw"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG2000", "GIF", "TIFF"])
def test_other_formats_that_are_cut_and_ended(form: str) -> None:
    assert refused(truncated(form))


def test_real_photographs_are_taken(shared: Path) -> None:
    """About a hundred, as they are and as progressive JPEGs."""
    files = sorted((shared / "data" / "imagenet_sample").glob("*/*"))[::8]
    assert len(files) >= 90
    for path in files:
        data = path.read_bytes()
        assert jpeg_damage(data) is None, path
        assert jpeg_damage(saved(Image.open(path), "JPEG", progressive=True)) is None, path


def test_what_libjpeg_warns_of_is_found(tmp_path: Path) -> None:
    """djpeg prints libjpeg's warnings; files with one about a scan must be refused."""
    try:
        subprocess.run(["djpeg", "-version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("djpeg is not installed: apt-get install libjpeg-turbo-progs")
    chance, warned = random.Random(0), 0
    for number in range(120):
        data = bytearray(chance.choice(list(JPEGS.values())))
        begin, end = scan_of(bytes(data))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(begin, end)] = chance.randrange(255)
        if number % 3 == 0:
            del data[chance.randrange(begin, end) : end]
        result = subprocess.run(
            ["djpeg", "-verbose", "-scale", "1/8"],
            input=bytes(data),
            capture_output=True,
            check=False,
        )
        if any(
            text in result.stderr
            for text in (b"premature end of data", b"bad Huffman code", b"instead of RST")
        ):
            warned += 1
            assert jpeg_damage(bytes(data)) is not None
    assert warned > 20
