"""The integer encoder in plain numpy: slow, readable, and what every kernel is held to.

It follows docs/BUNDLE.md, section 10, and shares no code with csrc/encoder or export.
"""

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
HEADER = struct.Struct("<8s7I32s")
LAYER = struct.Struct("<3I")


@dataclass
class Layer:
    """A convolution: weights [outputs, inputs], biases and multipliers [outputs]."""

    shift: int
    input_multiplier: int
    zero: int
    weights: Integers
    biases: Integers
    multipliers: Integers


@dataclass
class Weights:
    """A file edge.weights; `latent_fraction` is None where it gives symbols."""

    fingerprint: bytes
    fraction: int
    gelu: Integers
    layers: list[Layer]
    latent_fraction: int | None = None


def read(data: bytes) -> Weights:
    magic, version, *sizes, blocks, fraction, fingerprint = HEADER.unpack_from(data)
    assert (magic, sizes) == (b"EDGEWGTS", [8, 128, 64, 64])
    assert version in (1, 2)
    at = HEADER.size
    latent_fraction = None
    if version == 2:
        latent_fraction, at = unpack(data, at), at + 4

    def take(count: int, kind: str) -> Integers:
        nonlocal at
        values = np.frombuffer(data, np.dtype(kind).newbyteorder("<"), count, at)
        at += values.nbytes
        return values.astype(np.int64)

    gelu = take(256, "u2")
    layers = []
    shapes = [(128, 192, "i2"), *[(64, 1152, "i1"), (128, 576, "i1")] * blocks, (64, 128, "i2")]
    for outputs, inputs, kind in shapes:
        shift, multiplier, zero = LAYER.unpack_from(data, at)
        at += LAYER.size
        weights = take(outputs * inputs, kind).reshape(outputs, inputs)
        layers.append(
            Layer(shift, multiplier, zero, weights, take(outputs, "i4"), take(outputs, "i4"))
        )
    assert at == len(data)
    return Weights(fingerprint, fraction, gelu, layers, latent_fraction)


def write(weights: Weights) -> bytes:
    blocks = len(weights.layers) // 2 - 1
    sizes, latent = (8, 128, 64, 64), weights.latent_fraction
    version = 1 if latent is None else 2
    parts = [
        HEADER.pack(b"EDGEWGTS", version, *sizes, blocks, weights.fraction, weights.fingerprint),
        b"" if latent is None else struct.pack("<I", latent),
        weights.gelu.astype("<u2").tobytes(),
    ]
    for index, layer in enumerate(weights.layers):
        kind = "<i2" if index in (0, len(weights.layers) - 1) else "<i1"
        parts += [
            LAYER.pack(layer.shift, layer.input_multiplier, layer.zero),
            layer.weights.astype(kind).tobytes(),
            layer.biases.astype("<i4").tobytes(),
            layer.multipliers.astype("<i4").tobytes(),
        ]
    return b"".join(parts)


def _saturate(values: Integers) -> Integers:
    return np.clip(values, -(1 << 15), (1 << 15) - 1)


def _convolve(layer: Layer, inputs: Integers) -> Integers:
    """Inputs [cells, values] -> [cells, outputs], requantised to 16 bits."""
    # Products in float64 are exact: the sums have at most 31 bits.
    sums = (inputs.astype(np.float64) @ layer.weights.T.astype(np.float64)).astype(np.int64)
    sums += layer.biases
    assert np.abs(sums).max(initial=0) < 1 << 31
    return _saturate((sums * layer.multipliers + (1 << (layer.shift - 1))) >> layer.shift)


def _gelu(weights: Weights, values: Integers) -> Integers:
    index = np.minimum(np.abs(values) >> (weights.fraction - 6), 255)
    return np.maximum(values, 0) - weights.gelu[index]


def _convolve_3x3(weights: Weights, layer: Layer, values: Integers) -> Integers:
    """Values [rows, columns, channels] -> GELU, eight bits, convolution."""
    scaled = (_gelu(weights, values) * layer.input_multiplier + (1 << 14)) >> 15
    inputs = np.clip(layer.zero + scaled, 0, 255) - layer.zero
    padded = np.pad(inputs, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    rows, columns = values.shape[:2]
    cells = windows.transpose(0, 1, 3, 4, 2).reshape(rows * columns, -1)
    return _convolve(layer, cells).reshape(rows, columns, -1)


def encode(weights: Weights, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Pixels uint8 [H, W, 3] -> symbols, or the latent in its steps, int16 [64, H / 8, W / 8]."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    patches = pixels.astype(np.int64).reshape(rows, 8, columns, 8, 3).transpose(0, 2, 1, 3, 4)
    first, *middle, last = weights.layers
    stream = _convolve(first, patches.reshape(rows * columns, -1)).reshape(rows, columns, -1)
    for narrow, widen in zip(middle[::2], middle[1::2], strict=True):
        hidden = _convolve_3x3(weights, narrow, stream)
        stream = _saturate(stream + _convolve_3x3(weights, widen, hidden))
    if not middle:
        stream = _gelu(weights, stream)
    symbols = _convolve(last, stream.reshape(rows * columns, -1))
    symbols = np.maximum(symbols, -32767)
    return symbols.reshape(rows, columns, -1).transpose(2, 0, 1).astype(np.int16)


def of_latent(weights: Weights, fraction: int, fingerprint: bytes) -> Weights:
    """The same encoder without the last rounding: it gives the latent, in steps of 2^-fraction."""
    last = weights.layers[-1]
    assert last.shift - fraction >= 33
    layers = [*weights.layers[:-1], replace(last, shift=last.shift - fraction)]
    return replace(weights, layers=layers, latent_fraction=fraction, fingerprint=fingerprint)


def random_weights(blocks: int, seed: int, extreme: bool = False) -> Weights:
    """Weights of any values that a reader accepts, for images of noise.

    With `extreme` they are so large that sums come near 31 bits, and that values saturate.
    """
    rng = np.random.default_rng(seed)
    fraction = 11

    def layer(outputs: int, inputs: int, limit: int, largest: int, gain: float) -> Layer:
        values = rng.integers(-limit, limit, (outputs, inputs), endpoint=True)
        if extreme:
            values = np.where(rng.random(values.shape) < 0.5, np.sign(values) * limit, values)
        most = (1 << 30) // (largest * inputs)
        values = np.clip(values, -most, most)
        spread = np.sqrt(inputs) * np.abs(values).mean() * largest / 2
        ratio = gain * (1 << fraction) / max(spread, 1.0)
        shift = min(61, 31 - int(np.ceil(np.log2(ratio))))
        multipliers = (rng.uniform(0.5, 1, outputs) * ratio * 2**shift).astype(np.int64) | 1
        assert shift >= 33
        return Layer(
            shift,
            0 if limit > 127 else int(rng.integers(300, 900)),
            0 if limit > 127 else int(rng.integers(0, 60)),
            values,
            rng.integers(-(1 << 12), 1 << 12, outputs) * (1 << (12 if extreme else 0)),
            np.minimum(multipliers, (1 << 31) - 1),
        )

    gain = 30.0 if extreme else 1.0
    layers = [layer(128, 192, 32767, 255, gain)]
    for _ in range(blocks):
        layers += [layer(64, 1152, 127, 255, gain), layer(128, 576, 127, 255, gain)]
    layers.append(layer(64, 128, 32767, 1 << 15, gain / 100))
    sizes = np.arange(256) / 64
    table = np.round(sizes * np.exp(-sizes) * (1 << (fraction - 1))).astype(np.int64)
    return Weights(bytes(range(32)), fraction, table, layers)


def unpack(data: bytes, *where: Any) -> int:
    """The 32-bit number at a place of a file."""
    (value,) = struct.unpack_from("<I", data, *where)
    return int(value)
