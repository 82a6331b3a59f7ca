"""OpenVINO, called directly, because onnxruntime-openvino would replace the plain onnxruntime.

bf16 runs the float32 graph. int8 needs VNNI on x86 processors: without it sums of products
overflow, and bright pixels become other symbols.

Always holds: a call leaves the thread's signal stack as it was.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import processor
from .base import PRECISIONS, Choice

if TYPE_CHECKING:
    import openvino


class OpenVino:
    """A graph in OpenVINO, on the CPU."""

    PROVIDERS: ClassVar[tuple[str, ...]] = ("openvino",)
    PRECISIONS: ClassVar[tuple[str, ...]] = PRECISIONS

    def __init__(self, graph: bytes, choice: Choice, threads: int | None, workers: int):
        import openvino

        self.choice = choice
        self.fingerprint: str | None = None  # OpenVINO drops a graph's metadata
        with _own_signal_stack():
            self._compile(openvino.Core(), graph, threads, workers)
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._requests = threading.local()  # one request per thread: each runs one call at a time

    def _compile(
        self, core: "openvino.Core", graph: bytes, threads: int | None, workers: int
    ) -> None:
        import openvino

        choice = self.choice
        model = core.read_model(graph)
        source = model.get_parameters()[0]
        # OpenVINO's CPU plugin takes no int16.
        self._widen = source.get_element_type() == openvino.Type.i16
        if self._widen:
            source.set_element_type(openvino.Type.i32)
            model.validate_nodes_and_infer_types()
        if choice.precision == "int8":
            _keep_outputs_in_float32(model)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if choice.precision == "bf16" else "f32",
            # Otherwise several processes pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if workers > 1:
            settings["NUM_STREAMS"] = workers  # requests in one stream wait for each other
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads * workers
        self._compiled = core.compile_model(model, "CPU", settings)

    @classmethod
    def version(cls) -> str | None:
        """As Engine.version."""
        # Imported here because it loads much, such as the package email.
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("openvino")
        except PackageNotFoundError:
            return None

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        """As Engine.lacks."""
        if not find_spec("openvino"):
            return "the package openvino, which is not installed here"
        if choice.precision == "int8" and processor.X86 and not processor.has_vnni():
            return "a processor with VNNI: without it, sums of eight-bit products overflow"
        return None

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        """As Engine.is_worth_trying."""
        return choice.precision != "bf16" or processor.has_bf16()

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """As Engine.run."""
        request: openvino.InferRequest | None = getattr(self._requests, "one", None)
        if request is None:
            with _own_signal_stack():
                request = self._requests.one = self._compiled.create_infer_request()
        inputs = {0: np.ascontiguousarray(batch, np.int32 if self._widen else None)}
        results = request.infer(inputs, share_inputs=True)
        return {name: results[index] for index, name in enumerate(self._outputs)}


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_: ClassVar = [
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    ]


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Restore the calling thread's signal stack when the block ends.

    OpenVINO sets a signal stack while it compiles, and frees it without restoring the old one. The
    next signal that Python handles, such as Ctrl-C, would then crash the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _keep_outputs_in_float32(model: "openvino.Model") -> None:
    """In a quantised graph, remove the rounding of convolution outputs that no convolution reads.

    onnxruntime's int8 convolution writes eight bits, so the graph rounds every output. OpenVINO's
    can write float32, and fuses the operations that follow into its own loop: that is faster and
    closer to the float32 graph. Also, a range of 0 to 255 is declared for the pixels, so that the
    first convolution runs in int8 without rounding them.
    """
    from openvino import opset13

    def producer(node: "openvino.Node") -> "openvino.Node":
        return node.input_value(0).get_node()

    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            has_bias = producer(node).get_type_name() == "Add"
            output = producer(node) if has_bias else node
            if producer(output).get_type_name() != "Convolution":
                continue
            restored = node
            while restored.get_type_name() != "Multiply":  # the last step back to float32
                (reader,) = restored.output(0).get_target_inputs()
                restored = reader.get_node()
            for reader in restored.output(0).get_target_inputs():
                if reader.get_node().get_type_name() != "Convolution":
                    reader.replace_source_output(node.input_value(0))
        elif node.get_type_name() == "Convolution":
            source = producer(node)
            while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Transpose"):
                source = producer(source)
            if (
                source.get_type_name() == "Parameter"
                and source.get_element_type().to_string() == "u8"
            ):
                low, high = np.float32(0), np.float32(255)
                levels = opset13.fake_quantize(node.input_value(0), low, high, low, high, 256)
                node.input(0).replace_source_output(levels.output(0))
