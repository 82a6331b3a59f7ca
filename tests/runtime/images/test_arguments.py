"""Arguments of a wrong type: each error names the type that was given and what to give instead."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import picture, saved
from PIL import Image

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.images.preprocess import preprocess


def wrong() -> dict[str, tuple[Any, str]]:
    """Arguments that are no image, and the text that names them."""
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
