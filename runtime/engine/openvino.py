"""OpenVINO, called directly: its own build of onnxruntime would overwrite the plain one.

In bf16, float32 weights are rounded as it goes. In int8, sums of products overflow on x86 processors without VNNI,
where bright pixels would become other symbols: there it says that it cannot.

Always holds: after each call the thread has the signal stack that it had before.
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
        self._requests = threading.local()  # a request runs one thing at a time

    def _compile(
        self, core: "openvino.Core", graph: bytes, threads: int | None, workers: int
    ) -> None:
        import openvino

        choice = self.choice
        model = core.read_model(graph)
        source = model.get_parameters()[0]
        # Its CPU plugin takes no int16.
        self._widen = source.get_element_type() == openvino.Type.i16
        if self._widen:
            source.set_element_type(openvino.Type.i32)
            model.validate_nodes_and_infer_types()
        if choice.precision == "int8":
            _only_inputs_in_eight_bits(model)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if choice.precision == "bf16" else "f32",
            # Several processes that each pin their threads would pin them to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if workers > 1:
            settings["NUM_STREAMS"] = workers  # requests of one stream wait for each other
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads * workers
        self._compiled = core.compile_model(model, "CPU", settings)

    @classmethod
    def version(cls) -> str | None:
        from importlib.metadata import (
            PackageNotFoundError,
            version,
        )  # and with it the package email

        try:
            return version("openvino")
        except PackageNotFoundError:
            return None

    @classmethod
    def lacks(cls, choice: Choice) -> str | None:
        if not find_spec("openvino"):
            return "the package openvino, which is not installed here"
        if choice.precision == "int8" and processor.X86 and not processor.has_vnni():
            return "a processor with VNNI: without it, sums of eight-bit products overflow"
        return None

    @classmethod
    def is_worth_trying(cls, choice: Choice) -> bool:
        return choice.precision != "bf16" or processor.has_bf16()

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
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
    """Give the calling thread the signal stack back that it had before.

    OpenVINO sets one while it compiles for a processor, and frees it: the next signal that Python handles, such as
    Ctrl-C's, would end the process with a segmentation fault.
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


def _only_inputs_in_eight_bits(model: "openvino.Model") -> None:
    """Of a quantised graph, take away what makes eight bits of a convolution's output, but before another convolution.

    onnxruntime needs that, OpenVINO does not: it computes on in float32, in the convolution's own loop, which is
    faster and nearer to the float32 graph. And pixels, which are eight bits as they come, are said to be.
    """
    from openvino import opset13

    def maker(node: "openvino.Node") -> "openvino.Node":
        return node.input_value(0).get_node()

    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            output = maker(node) if maker(node).get_type_name() == "Add" else node  # its bias
            if maker(output).get_type_name() != "Convolution":
                continue
            restored = node
            while restored.get_type_name() != "Multiply":  # to integers, and back to float32
                (reader,) = restored.output(0).get_target_inputs()
                restored = reader.get_node()
            for reader in restored.output(0).get_target_inputs():
                if reader.get_node().get_type_name() != "Convolution":
                    reader.replace_source_output(node.input_value(0))
        elif node.get_type_name() == "Convolution":
            source = node.input_value(0).get_node()
            while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Transpose"):
                source = maker(source)
            if (
                source.get_type_name() == "Parameter"
                and source.get_element_type().to_string() == "u8"
            ):
                low, high = np.float32(0), np.float32(255)
                levels = opset13.fake_quantize(node.input_value(0), low, high, low, high, 256)
                node.input(0).replace_source_output(levels.output(0))
