"""Data and a teacher that the tests of training share; none of them changes what it is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50
from training_runs import picture


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images each: light and dark noise."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for index in range(12):
            pixels = np.clip(rng.normal(level, 30, (72, 72, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with random weights and two classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(
        {
            "state_dict": resnet50(weights=None, num_classes=2).half().state_dict(),
            "classes": ["dark", "light"],
        },
        path,
    )
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five images each."""
    for name in ("cat", "dog"):
        for index in range(5):
            picture(tmp_path / "images" / name / f"{index}.png", index)
    return tmp_path / "images"
