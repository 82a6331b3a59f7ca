"""What a task is: what the outputs of a cloud graph mean.

Always holds: all that knows of classes, labels or probabilities stands in a task; the engines, the batcher and the
bundle see arrays by name.
"""

from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray


class Task(Protocol):
    """Made for a bundle's labels; may be shared between threads."""

    OUTPUT: ClassVar[str]  # the graph output that answers are made of, a row an image

    def check(self, rows: NDArray[Any]) -> None:
        """Whether an output [N, ...] fits the task. Raises InconsistentBundleError, and what `answers` raises."""

    def answers(self, row: NDArray[Any], top_k: int) -> list[Any]:
        """What one image's row means, best first. Raises NotFiniteLogitsError."""

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """How far an engine's output is from the one to be trusted, and whether that is too far.

        Raises NotFiniteLogitsError where the one to be trusted is not finite.
        """
