"""onnxruntime, with one of its execution providers. What that one lacks runs on the CPU provider.

Always holds: integer arithmetic is exact on every processor.
"""

from typing import Any, ClassVar

import onnxruntime as ort
from numpy.typing import NDArray

from . import processor
from .base import Choice

# For programs that imported onnxruntime before `runtime`: stops further telemetry.
ort.disable_telemetry_events()

# Processors without VNNI add two products of uint8 and int8 in 16 bits, which can overflow. With
# this option onnxruntime avoids that, and is slower.
NO_VNNI = ("session.x64quantprecision", "1")
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


class OnnxRuntime:
    """A graph in an onnxruntime session."""

    PROVIDERS: ClassVar[tuple[str, ...]] = tuple(_PROVIDERS)
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        self.choice = choice
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin would take the core from the coder, which runs between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if choice.precision == "int8" and not processor.has_vnni():
            options.add_session_config_entry(*NO_VNNI)
        providers = dict.fromkeys((_PROVIDERS[choice.provider], _PROVIDERS["cpu"]))
        self._session = ort.InferenceSession(graph, options, providers=list(providers))
        self._source = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.fingerprint: str | None = self._session.get_modelmeta().custom_metadata_map.get(
            "fingerprint", "none"
        )

    @classmethod
    def version(cls) -> str | None:
        """As Engine.version."""
        return str(ort.__version__)

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """As Engine.lacks."""
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
