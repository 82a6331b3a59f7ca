"""onnxruntime, with one of its execution providers. What that one lacks runs on the CPU provider.

It is installed with this package, unless pip was told to leave it out: a device that runs the
native encoder needs no other engine.

Always holds: integer arithmetic is exact on every processor.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from . import processor
from .base import Choice

try:
    import onnxruntime as ort
except ImportError:
    if TYPE_CHECKING:
        raise
    ort = None
else:
    # For programs that imported onnxruntime before `runtime`: stops further telemetry.
    ort.disable_telemetry_events()

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}


def open_session(
    graph: bytes | str | os.PathLike[str], threads: int | None = None, provider: str = "cpu"
) -> ort.InferenceSession:
    """Load an ONNX graph, given as bytes or as a path. All sessions are opened here.

    Args:
        threads: threads of one call; None for one a core.
        provider: one of OnnxRuntime.PROVIDERS. Operators that it lacks run on the CPU.

    Raises onnxruntime's own errors.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take the core from the code that runs between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not processor.has_vnni():
        # Without VNNI, two products of uint8 and int8 are added in 16 bits and may overflow.
        # With this setting, int8 graphs are exact and slower. Float32 graphs do not change.
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers = list(dict.fromkeys((_PROVIDERS[provider], _PROVIDERS["cpu"])))
    source = graph if isinstance(graph, bytes) else os.fspath(graph)
    return ort.InferenceSession(source, options, providers=providers)


class OnnxRuntime:
    """A graph in an onnxruntime session."""

    PROVIDERS: ClassVar[tuple[str, ...]] = tuple(_PROVIDERS)
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        self.choice = choice
        self._session = open_session(graph, threads, choice.provider)
        self._source = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.fingerprint: str | None = self._session.get_modelmeta().custom_metadata_map.get(
            "fingerprint", "none"
        )

    @classmethod
    def version(cls) -> str | None:
        """As Engine.version."""
        return str(ort.__version__) if ort else None

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """As Engine.lacks."""
        if not ort:
            return "the package onnxruntime, which is not installed here"
        wanted = _PROVIDERS[choice.provider]
        return (
            None
            if wanted in ort.get_available_providers()
            else f"an onnxruntime with {wanted}, which is not installed here"
        )

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        """As Engine.is_worth_trying."""
        return True

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """As Engine.run."""
        return dict(zip(self._outputs, self._session.run(None, {self._source: batch}), strict=True))
