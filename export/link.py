"""What lies between the two graphs: at a fixed rate nothing, at a variable one the gains.

    fixed rate      edge graph -> symbols int16 ---------------------------> cloud graph
    variable rate   edge graph -> latent -> symbols at a step -> values ---> cloud graph

A step is a sixteenth of a rate level. At a fixed rate it is None everywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.codec.rates import Rates, step_of

CHECKED_LEVELS = (0.0, 7.5, 15.0)  # at which variable-rate graphs are compared and judged


@dataclass(frozen=True)
class Link:
    """How the edge graph's output becomes symbols, and symbols the cloud graph's input.

    Attributes:
        rates: of a variable-rate model; None at a fixed rate.
    """

    rates: Rates | None = None

    @property
    def steps(self) -> tuple[int | None, ...]:
        """At which both graphs are compared and judged."""
        return (None,) if self.rates is None else tuple(map(step_of, CHECKED_LEVELS))

    def symbols(self, output: NDArray[Any], step: int | None) -> NDArray[np.int16]:
        """Symbols int16 [N, C, H', W'] of the edge graph's output. Raises NotANumberError."""
        if self.rates is None or step is None:
            return output
        return np.stack([self.rates.symbols(one, step) for one in output])

    def graph_input(self, symbols: NDArray[np.int16], step: int | None) -> NDArray[Any]:
        """Symbols int16 [N, C, H', W'] as the cloud graph's input, which is float32 with gains."""
        if self.rates is None or step is None:
            return symbols
        return self.rates.values(symbols, step)

    def feed(self, symbols: NDArray[np.int16], step: int | None) -> dict[str, NDArray[Any]]:
        """The cloud graph's input by its name."""
        name = "symbols" if self.rates is None or step is None else "values"
        return {name: self.graph_input(symbols, step)}
