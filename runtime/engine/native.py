"""The native encoder: the edge in whole numbers alone, in C++ that comes with this package.

It runs `edge.weights` of a bundle, and needs nothing but numpy. docs/BUNDLE.md specifies what it
computes. It has no cloud half.

Always holds: the symbols, or the latent of a variable-rate bundle, are the same on every processor
and for every number of threads.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..codec.bundle import EDGE_WEIGHTS
from . import _encoder, processor
from .base import Choice

_MOST_THREADS = 256  # of _encoder.Encoder


class Native:
    """edge.weights in the integer encoder."""

    PROVIDERS: ClassVar[tuple[str, ...]] = ("native",)
    PRECISIONS: ClassVar[tuple[str, ...]] = ("int8",)
    GRAPHS: ClassVar[dict[str, dict[str, str]]] = {"edge": {"int8": EDGE_WEIGHTS}, "cloud": {}}

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        self.choice = choice
        self._encoder = _encoder.Encoder(graph, min(threads or processor.cores(), _MOST_THREADS))
        self.fingerprint: str | None = self._encoder.fingerprint.hex()

    @classmethod
    def version(cls) -> str | None:
        """As Engine.version."""
        return __version__

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """As Engine.lacks."""
        return None

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        """As Engine.is_worth_trying."""
        return True

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """As Engine.run."""
        values = self._encoder.encode(np.ascontiguousarray(batch))
        fraction = self._encoder.latent_fraction
        if fraction is None:
            return {"symbols": values}
        return {"latent": values * np.float32(2.0**-fraction)}
