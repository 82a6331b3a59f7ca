"""What a task is: what the outputs of a cloud graph mean.

To add a task, write a file with one class and add the class to the list in registry.py.

Always holds: code that knows of classes, labels or probabilities is in a task. Engines and bundles
see arrays by name. Parquet's columns, the service's answers with their description, and what
edge-send accepts all follow from a task's FIELDS.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from numpy.typing import NDArray


class Field(NamedTuple):
    """A member of an answer: its name, its type, and the smallest and largest value it may have."""

    name: str
    kind: type[str] | type[int] | type[float]
    minimum: float | None = None
    maximum: float | None = None

    def accepts(self, value: object) -> bool:
        """Whether a value, as JSON gives it, may be this member."""
        if self.kind is str:
            return isinstance(value, str)
        if isinstance(value, bool) or not isinstance(
            value, int if self.kind is int else int | float
        ):
            return False
        low = self.minimum is None or value >= self.minimum
        return low and (self.maximum is None or value <= self.maximum)


class Task(Protocol):
    """Made for a bundle's labels. May be shared between threads.

    Attributes:
        NAME: what a bundle's manifest calls the task.
        OUTPUT: the name of the graph's output that answers are made of, one row per image.
        ANSWERS: the name of an image's list of answers in JSON. No other task has the same.
        ANSWER: what the API's description calls one answer.
        FIELDS: the members of an answer, in order.
        labels: the lines of labels.txt.
    """

    NAME: ClassVar[str]
    OUTPUT: ClassVar[str]
    ANSWERS: ClassVar[str]
    ANSWER: ClassVar[str]
    FIELDS: ClassVar[tuple[Field, ...]]

    labels: list[str]

    def __init__(self, labels: Sequence[str]):
        """Args: labels: the lines of labels.txt."""

    def check(self, rows: NDArray[Any]) -> None:
        """Check that an output [N, ...] fits the task.

        Raises InconsistentBundleError, and what `answers` raises.
        """

    def answers(self, row: NDArray[Any], top_k: int) -> list[Any]:
        """What one image's row means, at most `top_k` answers, best first.

        Each is a NamedTuple with the members FIELDS. Every image has the same number of answers.
        Raises NotFiniteLogitsError.
        """

    @staticmethod
    def line(answer: Mapping[str, Any]) -> str:
        """An answer, by the names of its members, as a line of a table for a person."""

    @staticmethod
    def brief(answer: Mapping[str, Any]) -> str:
        """An answer, by the names of its members, as the end of a sentence for a person."""

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        """How far an output [N, ...] is from the expected one, and whether that is too far.

        `--tune` compares engines by it. Raises NotFiniteLogitsError if `expected` is not finite.
        """
