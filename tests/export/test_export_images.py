"""Images for export: synthetic ones, and those of a folder."""

from pathlib import Path

import numpy as np
import pytest

from export.images import NoImagesError, folder_images, synthetic_images


def test_synthetic_images_are_the_same_everywhere() -> None:
    import zlib

    images = synthetic_images(2, 64)
    assert zlib.crc32(images.tobytes()) == zlib.crc32(synthetic_images(3, 64)[:2].tobytes())
    assert images.std() > 40


def test_folder_images_passes_over_what_is_none(tmp_path: Path, golf_ball: np.ndarray) -> None:
    from PIL import Image

    with pytest.raises(NoImagesError, match="no image"):
        folder_images(tmp_path)
    (tmp_path / "a").mkdir()
    Image.fromarray(golf_ball).save(tmp_path / "a" / "ball.PNG")
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert folder_images(tmp_path).shape == (1, 224, 224, 3)
