"""The int8 form of a graph: int8 weights by channel, and activations by ranges from real images.

Convolutions are quantised. Two are not: the encoder's last one, whose output is rounded to symbols,
and a first one that is not fed with pixels or symbols, which are whole numbers of eight bits (that
of a variable-rate cloud graph takes scaled symbols, which are not). GELU
and the residual sums stay in float32, and so does GDN, whose int8 convolution saves less time than
the conversions around it take. Of the symbols that int8 changed in ours_n4, a quarter came from
quantised sums, which saved 0.1 ms of 2.2 ms, and an eighth from the last convolution, which saved
0.1 ms as well.

The graphs have QuantizeLinear and DequantizeLinear pairs, as onnxruntime's quantiser writes them.
Every engine reads these. Two things are added to it. Pixels and symbols go into the first
convolution as the whole numbers that they are. And what goes only into an activation is clipped
where the activation changes no more, so that the steps in between are finer: at 0 before a ReLU, at
the bounds before a Clip, and at -4 before a GELU, where GELU is zero in eight bits. Of a ReLU or a
Clip the eight bits before and after are then the same, and engines leave the operator out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from .ranges import Ranges, RangesError

_GELU_ZERO = -4.0  # GELU(-4) is -0.0001
# Ranges with steps of 1, in which whole numbers stay what they are.
_WHOLE_PIXELS, _WHOLE_SYMBOLS = (0.0, 255.0), (-128.0, 127.0)


class NothingToQuantiseError(RangesError):
    """A graph without a convolution that would be quantised."""


@dataclass(frozen=True)
class _Plan:
    """What is done to a graph.

    Attributes:
        model: the float32 graph.
        ranges: low and high of each activation, by its name.
        left_out: names of the convolutions that stay in float32.
        pixels_whole: whether the first convolution takes pixels as they are.
        signed: whether activations are int8 in place of uint8.
    """

    model: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    left_out: list[str]
    pixels_whole: bool
    signed: bool


def quantise(graph: Path, ranges: Ranges, sha256: str, out: Path, signed: bool = False) -> None:
    """Write the int8 form of a float32 edge or cloud graph to `out`.

    Args:
        sha256: hash of the graph's weights, which must be that of the ranges.
        signed: activations are int8 in place of uint8, with the same values. ARM multiplies int8
            by int8 faster than uint8 by int8.

    Raises RangesError where the ranges belong to another graph, and NothingToQuantiseError.
    """
    model = onnx.load(graph)
    ranges.require(model, sha256)
    plan = _plan(model, ranges, graph.name, signed)
    quantised = _quantised(plan)
    if plan.pixels_whole and not signed:
        _feed_pixels(quantised.graph)
    quantised.graph.ClearField("value_info")
    onnx.checker.check_model(quantised)
    onnx.save(quantised, out)


def _plan(model: onnx.ModelProto, ranges: Ranges, name: str, signed: bool) -> _Plan:
    """Decide what is quantised in a graph, and by which ranges. Raises NothingToQuantiseError."""
    nodes = list(model.graph.node)
    ends = {
        node.output[0]: (low, high)
        for node, (_, low, high) in zip(nodes, ranges.operators, strict=True)
    }
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    _clip(model, ends, convolutions)
    encoder = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    made_by = {node.output[0]: node.op_type for node in nodes}
    # An Abs is the beginning of a GDN.
    left_out = [node.name for node in convolutions if made_by.get(node.input[0]) == "Abs"]
    left_out += [convolutions[-1].name] if encoder else []
    fed = convolutions[0].input[0]
    whole = made_by.get(fed) == "Cast"
    if whole and (encoder or -128 <= min(ends[fed]) <= max(ends[fed]) <= 127):
        ends[fed] = _WHOLE_PIXELS if encoder else _WHOLE_SYMBOLS
    elif encoder or fed not in made_by:
        left_out.append(convolutions[0].name)
    if len(left_out) == len(convolutions):
        raise NothingToQuantiseError(
            f"{name} has no convolution to quantise: export with --precision fp32"
        )
    return _Plan(model, ends, left_out, encoder and whole, signed)


def _clip(
    model: onnx.ModelProto, ends: dict[str, tuple[float, float]], convolutions: list[onnx.NodeProto]
) -> None:
    """Shorten the ranges of convolutions that only an activation reads, and of Clip's outputs."""
    nodes = list(model.graph.node)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def clipped(node: onnx.NodeProto) -> tuple[float, float]:
        """The range of a Clip, whose bounds that are not constant bound nothing here."""
        low, high = ends[node.output[0]]
        bounds = [
            float(onnx.numpy_helper.to_array(constants[name])) if name in constants else None
            for name in [*node.input[1:], "", ""][:2]
        ]
        return (
            low if bounds[0] is None else max(low, bounds[0]),
            high if bounds[1] is None else min(high, bounds[1]),
        )

    for node in nodes:
        if node.op_type == "Clip" and node.output[0] in ends:
            ends[node.output[0]] = clipped(node)
    for node in convolutions:
        readers = [reader for reader in nodes if node.output[0] in reader.input]
        low, high = ends[node.output[0]]
        if {reader.op_type for reader in readers} == {"Gelu"}:
            ends[node.output[0]] = (max(low, _GELU_ZERO), max(high, _GELU_ZERO))
        elif len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
            ends[node.output[0]] = ends[readers[0].output[0]]


def _quantised(plan: _Plan) -> onnx.ModelProto:
    """The graph with its QuantizeLinear and DequantizeLinear pairs."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in plan.ranges.items()}
    quantizer = QDQQuantizer(
        model=onnx.shape_inference.infer_shapes(plan.model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if plan.signed else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=plan.left_out,
        op_types_to_quantize=["Conv"],
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _feed_pixels(graph: onnx.GraphProto) -> None:
    """Remove the cast of the pixels to float32, and the operator that makes them uint8 again."""
    cast = next(node for node in graph.node if node.op_type == "Cast")
    (back,) = (node for node in graph.node if cast.output[0] in node.input)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == back.output[0]:
                node.input[index] = cast.input[0]
    graph.node.remove(back)
    graph.node.remove(cast)
