"""Activation ranges: what the operators of a graph give on real images, kept beside a checkpoint.

Always holds: ranges belong to one graph and its weights. They recognise it by the sequence of its
operators and by a hash of the weights, not by names, which the exporter chooses.
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

ENDS = ("edge", "cloud")
MIN_IMAGES, CALIBRATION_IMAGES = 300, 512
# What a folder must have, as every tenth image is held out for the gate.
LEAST_IMAGES = MIN_IMAGES * 10 // 9 + 1
# By which factor a range is wider than the average image's; the cloud's is chosen by calibrate.py.
MARGIN = 1.25


class RangesError(ValueError):
    """Activation ranges belong to another graph, make no sense, or come from too few images."""


@dataclass(frozen=True)
class Ranges:
    """The range of each operator's output, in the graph's order.

    A range goes from the smallest to the largest value of an image, averaged over images, and is
    somewhat wider. Values beyond it are clipped, which costs less than coarse steps for all values.
    512 images changed 0.20 % of ours_n4's symbols with the extremes of all images as ranges,
    0.11 % with the averages, and 0.12 % with the averages and a quarter more, which changed the
    fewest classes. In the cloud, how much wider is chosen by checkpoint (calibrate.py).

    Attributes:
        sha256: hash of the weights that the ranges were taken with.
        operators: for each operator its type, and low and high of its output; (0, 0) for outputs
            that are not float.
    """

    sha256: str
    operators: list[tuple[str, float, float]]

    def require(self, model: onnx.ModelProto, sha256: str) -> None:
        """Check that the ranges are of a graph and of its weights' hash. Raises RangesError."""
        if self.sha256 != sha256 or [node.op_type for node in model.graph.node] != [
            operator for operator, _, _ in self.operators
        ]:
            raise RangesError(
                "the activation ranges are of another checkpoint or graph: "
                "take them again with --calibrate DIR"
            )

    def times(self, margin: float) -> "Ranges":
        """The same ranges, wider by a factor."""
        rows = [(operator, margin * low, margin * high) for operator, low, high in self.operators]
        return Ranges(self.sha256, rows)


@dataclass(frozen=True)
class Calibration:
    """What int8 needs to know of a checkpoint, kept beside it as CHECKPOINT.ranges.json.

    Attributes:
        images, source: how many images the ranges were taken on, and which.
        edge, cloud: the ranges of the two graphs.
        gate: what gate.judge found of the graphs with these ranges, on images that were held out.
        validation: the same on images that had no part in any choice.
    """

    images: int
    source: str
    edge: Ranges
    cloud: Ranges
    gate: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None

    def of(self, end: str) -> Ranges:
        """The ranges of the "edge" or the "cloud" graph."""
        return self.edge if end == "edge" else self.cloud

    def to_json(self) -> str:
        """The text of a file of ranges, a line an operator."""
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
        """Inverse of to_json. Raises RangesError, which calls the ranges `name`."""
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
                f"{name} are not activation ranges ({error!r}): "
                "take them again with --calibrate DIR"
            ) from None
        for end in ENDS:
            _require_ranges(calibration.of(end), f"{name}: take them again with --calibrate DIR")
        return calibration


def _require_ranges(ranges: Ranges, where: str) -> None:
    """Raises RangesError unless each low and high are finite, and in order."""
    for operator, low, high in ranges.operators:
        if not -math.inf < low <= high < math.inf:
            raise RangesError(
                f"a range {low:g} to {high:g} of a {operator} is not finite, "
                f"or the wrong way round, in {where}"
            )


def take_ranges(
    graph: Path,
    inputs: Iterable[NDArray[np.generic]],
    sha256: str,
    margin: float = MARGIN,
) -> tuple[Ranges, int]:
    """Run a graph on batches of its input; gives the ranges of its operators, and how many images.

    A range is by the factor `margin` wider than that of the average image.
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
            f"{images} images are too few to calibrate with: name a folder of at least "
            f"{LEAST_IMAGES}, of which every tenth is held out"
        )
    ends = {
        name: (margin * low / images, margin * high / images) for name, (low, high) in sums.items()
    }
    operators = [(node.op_type, *ends.get(node.output[0], (0.0, 0.0))) for node in model.graph.node]
    ranges = Ranges(sha256, operators)
    _require_ranges(
        ranges, f"the outputs of {graph.name} for these images: the checkpoint is broken"
    )
    return ranges, images


def _float_outputs(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors that a graph's operators give.

    Numbers that are computed of an image's size, for its padding, are not among them.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and value.type.tensor_type.shape.dim
    }
