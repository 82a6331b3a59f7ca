"""What a task is: what the outputs of a cloud graph mean.

To add a task, write a file with one class and add the class to the list in registry.py.

Always holds: code that knows of classes, labels or probabilities is in a task. Engines and bundles
see arrays by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray


class Task(Protocol):
    """Made for a bundle's labels. May be shared between threads.

    Attributes:
        OUTPUT: the name of the graph's output that answers are made of, one row per image. A
            graph with an output of that name is for this task.
        labels: the lines of labels.txt.
    """

    OUTPUT: ClassVar[str]

    labels: list[str]

    def __init__(self, labels: Sequence[str]):
        """Args: labels: the lines of labels.txt."""

    def check(self, rows: NDArray[Any]) -> None:
        """Check that an output [N, ...] fits the task.

        Raises InconsistentBundleError, and what `answers` raises.
        """

    def answers(self, row: NDArray[Any], top_k: int) -> list[Any]:
        """What one image's row means, at most `top_k` answers, best first.

        Each is a NamedTuple of text and numbers, which JSON writes by name.
        Raises NotFiniteLogitsError.
        """

    @staticmethod
    def line(answer: Mapping[str, Any]) -> str:
        """An answer, by the names of its members, as a line of text for a person."""

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """How far an output [N, ...] is from the expected one, and whether that is too far.

        `--tune` compares engines by it. Raises NotFiniteLogitsError if `expected` is not finite.
        """
