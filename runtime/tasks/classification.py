"""Classification: logits, labels, probabilities.

Always holds: logits that are not finite numbers never become a class. (To argmax a NaN is the
largest logit.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InconsistentBundleError, NotFiniteLogitsError
from .base import Field

MAX_DEVIATION = 0.05  # largest accepted difference of a probability between two engines


class Prediction(NamedTuple):
    """A class: its label, its probability (by softmax, 0 to 1), and its index into the logits."""

    label: str
    probability: float
    class_index: int


class Classification:
    """The task of a graph with an output `logits`, float32 [N, classes].

    `labels` are the classes' names, in the order of the logits.
    """

    NAME: ClassVar[str] = "classification"
    OUTPUT: ClassVar[str] = "logits"
    ANSWERS: ClassVar[str] = "classes"
    ANSWER: ClassVar[str] = "Class"
    FIELDS: ClassVar[tuple[Field, ...]] = (
        Field("label", str),
        Field("probability", float, 0, 1),
        Field("class_index", int),
    )

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)

    def check(self, rows: NDArray[np.float32]) -> None:
        """Check that logits [N, classes] are finite, and that there are as many labels as classes.

        Raises InconsistentBundleError, NotFiniteLogitsError.
        """
        classes = require_finite(rows).shape[1]
        if classes != len(self.labels):
            raise InconsistentBundleError(f"{len(self.labels)} labels for {classes} classes")

    def answers(self, row: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of one image's logits [classes], best first.

        Raises NotFiniteLogitsError.
        """
        probabilities = softmax(require_finite(row)[None])[0]
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [
            Prediction(self.labels[index], float(probabilities[index]), int(index))
            for index in best
        ]

    @staticmethod
    def line(answer: Mapping[str, Any]) -> str:
        """The probability in percent, and the label."""
        return f"{100 * answer['probability']:5.1f} %  {answer['label']}"

    @staticmethod
    def brief(answer: Mapping[str, Any]) -> str:
        """The label, and the probability in percent."""
        return f"{answer['label']} {100 * answer['probability']:.1f} %"

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """The largest difference of a probability; another most probable class is too far as well.

        Both logits are [N, classes]. Raises NotFiniteLogitsError if `expected` is not finite.
        """
        require_finite(expected)
        if (
            found.shape != expected.shape
            or found.dtype != expected.dtype
            or not np.isfinite(found).all()
        ):
            return 1.0, True
        far = float(np.abs(softmax(found) - softmax(expected)).max())
        other_class = bool((found.argmax(1) != expected.argmax(1)).any())
        return far, not far <= MAX_DEVIATION or other_class


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities [N, classes], 0 to 1, of finite logits [N, classes]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def require_finite(logits: NDArray[Any]) -> NDArray[Any]:
    """The same logits [..., classes]. Raises NotFiniteLogitsError unless all are finite."""
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise NotFiniteLogitsError(
            f"{wrong.size} of {logits.size} logits are not finite numbers ({wrong[0]}): "
            "the bundle's weights are broken, export another checkpoint"
        )
    return logits
