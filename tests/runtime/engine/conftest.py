"""What the tests of engines share."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.images.preprocess import preprocess

GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """The demo's picture, uint8 [1, 224, 224, 3]."""
    return preprocess(GOLF_BALL)[None]
