"""Image files: unsupported variants, system errors, pipes, and who closes what."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import picture, saved
from PIL import Image

from runtime import errors
from runtime.images import image_file
from runtime.images.preprocess import load_image, preprocess


def bmp(bits: int, compression: int, masks: tuple[int, ...] = ()) -> io.BytesIO:
    """A BMP of 8x8 pixels, which need not be a valid one."""
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, 0, 0, 0, 0, 0) + struct.pack(
        f"<{len(masks)}I", *masks
    )
    return io.BytesIO(
        b"BM"
        + struct.pack("<IHHI", 14 + len(head) + 256, 0, 0, 14 + len(head))
        + head
        + bytes(8 * 8 * 4)
    )


@pytest.mark.parametrize("file", [bmp(32, 3, (0x3FF00000, 0xFFC00, 0x3FF)), bmp(2, 0), bmp(24, 9)])
def test_a_variant_that_pillow_lacks_is_not_called_damaged(file: io.BytesIO) -> None:
    with pytest.raises(
        errors.UnsupportedImageError,
        match=r"of a kind that Pillow does not decode .*: convert it to JPEG or PNG",
    ):
        preprocess(file)


def test_a_film(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    path.write_bytes(b"\0\0\1\xb3\x08\0\x80" + bytes(40))
    with pytest.raises(errors.UnsupportedImageError, match="is a film: take an image from it"):
        preprocess(path)


@pytest.mark.skipif(os.name == "nt", reason="errors of POSIX file systems")
def test_system_errors_are_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay OSErrors with their number, and have the file's name."""
    loop, place = tmp_path / "loop.jpg", tmp_path / "socket.jpg"
    loop.symlink_to(loop)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(place.name)
        for path, number in ((loop, errno.ELOOP), (place, errno.ENXIO)):
            with pytest.raises(OSError, match=path.name) as caught:
                preprocess(path)
            assert caught.value.errno == number

    class FailingDisk(io.BytesIO):
        name = "card/IMG_0001.JPG"
        number = errno.EIO

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100:
                raise OSError(self.number, os.strerror(self.number))
            return super().read(size)

    for form in ("JPEG", "PNG", "TIFF"):
        for number in (errno.EIO, errno.ESTALE, errno.ENOMEM):
            disk = FailingDisk(saved(Image.effect_noise((300, 300), 60), form).getvalue())
            disk.number = number
            with pytest.raises(OSError, match=r"card/IMG_0001\.JPG") as caught:
                preprocess(disk)
            assert caught.value.errno == number


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("", "no such file: a name of no characters"),
        ("a\0b.jpg", r"no file can have the name 'a\\x00b.jpg'"),
        ("\ud800.jpg", "no file can have the name|no such file"),
        ("x" * 500_000, "the name is too long: x"),
    ],
)
def test_names_that_no_file_has(name: str, what: str) -> None:
    with pytest.raises(errors.ImageNotFoundError, match=what) as caught:
        preprocess(name)
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from <(curl ...), up to a limit."""
    pipe, data = tmp_path / "pipe.png", saved(Image.fromarray(picture()), "PNG").getvalue()
    os.mkfifo(pipe)
    for limit in (image_file.MAX_STREAM_BYTES, len(data) - 1):
        monkeypatch.setattr(image_file, "MAX_STREAM_BYTES", limit)
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        if limit >= len(data):
            assert np.array_equal(preprocess(pipe, as_is=True), picture())
        else:
            with pytest.raises(errors.ImageFileTooLargeError, match="make it smaller first"):
                preprocess(pipe)
        writer.join()


def test_a_program_in_a_pil_image_is_not_run() -> None:
    program = Image.open(
        io.BytesIO(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
        )
    )
    with pytest.raises(errors.NotAnImageError, match="not run"):
        preprocess(program)


CLOSED = """
import gc, sys
from PIL import Image
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess
for name in sys.argv[1:]:
    try:
        preprocess(name)
    except EdgeCloudError:
        pass
    gc.collect()
    with open(name, "rb") as file:
        try:
            preprocess(file)
        except EdgeCloudError:
            pass
        assert not file.closed, name
"""


def test_files_are_closed_by_who_opened_them(tmp_path: Path) -> None:
    """In all formats that Pillow writes, also animated: whole, truncated, with a damaged header."""
    Image.init()
    image = Image.fromarray(picture())
    others = [Image.new("RGB", image.size, colour) for colour in ("red", "blue")]
    names = []
    for form in Image.SAVE:
        for many in (False, True):
            if form in ("PDF", "TIFF") and many and form not in Image.SAVE_ALL:
                continue
            for mode in ("RGB", "L", "1"):
                options: dict[str, Any] = (
                    {"save_all": True, "append_images": others} if many else {}
                )
                file = io.BytesIO()
                try:
                    image.convert(mode).save(file, form, **options)
                except (OSError, ValueError, KeyError, AttributeError):
                    continue
                data = file.getvalue()
                for number, content in enumerate(
                    (data, data[: len(data) // 2], data[:40] + bytes(60) + data[100:])
                ):
                    path = tmp_path / f"{form}-{many}-{mode}-{number}"
                    path.write_bytes(content)
                    names.append(str(path))
                break
    assert len(names) > 60
    strict = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", CLOSED, *names]
    result = subprocess.run(strict, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ResourceWarning" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_pillows_settings_and_the_callers_images_stay(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(picture()).save(path)
    with warnings.catch_warnings(record=True) as caught, Image.open(path) as image:
        warnings.simplefilter("always")
        preprocess(image)
        assert np.array_equal(np.asarray(image), picture())
        assert load_image(path).size == (96, 64)
    assert not caught
