"""What an engine is. To add one: a file in this folder with one class, and its name in registry.py's list.

Always holds: an engine says itself what this device lacks for it, which precisions it has, and what is worth trying;
nothing outside its file asks which engine it is.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Choice:
    """A provider, which runs a graph, and the precision in which it computes."""

    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.provider} {self.precision}"


class Engine(Protocol):
    """A graph that is ready to run; may be shared between threads."""

    PROVIDERS: ClassVar[tuple[str, ...]]  # the names by which it is asked for
    PRECISIONS: ClassVar[tuple[str, ...]]

    choice: Choice
    fingerprint: (
        str | None
    )  # of the bundle that the graph is of, in hexadecimal; None where the engine cannot tell

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        """Load an ONNX graph. `threads` for each of `workers` simultaneous calls; None for one a core.

        Raises whatever the library raises.
        """

    @classmethod
    def version(cls) -> str | None:
        """The library's version; None where it is not installed."""

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """What this device lacks to run a choice, for a message; None if nothing."""

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        """Whether `--tune` should measure a choice that this device can run."""

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name, for its one input."""
