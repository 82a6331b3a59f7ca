"""edge.weights: the encoder in whole numbers, from the float32 edge graph and its ranges.

docs/BUNDLE.md, section 10, specifies the file and what the native encoder computes with it. Values
between the layers have 16 bits, and those that a 3x3 convolution reads have eight, with the same
ranges as in the int8 graph. Weights have eight bits by output channel there. The first convolution
and the last have weights of 16 bits: they are a twentieth of the multiplications, and the last one
decides the symbols. Of a variable-rate model the last one gives the latent, in steps of 2^-P.

Always holds: no sum can overflow 32 bits, whatever the pixels are. Floats end here: the encoder
computes nothing in them. A variable-rate model's latent is multiplied by a gain afterwards.
"""

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from .ranges import Ranges

Floats = NDArray[np.float64]

MAGIC, SYMBOLS, LATENT_VALUES = b"EDGEWGTS", 1, 2  # the last two are versions of the file
PATCH, CHANNELS, HIDDEN, LATENT = 8, 128, 64, 64
GELU_ENTRIES, GELU_STEPS = 256, 64  # of a table, and in it for a size of 1
_MIN_FRACTION, _MAX_FRACTION = 6, 14
_MAX_LATENT_FRACTION = 14
_LATENT_ROOM = 2.0  # the latent may be so many times as large as in its range
_MAX_BLOCKS = 64
_MAX_SHIFT = 61
_MAX_MULTIPLIER = (1 << 31) - 1
# Sums stay below this by more than what rounding adds to them.
_MAX_SUM = float((1 << 31) - (1 << 24))
_GELU_LEAST = -0.17  # GELU has no value below
_LARGEST_PIXEL, _LARGEST_VALUE = 255, 1 << 15
_LARGEST_INPUT = 510  # of eight bits, and moved by up to 255
_BLOCK = ("Gelu", "Conv", "Gelu", "Conv", "Add")


class NotNativeError(ValueError):
    """The native encoder cannot compute this edge graph."""


@dataclass(frozen=True)
class _Convolution:
    """A convolution of the graph: weights [outputs, inputs] in the file's order, and biases."""

    weights: Floats
    biases: Floats


@dataclass(frozen=True)
class _Encoder:
    """The float32 edge graph, read.

    Attributes:
        first, last: the convolutions at both ends.
        middle: of each block its first and its second convolution.
        inputs: the range of what each of these reads: of a GELU's output.
        largest: the largest absolute value between the layers.
        latent: the largest absolute value of a variable-rate model's latent; None where the last
            convolution's sums are rounded to symbols.
    """

    first: _Convolution
    middle: list[_Convolution]
    last: _Convolution
    inputs: list[tuple[float, float]]
    largest: float
    latent: float | None


@dataclass(frozen=True)
class _Quantised:
    """A convolution in whole numbers, and how large a step of its sums is, by output."""

    weights: NDArray[np.int64]
    biases: NDArray[np.int64]
    steps: Floats


def write_weights(graph: Path, ranges: Ranges, sha256: str, fingerprint: bytes, out: Path) -> None:
    """Write edge.weights of a float32 edge graph.

    Args:
        ranges, sha256: as quantise.quantise takes them.
        fingerprint: the bundle's, 32 bytes.

    Raises RangesError where the ranges belong to another graph, and NotNativeError.
    """
    model = onnx.load(graph)
    ranges.require(model, sha256)
    encoder = _read(model, ranges, graph.name)
    inputs = [_rounding(low, high) for low, high in encoder.inputs]
    fraction = _fraction(encoder, inputs)
    unit = 2.0**-fraction
    blocks = len(encoder.middle) // 2
    latent_fraction = _latent_fraction(encoder, unit)
    version = SYMBOLS if latent_fraction is None else LATENT_VALUES
    sizes = (PATCH, CHANNELS, HIDDEN, LATENT)
    parts = [
        struct.pack("<8s7I32s", MAGIC, version, *sizes, blocks, fraction, fingerprint),
        b"" if latent_fraction is None else struct.pack("<I", latent_fraction),
        _gelu_table(fraction).astype("<u2").tobytes(),
        *_layer(_quantise(encoder.first, 1.0, 32767, _LARGEST_PIXEL), unit, 2),
    ]
    for convolution, (step, zero) in zip(encoder.middle, inputs, strict=True):
        multiplier = max(1, min(32767, round(unit * (1 << 15) / step)))
        exact = unit * (1 << 15) / multiplier
        quantised = _quantise(convolution, exact, 127, _LARGEST_INPUT)
        parts += _layer(quantised, unit, 1, multiplier, zero)
    last = _quantise(encoder.last, unit, 32767, _LARGEST_VALUE)
    parts += _layer(last, 2.0 ** -(latent_fraction or 0), 2)
    out.write_bytes(b"".join(parts))


def _read(model: onnx.ModelProto, ranges: Ranges, name: str) -> _Encoder:
    """The encoder in a graph. Raises NotNativeError for an encoder of another kind."""
    nodes = list(model.graph.node)
    operators = [node.op_type for node in nodes]
    head, tail = ["Transpose", "Cast", "Conv"], ["Conv", "Clip", "Round", "Cast"]
    varies = model.graph.output[0].name == "latent"
    if varies:
        tail = ["Conv"]
    middle = operators[len(head) : -len(tail)]
    blocks = len(middle) // len(_BLOCK)
    known = middle == ["Gelu"] or (blocks <= _MAX_BLOCKS and middle == list(_BLOCK) * blocks)
    if operators[: len(head)] + operators[-len(tail) :] != head + tail or not known:
        raise NotNativeError(
            f"{name} is no encoder of convolutions and GELU alone (its operators are "
            f"{', '.join(dict.fromkeys(operators))}): the native encoder cannot compute it"
        )
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    _require_chain(nodes, name)
    found = [_convolution(node, values) for node in nodes if node.op_type == "Conv"]
    shapes = [(CHANNELS, 3 * PATCH**2)]
    shapes += [(HIDDEN, 9 * CHANNELS), (CHANNELS, 9 * HIDDEN)] * blocks + [(LATENT, CHANNELS)]
    if [one.weights.shape for one in found] != shapes:
        raise NotNativeError(f"{name} has other sizes than the native encoder knows")
    ends = [(low, high) for _, low, high in ranges.operators]
    gelus = [end for end, operator in zip(ends, operators, strict=True) if operator == "Gelu"]
    streams = [
        end for index, end in enumerate(ends) if operators[index] == "Add" or index + 1 == len(head)
    ]
    hidden = [ends[index][1] for index, one in enumerate(operators) if one == "Conv"]
    largest = max(abs(value) for value in (*np.ravel(streams), *hidden[:-1]))
    latent = max(map(abs, ends[-1])) if varies else None
    if latent == 0:
        raise NotNativeError(
            "its ranges, of an earlier release, lack that of the latent: take them again with "
            "--calibrate DIR"
        )
    return _Encoder(found[0], found[1:-1], found[-1], gelus if blocks else [], largest, latent)


def _require_chain(nodes: list[onnx.NodeProto], name: str) -> None:
    """Check that each operator reads the one before, and each sum also its block's beginning.

    Raises NotNativeError.
    """
    stream = nodes[2].output[0]
    for before, node in itertools.pairwise(nodes):
        expected = {before.output[0]}
        if node.op_type == "Add":
            expected.add(stream)
            stream = node.output[0]
        read = set(node.input) if node.op_type == "Add" else {node.input[0]}
        if read != expected:
            raise NotNativeError(f"{name} has its operators in another order than is known")


def _convolution(node: onnx.NodeProto, values: dict[str, NDArray[np.float32]]) -> _Convolution:
    """A Conv node; its inputs are in the order row, column, channel.

    A node has no biases where all of them are 0.
    """
    weights = values[node.input[1]].astype(np.float64).transpose(0, 2, 3, 1)
    biases = np.zeros(len(weights))
    if len(node.input) > 2:
        biases = values[node.input[2]].astype(np.float64)
    return _Convolution(weights.reshape(len(weights), -1), biases)


def _rounding(low: float, high: float) -> tuple[float, int]:
    """The step of values of eight bits in a range, and what stands for 0."""
    low, high = min(0.0, max(low, _GELU_LEAST)), max(high, 1e-3)
    step = (high - low) / 255
    return step, round(-low / step)


def _fraction(encoder: _Encoder, inputs: list[tuple[float, int]]) -> int:
    """How many bits of a value lie behind the point: as many as its range leaves.

    There are fewer if the steps of a convolution's sums would be too large beside those of values.
    Raises NotNativeError where none of the possible numbers of bits will do.
    """
    for fraction in range(_MAX_FRACTION, _MIN_FRACTION - 1, -1):
        steps = [
            step * _steps(one, step, 127, _LARGEST_INPUT).max()
            for one, (step, _) in zip(encoder.middle, inputs, strict=True)
        ]
        steps.append(_steps(encoder.first, 1.0, 32767, _LARGEST_PIXEL).max())
        if encoder.largest < 2.0 ** (15 - fraction) and max(steps) * 2.0**fraction < 0.49:
            return fraction
    raise NotNativeError(
        f"values of {encoder.largest:.3g} between its layers are too large for the native encoder"
    )


def _latent_fraction(encoder: _Encoder, unit: float) -> int | None:
    """How many bits of the latent lie behind the point; None where there are symbols instead.

    Raises NotNativeError where none of the possible numbers of bits will do.
    """
    if encoder.latent is None:
        return None
    # A shift of at least 33 bits, as for symbols: no sum then lies halfway between two results.
    steps = unit * _steps(encoder.last, unit, 32767, _LARGEST_VALUE).max()
    for fraction in range(_MAX_LATENT_FRACTION, -1, -1):
        room = _LATENT_ROOM * encoder.latent < 2.0 ** (15 - fraction)
        if room and steps * 2.0**fraction < 0.24:
            return fraction
    raise NotNativeError(f"a latent of {encoder.latent:.3g} is too large for the native encoder")


def _steps(convolution: _Convolution, step: float, limit: int, largest: int) -> Floats:
    """By output, the step of weights with which neither they nor a sum overflow."""
    sizes = np.abs(convolution.weights)
    sums = sizes.sum(1) * largest + np.abs(convolution.biases) / step
    steps: Floats = np.maximum(sizes.max(1) / limit, sums / _MAX_SUM)
    return np.where(steps > 0, steps, 1.0)


def _quantise(convolution: _Convolution, step: float, limit: int, largest: int) -> _Quantised:
    """Round weights, by output, and biases.

    Args:
        step: of the inputs.
        limit: the largest weight.
        largest: the largest absolute value of an input, in its steps.
    """
    steps = _steps(convolution, step, limit, largest)
    return _Quantised(
        np.rint(convolution.weights / steps[:, None]).astype(np.int64),
        np.rint(convolution.biases / (step * steps)).astype(np.int64),
        step * steps,
    )


def _layer(
    layer: _Quantised, unit: float, value_size: int, multiplier: int = 0, zero: int = 0
) -> Iterator[bytes]:
    """The parts of a layer in the file; `unit` is the step of its outputs."""
    ratios = layer.steps / unit
    shift = min(_MAX_SHIFT, 30 - math.floor(math.log2(ratios.max())))
    # Odd, so that no product lies halfway between two multiples of 2^shift.
    halves = np.floor(ratios * 2.0 ** (shift - 1)).astype(np.int64)
    multipliers = np.minimum(2 * halves + 1, _MAX_MULTIPLIER)
    yield struct.pack("<3I", shift, multiplier, zero)
    yield layer.weights.astype(f"<i{value_size}").tobytes()
    yield layer.biases.astype("<i4").tobytes()
    yield multipliers.astype("<i4").tobytes()


def _gelu_table(fraction: int) -> NDArray[np.int64]:
    """max(x, 0) - gelu(x) in units of 2^-fraction, by |x| in the middle of each step.

    It is |x| * P(|x|), where P is the normal distribution's probability of a larger value: the same
    for x and -x.
    """
    table = np.zeros(GELU_ENTRIES, np.int64)
    for index in range(GELU_ENTRIES - 1):  # sizes of 4 and more have the last entry, 0
        size = (index + 0.5) / GELU_STEPS
        table[index] = round(size * 0.5 * math.erfc(size / math.sqrt(2)) * 2**fraction)
    return table
