"""Metadata do not matter for pixels: damaged EXIF, texts and profiles are ignored."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import chunk, picture, saved
from PIL import Image, PngImagePlugin

from runtime.images.preprocess import preprocess


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize(
    "content",
    [
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03",
        b"Exif\0\0II*\0",
    ],
)
def test_exif_that_cannot_be_read_is_upright(form: str, content: bytes) -> None:
    image = Image.fromarray(picture())
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    if form == "TIFF":
        # A TIFF's EXIF is its own directory: give it an invalid orientation.
        file = saved(image, form, tiffinfo={274: 99})
    else:
        try:
            file = saved(image, form, exif=content, **options)
        except Exception:
            pytest.skip(f"this Pillow writes no such EXIF into {form}")
    if form == "JPEG":
        data = saved(image, form).getvalue()
        file = io.BytesIO(
            data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content + data[2:]
        )
    expected = preprocess(saved(image, form, **options), as_is=True)
    assert np.array_equal(preprocess(file, as_is=True), expected)


def test_orientation_is_read_before_a_tiff_is_closed(tmp_path: Path) -> None:
    stored = Image.fromarray(np.ascontiguousarray(picture()[:, ::-1].transpose(1, 0, 2)))
    for number, options in enumerate(
        ({}, {"compression": "tiff_lzw"}, {"save_all": True, "append_images": [stored]})
    ):
        path = tmp_path / f"{number}.tif"
        stored.save(path, tiffinfo={274: 6}, **options)
        assert np.array_equal(preprocess(path, as_is=True), picture())


def test_a_pngs_texts_and_profiles_are_ignored() -> None:
    """Over Pillow's limits or damaged, before and after the pixels. The orientation is kept."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(picture()[:, ::-1].transpose(1, 0, 2)))
    data = saved(stored, "PNG", exif=exif).getvalue()
    large = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 200_000))
    texts = {
        "a large zTXt": chunk(b"zTXt", b"Comment\0\0" + large),
        "a large iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + large),
        "a large iCCP": chunk(b"iCCP", b"name\0\0" + large),
        "many zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) * 70,
        "a wrong checksum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
    }
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    for name, text in texts.items():
        for at in (33, len(data) - 12):
            assert np.array_equal(
                preprocess(io.BytesIO(data[:at] + text + data[at:]), as_is=True), picture()
            ), name
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
