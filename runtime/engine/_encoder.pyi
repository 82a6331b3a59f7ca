"""The integer encoder, built from csrc/python/encoder_bindings.cpp. Use the engine `native`."""

import numpy as np
from numpy.typing import NDArray

KERNELS: tuple[str, ...]

class Encoder:
    """An edge.weights file, ready to encode. May be shared between threads.

    Raises ValueError with the reason, to follow "edge.weights", and MemoryError.
    """

    def __init__(self, weights: bytes, threads: int = 1, kernel: str = "") -> None:
        """`threads` of one call, 1 to 256. `kernel` is one of KERNELS, or "" for the fastest.

        The symbols do not depend on either.
        """

    @property
    def fingerprint(self) -> bytes:
        """The bundle's, 32 bytes."""

    @property
    def kernel(self) -> str:
        """The kernel that runs."""

    @property
    def latent_fraction(self) -> int | None:
        """None if `encode` gives symbols; else a value v of it stands for v / 2^latent_fraction."""

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Pixels uint8 [N, H, W, 3], H and W multiples of 8 -> symbols int16 [N, 64, H/8, W/8].

        Of a variable-rate bundle it is the latent, in units of 2^-latent_fraction.
        """
