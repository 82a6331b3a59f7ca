"""The native coder, csrc/python/bindings.cpp. `runtime.codec.coder` is its public face."""

import numpy as np
from numpy.typing import NDArray

NARROW_LANES: int
WIDE_LANES: int
LEVELS: int
NOT_A_SYMBOL: int
KERNELS: tuple[str, ...]

class Tables:
    """Raises ValueError naming the first table that breaks a rule."""

    def __init__(
        self,
        cdf: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        offsets: NDArray[np.int32],
        kernel: str = "",
    ) -> None:
        """`kernel`: one of KERNELS, or "" for the fastest; all give the same bytes."""

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols [channels, row] -> payload; ValueError on NOT_A_SYMBOL."""

    def decode(self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]) -> str | None:
        """Fill `out` [channels, row]; gives the reason where the payload is refused."""

    def add_contexts(
        self,
        channels: NDArray[np.uint32],
        thresholds: NDArray[np.int32],
        cdf: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
    ) -> None:
        """Tables by context of some channels [n], for small files: thresholds [n, 4], all CDFs, how many values each has."""

    def encode_small(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols [channels, rows, columns] -> payload; ValueError on NOT_A_SYMBOL."""

    def decode_small(
        self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]
    ) -> str | None:
        """Fill `out` [channels, rows, columns]; gives the reason where the payload is refused."""

class CompressAiStream:
    """The same tables' streams as CompressAI writes them."""

    def __init__(
        self, cdf: NDArray[np.uint32], lengths: NDArray[np.uint32], offsets: NDArray[np.int32]
    ) -> None: ...
    def encode(self, symbols: NDArray[np.int16]) -> bytes: ...
    def decode(
        self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]
    ) -> str | None: ...

def jpeg_damage(data: bytes | bytearray | memoryview) -> str | None:
    """The reason why a JPEG's entropy-coded data is not whole; None where it is, or is not walked (see csrc/jpeg/jpeg.hpp)."""
