"""CompressAI's streams, for users who hold receivers or recordings of it.

`EntropyBottleneck.compress` of CompressAI 1.2.8 gives one string an image, without a header: the
receiver has to know the tables and the shape. `CompressAiCoder` reads and writes those strings for
a bundle's tables, and turns them into feature files and back. docs/compressai.md says how to use it.

Always holds: symbols are those of the string, whichever way; a string that is not consumed exactly
is refused. A coder may be shared between threads.
"""

import math
import os

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedStreamError, NotANumberError, StreamShapeError
from . import _coder, feature_file
from .bundle import Bundle
from .coder import Tables


class CompressAiCoder:
    """Strings of CompressAI 1.2.8's EntropyBottleneck, under given tables."""

    def __init__(self, tables: Tables):
        self.tables = tables
        self._native = _coder.CompressAiStream(*tables.flat())

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols int16 [channels, ...], C-contiguous, each -32767..32767 -> string.

        The bytes are CompressAI's own. Raises NotANumberError on -32768.
        """
        if (symbols == _coder.NOT_A_SYMBOL).any():
            raise NotANumberError(
                "a symbol is -32768, the mark of a latent that is not a number: the checkpoint is broken"
            )
        return self._native.encode(symbols.reshape(self.tables.channels, -1))

    def decode(
        self, string: bytes | bytearray | memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.int16]:
        """String -> symbols int16 [channels, *shape]. Raises DamagedStreamError."""
        out = np.empty((self.tables.channels, math.prod(shape)), np.int16)
        reason = self._native.decode(string, out)
        if reason is not None:
            raise DamagedStreamError(
                f"a string of {len(string)} bytes is none of these tables and this shape, {reason}: check height, width and bundle"
            )
        return out.reshape(self.tables.channels, *shape)


def to_feature_file(
    string: bytes, height: int, width: int, bundle: Bundle | str | os.PathLike[str]
) -> bytes:
    """The feature file of the same symbols.

    Args:
        string: what `EntropyBottleneck.compress` gave for one image.
        height, width: of that image in pixels, multiples of 8.
        bundle: of the checkpoint whose tables wrote the string.

    Raises StreamShapeError, DamagedStreamError, the BundleErrors.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    bad = (
        height % feature_file.BLOCK
        or width % feature_file.BLOCK
        or min(bundle.shape.latent(height, width)) < 1
    )
    if bad or bundle.shape.symbols(height, width) > bundle.max_symbols:
        raise StreamShapeError(
            f"{width}x{height} pixels are not multiples of 8 within the bundle's limit of {bundle.max_symbols} symbols"
        )
    symbols = CompressAiCoder(bundle.compressai_tables()).decode(
        string, bundle.shape.latent(height, width)
    )
    return bundle.encode(symbols, height, width)


def from_feature_file(
    data: bytes, bundle: Bundle | str | os.PathLike[str]
) -> tuple[bytes, tuple[int, int]]:
    """The string that CompressAI would have written, and the latent's (rows, columns), which `decompress` asks for.

    Raises the FeatureFileErrors and BundleErrors.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    symbols = bundle.decode(data)
    rows, columns = symbols.shape[1:]
    return CompressAiCoder(bundle.compressai_tables()).encode(symbols), (rows, columns)
