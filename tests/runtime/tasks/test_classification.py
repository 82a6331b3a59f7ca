"""Classification: what engines' logits may differ by."""

import numpy as np

from runtime.tasks.classification import Classification


def test_deviation_of_logits() -> None:
    logits = np.array([[4.0, 0.0, 0.0]], np.float32)
    assert Classification.deviation(logits, logits + 1) == (0.0, False)
    assert Classification.deviation(logits, np.array([[0.0, 4.0, 0.0]], np.float32))[1]
    assert Classification.deviation(logits, np.full((1, 3), np.nan, np.float32)) == (1.0, True)
    assert Classification.deviation(logits, logits.astype(np.float64)) == (1.0, True)
