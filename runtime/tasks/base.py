"""What a task is: what the outputs of a cloud graph mean.

Always holds: code that knows of classes, labels or probabilities is in a task. Engines and bundles
see arrays by name.
"""

from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray


class Task(Protocol):
    """Made for a bundle's labels. May be shared between threads.

    OUTPUT is the name of the graph's output that answers are made of: one row per image.
    """

    OUTPUT: ClassVar[str]

    def check(self, rows: NDArray[Any]) -> None:
        """Check that an output [N, ...] fits the task.

        Raises InconsistentBundleError, and what `answers` raises.
        """

    def answers(self, row: NDArray[Any], top_k: int) -> list[Any]:
        """What one image's row means, at most `top_k` answers, best first.

        Raises NotFiniteLogitsError.
        """

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """How far an output [N, ...] is from the expected one, and whether that is too far.

        `--tune` compares engines by it. Raises NotFiniteLogitsError if `expected` is not finite.
        """
