"""Engines: onnxruntime or OpenVINO, behind one small interface.

A provider runs a graph: `cpu` is onnxruntime's own, `openvino` the package of that name, called
directly, since its build of onnxruntime would overwrite the plain one; the others are onnxruntime's
where the installed one has them. A precision is what it computes in: `fp32`; `bf16`, float32
weights rounded by OpenVINO as it goes; `int8`, a graph that export quantised.

`auto` is what `tune` chose on this very device (tune.py), else `cpu` in the precision that the bundle
names, which is fp32 unless it was exported otherwise: that needs nothing more, and its symbols are torch's.

Always holds: whatever is chosen, a device that lacks it falls back to the CPU provider, and says so
in one line; a feature file decodes to the symbols that were encoded, whichever engine computed them.
"""

import logging
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..codec import strict_json
from ..codec.bundle import CLOUD_GRAPH, CLOUD_GRAPH_INT8, EDGE_GRAPH, EDGE_GRAPH_INT8, Bundle
from ..errors import EngineChoiceError, InconsistentBundleError, NotFiniteLogitsError

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

# Where a program had imported onnxruntime before `runtime` could switch its reports off, this stops those to come.
ort.disable_telemetry_events()

PRECISIONS = ("fp32", "bf16", "int8")
GRAPHS = {"edge": {"fp32": EDGE_GRAPH, "int8": EDGE_GRAPH_INT8}, "cloud": {"fp32": CLOUD_GRAPH, "int8": CLOUD_GRAPH_INT8}}
ONNXRUNTIME = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}
PROVIDERS = (*ONNXRUNTIME, "openvino")
TUNED = "tuned.json"
_MAX_TUNED_BYTES = 1 << 20


@dataclass(frozen=True)
class Choice:
    """A provider and a precision."""

    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.provider} {self.precision}"


SAFE = Choice("cpu", "fp32")


class Engine(Protocol):
    """A graph that is ready to run; may be shared between threads."""

    choice: Choice

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The graph's one output for its one input."""


# Without VNNI two products of uint8 and int8 are added in 16 bits, which overflow: so onnxruntime is exact, and slower.
NO_VNNI = ("session.x64quantprecision", "1")
_X86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")


def _processor_flags() -> set[str]:
    """What the processor says that it can; nothing where that cannot be seen."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def has_vnni() -> bool:
    """Whether an x86 processor says that it multiplies eight-bit integers without overflow; False where that cannot be seen."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_processor_flags())


def overflows(choice: Choice) -> bool:
    """Whether a choice's sums overflow here: OpenVINO in int8 on x86 without VNNI, where bright pixels become other symbols."""
    return choice == Choice("openvino", "int8") and _X86 and not has_vnni()


def has_bf16() -> bool:
    """Whether the processor says that it multiplies bfloat16, which others emulate, slowly; False where that cannot be seen."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_processor_flags())


def has_provider(name: str) -> bool:
    """Whether this device's installation has a provider."""
    return bool(find_spec("openvino")) if name == "openvino" else ONNXRUNTIME[name] in ort.get_available_providers()


def candidates(bundle: Bundle, end: str) -> list[Choice]:
    """All that is worth trying for the bundle's graph of an `end`, "edge" or "cloud", on this device; the safe choice first."""
    found = [Choice(provider, precision) for provider in PROVIDERS if has_provider(provider) for precision in PRECISIONS]
    bf16 = {Choice("openvino", "bf16")} if has_bf16() else set()
    found = [choice for choice in found if (choice.precision != "bf16" or choice in bf16) and not overflows(choice)]
    return [choice for choice in found if _graph(bundle, end, choice)]


def _graph(bundle: Bundle, end: str, choice: Choice) -> str | None:
    """The bundle's file for a choice."""
    name = GRAPHS[end].get("int8" if choice.precision == "int8" else "fp32")
    return name if name in bundle.manifest["files"] else None


def describe_device() -> dict[str, str]:
    """What a tuned choice depends on: processor, cores, and the engines' versions."""
    from importlib.metadata import PackageNotFoundError, version  # and with it the package email

    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    found = {"processor": processor, "cores": str(os.cpu_count()), "onnxruntime": ort.__version__}
    try:
        return found | {"openvino": version("openvino")}
    except PackageNotFoundError:
        return found


def tuned_choice(bundle: Bundle, end: str) -> Choice | None:
    """What `tune` chose for this bundle on this device; None if it has not run here, or something has changed since."""
    path = bundle.folder / TUNED
    try:
        if not path.is_file() or path.stat().st_size > _MAX_TUNED_BYTES:
            return None
        tuned = strict_json.loads(path.read_text())
        if tuned["device"] != describe_device() or tuned["fingerprint"] != bundle.fingerprint.hex():
            log.warning("%s is of another device or bundle and is not used: tune again", path)
            return None
        if end not in tuned:
            return None
        choice = Choice(str(tuned[end]["provider"]), str(tuned[end]["precision"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is not understood (%r) and is not used: tune again", path, error)
        return None
    return choice if choice in candidates(bundle, end) else None


def choose(bundle: Bundle, end: str, provider: str = "auto", precision: str = "auto") -> Choice:
    """From what was asked for to what will run.

    Raises EngineChoiceError for names that do not exist or do not go together, and for a precision
    that the bundle does not have.
    """
    if provider not in ("auto", *PROVIDERS) or precision not in ("auto", *PRECISIONS):
        raise EngineChoiceError(
            f"no engine {provider} {precision}: providers are auto, {', '.join(PROVIDERS)}; precisions auto, {', '.join(PRECISIONS)}"
        )
    if precision == "bf16" and provider not in ("auto", "openvino"):
        raise EngineChoiceError(f"provider {provider} has no bf16: choose --provider openvino, or another --precision")
    if precision == "int8" and not _graph(bundle, end, Choice("cpu", "int8")):
        raise EngineChoiceError(f"{bundle.folder} has no int8 graph for the {end}: leave out --precision, or export with --calibrate DIR")
    if provider == "auto":
        tuned = tuned_choice(bundle, end)
        if tuned and precision in ("auto", tuned.precision):
            return tuned
        provider = "openvino" if precision == "bf16" else "cpu"
    if precision == "auto":
        precision = "int8" if bundle.manifest.get("precision") == "int8" and _graph(bundle, end, Choice("cpu", "int8")) else "fp32"
    choice = Choice(provider, precision)
    if not has_provider(choice.provider):
        wanted = "the package openvino" if provider == "openvino" else f"an onnxruntime with {ONNXRUNTIME[provider]}"
        lacking = f"{wanted}, which is not installed here"
    elif overflows(choice):
        lacking = "a processor with VNNI: without it, sums of eight-bit products overflow"
    else:
        return choice
    lesser = Choice("cpu", "fp32" if precision == "bf16" else precision)
    log.warning("%s needs %s: %s runs instead", choice, lacking, lesser)
    return lesser


def open_engine(bundle: Bundle, end: str, threads: int | None, provider: str = "auto", precision: str = "auto", workers: int = 1) -> Engine:
    """The bundle's graph of an `end`, "edge" or "cloud", ready to run with `threads` threads (None: one a core), called by
    `workers` threads at the same time.

    Raises EngineChoiceError, the BundleErrors of Bundle.read, and InconsistentBundleError when the
    engine cannot load the graph, or the graph is another bundle's.
    """
    return open_choice(bundle, end, threads, choose(bundle, end, provider, precision), workers)


def open_choice(bundle: Bundle, end: str, threads: int | None, choice: Choice, workers: int = 1) -> Engine:
    """As open_engine, for a choice that was made."""
    name = _graph(bundle, end, choice)
    assert name
    data = bundle.read(name)
    try:
        if choice.provider == "openvino":
            return OpenVino(data, threads, choice, workers)
        return OnnxRuntime(data, threads, choice, bundle, name)
    except InconsistentBundleError:
        raise
    except Exception as error:  # neither engine's own classes share a public base
        raise InconsistentBundleError(f"{choice.provider} cannot load {bundle.folder / name}: {error}") from error


class OnnxRuntime:
    """A graph in onnxruntime, by one of its providers and, for what that one lacks, by the CPU's."""

    def __init__(self, data: bytes, threads: int | None, choice: Choice, bundle: Bundle, name: str):
        self.choice = choice
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin take the core from the code that runs between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if choice.precision == "int8" and not has_vnni():
            options.add_session_config_entry(*NO_VNNI)
        providers = dict.fromkeys((ONNXRUNTIME[choice.provider], ONNXRUNTIME["cpu"]))
        self._session = ort.InferenceSession(data, options, providers=list(providers))
        self._source = self._session.get_inputs()[0].name
        stamp = self._session.get_modelmeta().custom_metadata_map.get("fingerprint")
        if stamp != bundle.fingerprint.hex():
            raise InconsistentBundleError(
                f"{bundle.folder / name} is of bundle {str(stamp)[:8]}, the manifest of {bundle.fingerprint.hex()[:8]}: "
                "export the bundle again"
            )

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        return self._session.run(None, {self._source: batch})[0]


class OpenVino:
    """A graph in OpenVINO, on the CPU."""

    def __init__(self, data: bytes, threads: int | None, choice: Choice, workers: int):
        import openvino

        self.choice = choice
        core = openvino.Core()
        model = core.read_model(data)
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
        self._requests = threading.local()  # a request runs one thing at a time

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        request: openvino.InferRequest | None = getattr(self._requests, "one", None)
        if request is None:
            request = self._requests.one = self._compiled.create_infer_request()
        inputs = {0: np.ascontiguousarray(batch, np.int32 if self._widen else None)}
        return request.infer(inputs, share_inputs=True)[0]


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
            if source.get_type_name() == "Parameter" and source.get_element_type().to_string() == "u8":
                low, high = np.float32(0), np.float32(255)
                levels = opset13.fake_quantize(node.input_value(0), low, high, low, high, 256)
                node.input(0).replace_source_output(levels.output(0))


def require_finite(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits [..., classes] as they are: before a choice is made of them, since argmax takes a NaN for the largest.

    Raises NotFiniteLogitsError.
    """
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise NotFiniteLogitsError(
            f"{wrong.size} of {logits.size} logits are not finite numbers ({wrong[0]}): the bundle's weights are broken, "
            "export another checkpoint"
        )
    return logits


def group_by_shape(shapes: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """Indexes of equal shapes together, at most `size` in a group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]
