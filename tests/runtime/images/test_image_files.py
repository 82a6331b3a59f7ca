"""Files, arguments and metadata as they are found: each is an image, or is refused by what is really wrong."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.images import image_file
from runtime.images.preprocess import load_image, preprocess

Pixels = NDArray[np.uint8]


def picture(width: int = 96, height: int = 64) -> Pixels:
    """No symmetry: any turn shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [columns * 255 // width, rows * 255 // height, (columns + rows) % 256], 2
    ).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    depth: int, colour: int, width: int, height: int, rows: bytes, *others: bytes
) -> io.BytesIO:
    """A PNG of rows that each begin with their filter, 0; `others` are chunks before the image data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(others)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


# Levels: what nothing says the range of is refused, never guessed.


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16, np.int8])
def test_levels_of_unknown_range_in_a_file(kind: type) -> None:
    """0 to 1 in float, 0 to 255 in int32: as 16-bit levels both would be black."""
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
    """Pillow turns eight bits, and leaves sixteen as a negative."""
    grey = picture()[..., 0]
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    with pytest.raises(errors.UnknownLevelsError, match="zero is white"):
        preprocess(saved(wide, "TIFF", tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0}))


@pytest.mark.parametrize("form", ["TIFF", "PNG", "PPM", "JPEG2000"])
def test_sixteen_bits_are_known_by_their_format(form: str) -> None:
    """Whatever mode Pillow gives them."""
    grey = picture()[..., 0]
    file = saved(Image.fromarray(grey.astype(np.uint16) * 257), form)
    assert np.array_equal(preprocess(file, as_is=True), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(preprocess(Image.open(file), as_is=True)[..., 0], grey)


def test_twelve_bits() -> None:
    """Two levels in three bytes; a camera's white, 4095, is not a sixteenth of white."""
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


def test_the_colour_that_stands_for_transparent_has_the_files_own_depth() -> None:
    """At two, four and sixteen bits, where a neighbour of the colour stays what it is."""
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


# Memory: the pixels' own size, and a little.

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
    """Pillow's pixels and ours, and three bytes more as they are; a file of some kilobytes asks for no more."""
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


# Metadata are not pixels.


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
        # TIFF's own directory is its EXIF: an orientation that is none.
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
    """Larger than Pillow takes, damaged, before the pixels and after them; the orientation is kept."""
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


# What Pillow does not decode, and what the system does not give.


def bmp(bits: int, compression: int, masks: tuple[int, ...] = ()) -> io.BytesIO:
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


@pytest.mark.skipif(os.name == "nt", reason="a POSIX file system's faults")
def test_faults_of_the_system_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are OSErrors with their number and the file's name."""
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
    """As from <(curl ...); not without end."""
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


# Arguments.


def wrong() -> dict[str, tuple[Any, str]]:
    path_data = saved(Image.fromarray(picture()), "PNG").getvalue()
    closed, text = io.BytesIO(path_data), io.StringIO("text")
    closed.close()
    gone = Image.open(io.BytesIO(path_data))
    gone.close()
    return {
        "bytes": (path_data * 100, r"not bytes: give io\.BytesIO\(data\)"),
        "bytearray": (bytearray(path_data), r"not bytearray: give io\.BytesIO"),
        "memoryview": (memoryview(path_data), r"not memoryview: give io\.BytesIO"),
        "list": ([picture()], "not list: give one image at a time, or several to encode_batch"),
        "None": (None, "not NoneType: give one of those"),
        "int": (3, "not int: give"),
        "a numpy scalar": (np.uint8(3), r"not numpy\.uint8: make it a uint8 array"),
        "a class": (Image, "not module: give"),
        "an empty PIL image": (Image.new("RGB", (0, 0)), "0x0 has no pixels: give one that has"),
        "a PIL image without width": (Image.new("L", (0, 9)), "0x9 has no pixels"),
        "a closed PIL image": (
            gone,
            r"closed before its pixels were read: call its load\(\) before",
        ),
        "a closed file": (closed, "is closed: open it"),
        "a text file": (text, "open as text: open it with mode 'rb'"),
    }


@pytest.mark.parametrize("name", wrong())
def test_arguments_of_a_wrong_type_are_named(name: str) -> None:
    value, what = wrong()[name]
    with pytest.raises(errors.ImageTypeError, match=what) as caught:
        preprocess(value)
    assert len(str(caught.value)) < 300


def test_a_tensor_and_a_file_for_writing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch comes with the export and train extras")
    with pytest.raises(errors.ImageTypeError, match=r"not torch\.Tensor: make it a uint8 array"):
        preprocess(torch.zeros(3, 8, 8))
    with (
        (tmp_path / "new.jpg").open("wb") as file,
        pytest.raises(errors.ImageTypeError, match="for writing alone"),
    ):
        preprocess(file)  # type: ignore[arg-type]


def test_a_program_in_a_pil_image_is_not_run() -> None:
    program = Image.open(
        io.BytesIO(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
        )
    )
    with pytest.raises(errors.NotAnImageError, match="not run"):
        preprocess(program)


@pytest.mark.parametrize(
    "images",
    ["photo.jpg", Path("photo.jpg"), b"data", None, 3, Image.new("RGB", (8, 8)), io.BytesIO()],
)
def test_a_batch_is_a_list(encoder: EdgeEncoder, images: Any) -> None:
    with pytest.raises(
        errors.ImageTypeError,
        match=r"encode_batch takes a list of images, not .*: give one image to encode",
    ):
        encoder.encode_batch(images)


@pytest.mark.parametrize(
    "pixels",
    [None, np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 4), np.uint8)],
)
def test_pixels_of_another_kind(encoder: EdgeEncoder, pixels: Any) -> None:
    with pytest.raises(errors.ImageArrayError, match="give what preprocess gives"):
        encoder.symbols(pixels)


def test_feature_files_of_a_wrong_type(decoder: CloudDecoder, feature_bytes: bytes) -> None:
    for value in ("feat.bin", Path("feat.bin"), None, [feature_bytes], 3):
        with pytest.raises(errors.FeatureFileTypeError, match=r"is bytes, not .*: read it with"):
            decoder.classify(value)  # type: ignore[arg-type]
    for several in ("feat.bin", Path("feat.bin"), feature_bytes, bytearray(feature_bytes), None, 3):
        with pytest.raises(
            errors.FeatureFileTypeError, match="takes a list of feature files, not "
        ):
            decoder.logits(several)  # type: ignore[arg-type]
    assert (
        decoder.classify(bytearray(feature_bytes))
        == decoder.classify(memoryview(feature_bytes))
        == decoder.classify(feature_bytes)
    )


# Resources.

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
    """All formats that Pillow writes, animations too; whole, cut, and with a hole in the header."""
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
