"""Adds an engine: one class, and one line that registers it.

    python examples/custom_engine.py [BUNDLE]

This engine runs graphs in onnx's reference implementation, which is slow but exact.
"""

import sys
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import load_model_from_string
from onnx.reference import ReferenceEvaluator

from runtime import EdgeEncoder
from runtime.engine.base import Choice
from runtime.engine.registry import ENGINES

BUNDLE = sys.argv[1] if len(sys.argv) > 1 else "bundles/ours_n4"


class Reference:
    """A graph in onnx.reference."""

    PROVIDERS: ClassVar[tuple[str, ...]] = ("reference",)
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32",)

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        self.choice = choice
        model = load_model_from_string(graph)
        self.fingerprint = {entry.key: entry.value for entry in model.metadata_props}.get(
            "fingerprint"
        )
        self._graph = ReferenceEvaluator(model)

    @classmethod
    def version(cls) -> str | None:
        from importlib.metadata import version

        return version("onnx")

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        return None  # it runs if onnx is installed

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        return False  # it is never the fastest, so --tune skips it

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        (source,), names = self._graph.input_names, self._graph.output_names
        return dict(zip(names, self._graph.run(None, {source: batch}), strict=True))


def main() -> int:
    ENGINES.append(Reference)
    pixels = np.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), np.uint8)
    ours, own = EdgeEncoder(BUNDLE), EdgeEncoder(BUNDLE, provider="reference")
    changed = (ours.symbols(pixels[None]) != own.symbols(pixels[None])).mean()
    print(f"{own.engine.choice}: {changed:.4%} of symbols differ from {ours.engine.choice}'s")
    return 0 if changed < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
