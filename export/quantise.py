"""Static int8 of a graph: weights by channel, activations by the ranges that real images gave them.

Quantised are all convolutions but the first and the last. GELU, GDN's division and the residual sums
stay in float32. Of the symbols that int8 changed in ours_n4, a quarter came from quantised sums (which
saved 0.1 ms of 2.2), an eighth from the last convolution (0.1 ms), a fifth from the first (0.3 ms). Q/DQ
pairs are as onnxruntime's own quantiser writes them (activations uint8, weights int8), which every
engine reads. One thing is done by hand: what only goes into a GELU is cut off at -4, where GELU is
zero in eight bits, which leaves finer steps for the rest.

Always holds: ranges belong to one graph, which they know by the sequence of its operators and by
the bottleneck's hash, and not by names that an exporter chose.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

MIN_IMAGES, CALIBRATION_IMAGES = 300, 512
_GELU_ZERO = -4.0  # GELU(-4) is -0.0001


class RangesError(ValueError):
    """Activation ranges are of another graph, or were taken of too few images."""


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each operator's output, in the graph's order.

    Attributes:
        sha256: hash of the weights that the ranges were taken with.
        images, source: how many images, and what they were.
        operators: one entry an operator: its type, and low and high of its output; (0, 0) for what is not float.
        gate: what gate.judge found of the graph that these ranges make.
    """

    sha256: str
    images: int
    source: str
    operators: list[tuple[str, float, float]]
    gate: dict[str, Any] | None = None

    def to_json(self) -> str:
        head = {key: value for key, value in asdict(self).items() if key != "operators"}
        rows = ",\n".join(f"  {json.dumps(row)}" for row in self.operators)
        return json.dumps(head)[:-1] + f', "operators": [\n{rows}\n]}}\n'

    @classmethod
    def from_json(cls, text: str, name: str) -> "Ranges":
        """Raises RangesError, which calls them `name`."""
        try:
            data = json.loads(text)
            rows = [(str(operator), float(low), float(high)) for operator, low, high in data.pop("operators")]
            ranges = cls(operators=rows, **data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RangesError(f"{name} are not activation ranges ({error!r}): take them again with --calibrate DIR") from None
        if not all(np.isfinite((low, high)).all() and low <= high for _, low, high in rows):
            raise RangesError(f"{name} have an end that is not finite, or ends the wrong way round: take them again with --calibrate DIR")
        return ranges


def _float_outputs(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {value.name for value in inferred.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def take_ranges(graph: Path, inputs: Iterable[NDArray[np.generic]], sha256: str, source: str) -> Ranges:
    """Run the graph on batches of its input and keep the ends of every operator's float32 output.

    Raises RangesError for fewer than MIN_IMAGES images.
    """
    model = onnx.load(graph)
    floats = _float_outputs(model)
    names = [node.output[0] for node in model.graph.node if node.output[0] in floats]
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in have)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ends = {name: (np.inf, -np.inf) for name in names}
    images = 0
    for batch in inputs:
        images += len(batch)
        for name, values in zip(names, session.run(names, {session.get_inputs()[0].name: batch}), strict=True):
            ends[name] = (min(ends[name][0], float(values.min())), max(ends[name][1], float(values.max())))
    if images < MIN_IMAGES:
        raise RangesError(f"{images} images are too few to calibrate with: name a folder of at least {MIN_IMAGES}")
    rows = [(node.op_type, *ends.get(node.output[0], (0.0, 0.0))) for node in onnx.load(graph).graph.node]
    return Ranges(sha256, images, source, rows)


def quantise(graph: Path, ranges: Ranges, sha256: str, out: Path) -> None:
    """Write the int8 form of a float32 graph of weights `sha256`; raises RangesError."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load(graph)
    nodes = list(model.graph.node)
    if ranges.sha256 != sha256 or [node.op_type for node in nodes] != [row[0] for row in ranges.operators]:
        raise RangesError("the activation ranges are of another checkpoint or graph: take them again with --calibrate DIR")
    ends = {node.output[0]: row[1:] for node, row in zip(nodes, ranges.operators, strict=True)}
    for node in nodes:
        readers = [reader.op_type for reader in nodes if node.output[0] in reader.input]
        if node.op_type == "Conv" and set(readers) == {"Gelu"}:
            low, high = ends[node.output[0]]
            ends[node.output[0]] = (max(low, _GELU_ZERO), max(high, _GELU_ZERO))
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    if len(convolutions) < 3:
        raise RangesError("there is nothing between the first and the last convolution to quantise: export with --precision fp32")
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ends.items()}
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        True,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        [convolutions[0].name, convolutions[-1].name],
        ["Conv"],
        {},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised = quantizer.model.model
    quantised.graph.ClearField("value_info")
    onnx.checker.check_model(quantised)
    onnx.save(quantised, out)
