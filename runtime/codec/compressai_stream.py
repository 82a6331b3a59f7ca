"""CompressAI's streams ("strings" in its API), for users with receivers or recordings of them.

`EntropyBottleneck.compress` of CompressAI 1.2.8 gives one stream per image, without a header: the
receiver must know the tables and the shape. This file reads and writes such streams with a
bundle's tables, and converts them to feature files and back. docs/compressai.md shows how.

Always holds: a conversion changes no symbol, and a stream that is not used up exactly is refused.
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
    """Reads and writes streams of CompressAI 1.2.8's EntropyBottleneck under given tables.

    May be shared between threads.
    """

    def __init__(self, tables: Tables):
        self.tables = tables
        self._native = _coder.CompressAiStream(*tables.flat())

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Encode symbols int16 [channels, ...], C-contiguous, each -32767 to 32767.

        Returns the bytes that CompressAI would write. Raises NotANumberError for -32768.
        """
        if (symbols == _coder.NOT_A_SYMBOL).any():
            raise NotANumberError(
                "a symbol is -32768, which marks a latent that is not a number: "
                "the checkpoint is broken"
            )
        return self._native.encode(symbols.reshape(self.tables.channels, -1))

    def decode(
        self, string: bytes | bytearray | memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.int16]:
        """Decode a stream to symbols int16 [channels, *shape]. Raises DamagedStreamError."""
        out = np.empty((self.tables.channels, math.prod(shape)), np.int16)
        reason = self._native.decode(string, out)
        if reason is not None:
            raise DamagedStreamError(
                f"the stream of {len(string)} bytes does not decode with these tables and this "
                f"shape, {reason}: check height, width and bundle"
            )
        return out.reshape(self.tables.channels, *shape)


def to_feature_file(
    string: bytes, height: int, width: int, bundle: Bundle | str | os.PathLike[str]
) -> bytes:
    """Convert a CompressAI stream to a feature file of the same symbols.

    Args:
        string: what `EntropyBottleneck.compress` gave for one image.
        height, width: of that image in pixels, multiples of 8.
        bundle: a Bundle or its folder, of the checkpoint that wrote the stream.

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
            f"{width}x{height} pixels are not multiples of 8 within the bundle's limit of "
            f"{bundle.max_symbols} symbols: check height, width and bundle"
        )
    symbols = CompressAiCoder(bundle.compressai_tables()).decode(
        string, bundle.shape.latent(height, width)
    )
    return bundle.encode(symbols, height, width)


def from_feature_file(
    data: bytes, bundle: Bundle | str | os.PathLike[str]
) -> tuple[bytes, tuple[int, int]]:
    """Convert a feature file to the stream that CompressAI would have written.

    Returns the stream and the latent's (rows, columns), which `decompress` takes.
    Raises the FeatureFileErrors, the BundleErrors.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    symbols = bundle.decode(data)
    rows, columns = symbols.shape[1:]
    return CompressAiCoder(bundle.compressai_tables()).encode(symbols), (rows, columns)
