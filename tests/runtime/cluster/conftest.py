"""Feature files to classify, with their classes."""

import numpy as np
import pytest
from numpy.typing import NDArray
from ray_load import Sample

from runtime import CloudDecoder, EdgeEncoder


@pytest.fixture(scope="session")
def samples(
    golf_ball: NDArray[np.uint8], encoder: EdgeEncoder, decoder: CloudDecoder
) -> list[Sample]:
    """Feature files of parts of the demo's picture, with their classes as found in this process.

    No two samples have the same class and probability.
    """
    parts = [
        golf_ball[top : top + 224, left : left + 224]
        for top in range(0, 256, 64)
        for left in range(0, 416, 104)
    ]
    files = [encoder.encode(part) for part in parts]
    best = [decoder.classify(data, 1)[0] for data in files]
    found = [
        Sample(data, one.class_index, one.probability)
        for data, one in zip(files, best, strict=True)
    ]
    unlike = {(one.class_index, round(one.probability, 3)): one for one in found}
    assert len(unlike) >= 12
    return list(unlike.values())
