"""Classification: logits, labels, probabilities.

Always holds: no class is given of logits that are not finite numbers, since argmax takes a NaN for the largest.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InconsistentBundleError, NotFiniteLogitsError

MAX_MOVED = 0.05  # of a probability, between two engines


class Prediction(NamedTuple):
    """A class: its label, its probability (softmax, 0 to 1), and its place among the logits."""

    label: str
    probability: float
    class_index: int


class Classification:
    """The task of a graph whose output `logits` is float32 [N, classes]."""

    OUTPUT: ClassVar[str] = "logits"

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)

    def check(self, rows: NDArray[np.float32]) -> None:
        """Raises InconsistentBundleError for another number of classes than labels, NotFiniteLogitsError."""
        classes = require_finite(rows).shape[1]
        if classes != len(self.labels):
            raise InconsistentBundleError(f"{len(self.labels)} labels for {classes} classes")

    def answers(self, row: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of one row of logits, best first. Raises NotFiniteLogitsError."""
        probabilities, best = self.most_probable(require_finite(row)[None], top_k)
        return [
            Prediction(self.labels[index], float(probabilities[0, index]), int(index))
            for index in best[0]
        ]

    @staticmethod
    def most_probable(
        logits: NDArray[np.float32], top_k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Of finite logits [N, classes]: all probabilities [N, classes], and the indexes [N, top_k] of the largest, best first."""
        probabilities = softmax(logits)
        return probabilities, np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """The largest difference of a probability; another first choice is too far as well. Raises NotFiniteLogitsError."""
        require_finite(expected)
        if (
            found.shape != expected.shape
            or found.dtype != expected.dtype
            or not np.isfinite(found).all()
        ):
            return 1.0, True
        moved = float(np.abs(softmax(found) - softmax(expected)).max())
        return moved, not moved <= MAX_MOVED or bool((found.argmax(1) != expected.argmax(1)).any())


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits [N, classes]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def require_finite(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits [..., classes] as they are. Raises NotFiniteLogitsError."""
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise NotFiniteLogitsError(
            f"{wrong.size} of {logits.size} logits are not finite numbers ({wrong[0]}): the bundle's weights are broken, "
            "export another checkpoint"
        )
    return logits
