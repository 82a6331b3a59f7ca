"""Preprocessing: torchvision's transform, all PIL modes, EXIF, --as-is, and refused images."""

import contextlib
import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from made_images import png
from PIL import Image

from runtime import errors
from runtime.codec.manifest import Preprocessing
from runtime.images.preprocess import load_image, preprocess


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and noise, so that a resize has something to get wrong."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        128 + 90 * np.sin(columns / rng.uniform(3, 40) + rows / rng.uniform(3, 40))
        for _ in range(3)
    ]
    return np.clip(
        np.stack(waves, 2) + rng.normal(scale=20, size=(height, width, 3)), 0, 255
    ).astype(np.uint8)


SIZES = [
    (640, 480),
    (480, 640),
    (224, 224),
    (256, 256),
    (257, 300),
    (1001, 333),
    (100, 60),
    (33, 1000),
    (8, 8),
    (1, 1),
    (3, 900),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_matches_the_references_transform(width: int, height: int) -> None:
    """At most one level from torchvision's Resize(256) and CenterCrop(224)."""
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="torchvision comes with the export and train extras"
    )
    image = Image.fromarray(picture(width, height))
    expected = np.asarray(transforms.CenterCrop(224)(transforms.Resize(256)(image))).astype(int)
    assert np.abs(preprocess(image).astype(int) - expected).max() <= 1


def test_a_path_an_open_file_an_image_and_an_array_give_the_same(tmp_path: Path) -> None:
    pixels = picture(300, 280)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = preprocess(pixels)
    assert expected.shape == (224, 224, 3)
    assert expected.dtype == np.uint8
    for source in (path, str(path), io.BytesIO(path.read_bytes()), Image.open(path)):
        assert np.array_equal(preprocess(source), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16"]
)
def test_any_mode_becomes_rgb(mode: str) -> None:
    pixels = picture(240, 240)
    grey = Image.fromarray(pixels).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("LA", "1"):
        image = grey.convert(mode)
    elif mode == "LAB":
        image = Image.merge("LAB", Image.fromarray(pixels).split())
    else:
        image = Image.fromarray(pixels).convert(mode)
    out = preprocess(image)
    assert out.shape == (224, 224, 3)
    assert out.std() > 5
    if mode == "I;16":
        assert np.abs(out.astype(int) - preprocess(grey).astype(int)).max() <= 1


def test_as_is_crops_to_multiples_of_8_from_the_middle() -> None:
    pixels = picture(85, 67)
    assert np.array_equal(preprocess(pixels, as_is=True), pixels[2:66, 2:82])
    assert np.array_equal(preprocess(pixels[:64, :80], as_is=True), pixels[:64, :80])


def test_a_panorama_does_not_explode() -> None:
    assert preprocess(np.zeros((1, 60_000, 3), np.uint8)).shape == (224, 224, 3)
    assert preprocess(np.zeros((60_000, 1, 3), np.uint8)).shape == (224, 224, 3)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageNotFoundError, match=r"no such file: .*missing\.jpg"):
        preprocess(tmp_path / "missing.jpg")
    with pytest.raises(errors.ImageNotFoundError, match="is a folder"):
        preprocess(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\xfc\x01 a feature file"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(errors.NotAnImageError, match="not an image"):
        preprocess(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_image(tmp_path: Path, suffix: str, part: float) -> None:
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    Image.fromarray(picture(200, 200)).save(whole)
    path.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
    with pytest.raises(
        (errors.DamagedImageError, errors.NotAnImageError),
        match=r"damaged or cut short|not an image",
    ):
        preprocess(path)


def test_a_program_that_draws_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "drawing.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(errors.NotAnImageError, match="not run"):
        preprocess(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_is_refused_or_harmless(form: str) -> None:
    """Bytes overwritten at random, the header's above all, EXIF data among them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 32)).save(
        buffer, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {})
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(buffer.getvalue())
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(min(len(data), rng.choice([64, 400, 10**6])))] = rng.choice(
                [0, 255, rng.integers(256)]
            )
        with contextlib.suppress(errors.ImageError):
            assert preprocess(io.BytesIO(bytes(data))).shape == (224, 224, 3)


def test_an_image_that_was_opened_and_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    Image.fromarray(picture(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(errors.DamagedImageError):
        preprocess(Image.open(path))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims width x height pixels and has 100 bytes of them."""
    return png(8, 2, width, height, b"\0" * 100).getvalue()


def test_decompression_bomb() -> None:
    with pytest.raises(errors.DecompressionBombError, match="too many pixels"):
        load_image(io.BytesIO(png_header(50_000, 50_000)))


def test_under_8_pixels_as_is() -> None:
    with pytest.raises(
        errors.ImageTooSmallError, match="7x100 pixels is under 8 a side: leave out --as-is"
    ):
        preprocess(np.zeros((100, 7, 3), np.uint8), as_is=True)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    with pytest.raises(errors.ImageArrayError, match="uint8"):
        preprocess(array)


def test_a_panorama_is_bounded_whatever_the_bundle_resizes_to() -> None:
    """Otherwise a bundle that resizes to 4096 pixels would make 4096 x 204,800 of this."""
    thin = np.zeros((8, 400, 3), np.uint8)
    with patch.object(
        Image.Image, "resize", autospec=True, side_effect=Image.Image.resize
    ) as resize:
        # Native code resizes the array, and Pillow the grey image.
        for source in (thin, Image.fromarray(thin[:, :, 0])):
            assert preprocess(source, rule=Preprocessing(4096, 64)).shape == (64, 64, 3)
    resize.assert_called_once()
    assert resize.call_args.args[1] == (16384, 4096)
