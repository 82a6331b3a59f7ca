"""What an engine is: the class that each file of this room implements.

To add an engine, write a file with one class and add the class to the list in registry.py.

Always holds: an engine itself says which precisions it has, what this device lacks for it, and what
`--tune` should try. Nothing outside its file asks which engine it is.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Choice:
    """What runs a graph: a provider, by which an engine is asked for, and one of PRECISIONS."""

    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.provider} {self.precision}"


class Engine(Protocol):
    """A loaded graph. May be shared between threads.

    Attributes:
        PROVIDERS: the names after --provider that mean this engine; no other engine has them.
        PRECISIONS: those of base.PRECISIONS that it computes in.
        GRAPHS: only of an engine with files of its own: those of a bundle that it runs, by end and
            precision. The others run those of registry.GRAPHS.
        choice: what it was loaded with.
        fingerprint: of the graph's bundle, 64 hexadecimal digits; None if the library drops it.
    """

    PROVIDERS: ClassVar[tuple[str, ...]]
    PRECISIONS: ClassVar[tuple[str, ...]]

    choice: Choice
    fingerprint: str | None

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        """Load a graph.

        Args:
            graph: an ONNX model with one input; with int8, a quantised one.
            choice: a provider and a precision of this class.
            threads: for one call; None for one per core.
            workers: how many threads will call `run` at the same time.

        Raises whatever the library raises.
        """

    @classmethod
    def version(cls) -> str | None:
        """The library's version, without importing it if that is slow; None if not installed."""

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """What this device lacks for a choice, to follow "needs" in a message; None if nothing."""

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        """Whether `--tune` should measure a choice that lacks nothing."""

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the graph on its one input; gives its outputs by name.

        Pixels uint8 [N, H, W, 3] give `symbols` int16 [N, C, H', W'], and these give `logits`
        float32 [N, classes]. With a variable-rate bundle, pixels give `latent` float32, and scaled
        symbols float32 give `logits`.
        """
