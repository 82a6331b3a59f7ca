"""The native coder, built from csrc/python/bindings.cpp. Use `runtime.codec.coder` instead."""

import numpy as np
from numpy.typing import NDArray

NARROW_LANES: int
WIDE_LANES: int
LEVELS: int
NOT_A_SYMBOL: int
KERNELS: tuple[str, ...]

class Tables:
    """Static tables and, for some channels, context tables.

    Raises ValueError naming the first table that breaks a rule.
    """

    def __init__(
        self,
        cdf: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        offsets: NDArray[np.int32],
        kernel: str = "",
    ) -> None:
        """All CDFs concatenated, the length of each, and each channel's offset.

        `kernel` is one of KERNELS, or "" for the fastest. All kernels write the same bytes.
        """

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols [channels, places] -> payload. Raises ValueError for NOT_A_SYMBOL."""

    def decode(self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]) -> str | None:
        """Fill `out` [channels, places]. Returns the reason if the payload is refused."""

    def add_contexts(
        self,
        channels: NDArray[np.uint32],
        thresholds: NDArray[np.int32],
        cdf: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
    ) -> None:
        """Context tables of n `channels`, for small files.

        `thresholds` is [n, 4]; `cdf` has the channels' 25 CDFs each, concatenated; `lengths` [n]
        says how many values of `cdf` are each channel's.
        """

    def encode_small(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols [channels, rows, columns] -> payload. Raises ValueError for NOT_A_SYMBOL."""

    def decode_small(
        self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]
    ) -> str | None:
        """Fill `out` [channels, rows, columns]. Returns as `decode` does."""

class CompressAiStream:
    """Reads and writes CompressAI's streams under static tables."""

    def __init__(
        self, cdf: NDArray[np.uint32], lengths: NDArray[np.uint32], offsets: NDArray[np.int32]
    ) -> None:
        """As `Tables`."""

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols [channels, places] -> stream."""

    def decode(self, payload: bytes | bytearray | memoryview, out: NDArray[np.int16]) -> str | None:
        """Fill `out` [channels, places]. Returns the reason if the stream is refused."""

def check_tables(
    cdf: NDArray[np.uint32],
    lengths: NDArray[np.uint32],
    offsets: NDArray[np.int32],
    channels: NDArray[np.uint32],
    thresholds: NDArray[np.int32],
    context_cdf: NDArray[np.uint32],
    context_lengths: NDArray[np.uint32],
) -> None:
    """Raise what `Tables` and its `add_contexts` would raise for these arguments."""

def quantise(
    latent: NDArray[np.float32], gains: NDArray[np.float32], out: NDArray[np.int16]
) -> bool:
    """Fill `out` [channels, rows, columns] with the rounded products of a latent and its gains.

    `latent` is as large as `out`, `gains` is [channels]; products are rounded half to even and
    clipped to -32767..32767. Returns whether all of the latent is finite.
    """

def jpeg_damage(data: bytes | bytearray | memoryview) -> str | None:
    """Why a JPEG's entropy-coded data is not whole; None if it is whole or of a kind not checked.

    csrc/jpeg/jpeg.hpp says what is checked.
    """

def prepare(pixels: NDArray[np.uint8], resize: int, crop: int) -> NDArray[np.uint8]:
    """Resize an image's short side (bilinear, antialiased) and crop its centre.

    `pixels` are uint8 [H, W, 3], H and W at least 1, C-contiguous. 1 <= crop <= resize <= 4096.
    Gives uint8 [crop, crop, 3], with the levels of Pillow 13.

    Raises ValueError for another shape or another range, TypeError for another type.
    """
