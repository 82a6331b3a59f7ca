"""Static int8 of a graph: weights by channel, activations by the ranges that real images gave them.

Quantised are convolutions, but neither the encoder's last, whose output is rounded to symbols, nor a first
one that is not fed with pixels, which are eight bits as they come. GELU, GDN (whose convolution in int8 costs
more on the way in and out than it saves) and the residual sums stay in float32. Of the symbols that int8
changed in ours_n4, a quarter came from quantised sums (which saved 0.1 ms of 2.2), an eighth from the last
convolution (0.1 ms). Q/DQ pairs are as onnxruntime's own quantiser writes them (weights
int8, activations uint8, or int8 for ARM), which every engine reads. Two things are done by hand: pixels, and symbols, go into the first
convolution as the whole numbers that they are; and what only goes into a GELU is cut off at -4, where GELU is
zero in eight bits, which leaves finer steps for the rest.

Always holds: ranges belong to one graph, which they know by the sequence of its operators and by
a hash of the weights behind it, and not by names that an exporter chose.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime.codec import strict_json
from runtime.engine.onnxruntime import open_session

MIN_IMAGES, CALIBRATION_IMAGES = 300, 512
LEAST_IMAGES = MIN_IMAGES * 10 // 9 + 1  # in a folder: every tenth is held out to judge by
_ROOM = 1.25  # of a range, beyond the average image's ends
_GELU_ZERO = -4.0  # GELU(-4) is -0.0001
ENDS = ("edge", "cloud")


class RangesError(ValueError):
    """Activation ranges are of another graph, or were taken of too few images."""


class NothingToQuantiseError(RangesError):
    """A graph without a convolution that would be quantised."""


@dataclass(frozen=True)
class Ranges:
    """Each operator's smallest and largest output, averaged over images, and a quarter more, in the graph's order.

    What goes beyond is cut off, which costs less than coarse steps for all: of ours_n4's symbols, the ends of 512 images
    changed 0.20 %, their averages 0.11 %, those and a quarter more 0.12 %, with the fewest changes of class.

    Attributes:
        sha256: hash of the weights that the ranges were taken with.
        operators: one entry an operator: its type, and low and high of its output; (0, 0) for what is not float.
    """

    sha256: str
    operators: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Calibration:
    """What int8 needs to know of a checkpoint, kept beside it as CHECKPOINT.ranges.json.

    Attributes:
        images, source: how many images the ranges were taken of, and what they were.
        edge, cloud: the ranges of the two graphs.
        gate: what gate.judge found of the graphs that these ranges make, on images held out from them.
        validation: the same on images that had no part in any choice.
    """

    images: int
    source: str
    edge: Ranges
    cloud: Ranges
    gate: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None

    def to_json(self) -> str:
        fields = asdict(self)
        parts = []
        for end in ENDS:
            rows = ",\n".join(
                f"  {json.dumps(row, allow_nan=False)}" for row in fields[end]["operators"]
            )
            parts.append(
                f'"{end}": {{"sha256": "{fields.pop(end)["sha256"]}", "operators": [\n{rows}\n ]}}'
            )
        return (
            json.dumps(fields, allow_nan=False)[:-1]
            + "".join(f",\n {part}" for part in parts)
            + "\n}\n"
        )

    @classmethod
    def from_json(cls, text: str, name: str) -> "Calibration":
        """Raises RangesError, which calls the ranges `name`."""
        try:
            data = strict_json.loads(text)
            for end in ENDS:
                entry = data.pop(end)
                rows = [
                    (str(operator), float(low), float(high))
                    for operator, low, high in entry.pop("operators")
                ]
                data[end] = Ranges(operators=rows, **entry)
            calibration = cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RangesError(
                f"{name} are not activation ranges ({error!r}): take them again with --calibrate DIR"
            ) from None
        for ranges in (calibration.edge, calibration.cloud):
            _check(ranges, f"{name}: take them again with --calibrate DIR")
        return calibration


def _check(ranges: Ranges, where: str) -> None:
    """Raises RangesError unless each low and high are finite, and in order."""
    for operator, low, high in ranges.operators:
        if not -math.inf < low <= high < math.inf:
            raise RangesError(
                f"a range {low:g} to {high:g} of a {operator} is not finite, or the wrong way round, in {where}"
            )


def _float_outputs(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def take_ranges(
    graph: Path, inputs: Iterable[NDArray[np.generic]], sha256: str
) -> tuple[Ranges, int]:
    """Run the graph on batches of its input for the ranges of every operator's float32 output, and count the images.

    Raises RangesError for fewer than MIN_IMAGES images, and for an output that is not finite.
    """
    model = onnx.load(graph)
    floats = _float_outputs(model)
    names = [node.output[0] for node in model.graph.node if node.output[0] in floats]
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in have
    )
    session = open_session(model.SerializeToString())
    sums = {name: np.zeros(2) for name in names}
    images = 0
    for batch in inputs:
        images += len(batch)
        for name, values in zip(
            names, session.run(names, {session.get_inputs()[0].name: batch}), strict=True
        ):
            rows = values.reshape(len(values), -1)
            sums[name] += rows.min(1).sum(), rows.max(1).sum()
    if images < MIN_IMAGES:
        raise RangesError(
            f"{images} images are too few to calibrate with: name a folder of at least {LEAST_IMAGES}, of which every tenth is held out"
        )
    ends = {
        name: (_ROOM * low / images, _ROOM * high / images) for name, (low, high) in sums.items()
    }
    operators = [
        (node.op_type, *ends.get(node.output[0], (0.0, 0.0)))
        for node in onnx.load(graph).graph.node
    ]
    ranges = Ranges(sha256, operators)
    _check(ranges, f"the outputs of {graph.name} for these images: the checkpoint is broken")
    return ranges, images


def quantise(graph: Path, ranges: Ranges, sha256: str, out: Path, signed: bool = False) -> None:
    """Write the int8 form of a float32 graph, edge or cloud, of weights `sha256`; raises RangesError, NothingToQuantiseError.

    Args:
        signed: activations int8, of which ARM makes faster products with the weights than of uint8; the values are the same.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load(graph)
    nodes = list(model.graph.node)
    if ranges.sha256 != sha256 or [node.op_type for node in nodes] != [
        row[0] for row in ranges.operators
    ]:
        raise RangesError(
            "the activation ranges are of another checkpoint or graph: take them again with --calibrate DIR"
        )
    ends = {node.output[0]: row[1:] for node, row in zip(nodes, ranges.operators, strict=True)}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    for node in convolutions:
        low, high = ends[node.output[0]]
        if {reader.op_type for reader in nodes if node.output[0] in reader.input} == {"Gelu"}:
            ends[node.output[0]] = (max(low, _GELU_ZERO), max(high, _GELU_ZERO))
    encoder = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    made_by = {node.output[0]: node.op_type for node in nodes}
    left_out = [node.name for node in convolutions if made_by[node.input[0]] == "Abs"]
    left_out += [convolutions[-1].name] if encoder else []
    fed = convolutions[0].input[0]
    whole = made_by[fed] == "Cast"
    if whole and (encoder or -128 <= min(ends[fed]) <= max(ends[fed]) <= 127):
        ends[fed] = (
            (0.0, 255.0) if encoder else (-128.0, 127.0)
        )  # steps of 1: whole numbers stay what they are
    elif encoder:
        left_out.append(convolutions[0].name)
    if len(left_out) == len(convolutions):
        raise NothingToQuantiseError(
            f"{graph.name} has no convolution to quantise: export with --precision fp32"
        )
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ends.items()}
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        True,
        False,
        QuantType.QInt8,
        QuantType.QInt8 if signed else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        left_out,
        ["Conv"],
        {},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised = quantizer.model.model
    if encoder and whole and not signed:
        _feed_pixels(quantised.graph)
    quantised.graph.ClearField("value_info")
    onnx.checker.check_model(quantised)
    onnx.save(quantised, out)


def _feed_pixels(graph: onnx.GraphProto) -> None:
    """Take away the cast of the pixels to float32, and the operator that makes uint8 of them again."""
    cast = next(node for node in graph.node if node.op_type == "Cast")
    (back,) = (node for node in graph.node if cast.output[0] in node.input)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == back.output[0]:
                node.input[index] = cast.input[0]
    graph.node.remove(back)
    graph.node.remove(cast)
