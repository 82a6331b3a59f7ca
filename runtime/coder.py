"""Entropy tables, and the native coder behind them.

A table is one channel's integer CDF, 0 to 2^16, and the offset: entry k stands for the symbol
offset + k, and the last entry for every symbol that the table lacks (an escape). Payloads are
described in docs/FORMAT.md, the algorithm in csrc/rans.hpp.

Always holds: tables are validated when they are made, so coding never meets a bad one. A Tables
object does not change and may be shared between threads; coding releases the GIL.
"""

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import _coder
from .errors import DamagedFeatureFileError, NotANumberError, TablesError

PRECISION = 16


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    """A row of 32-bit integers; numpy alone would wrap larger ones, and cut fractions off."""
    array = np.array(values)
    if array.ndim != 1 or (array.size and (array.dtype.kind != "i" or (array != array.astype(np.int32)).any())):
        raise ValueError(f"{str(values)[:40]} is not a row of integers")
    return array


class Tables:
    """One static integer table a channel.

    Args:
        cdfs: for each channel strictly increasing integers from 0 to 65536, three at least.
        offsets: for each channel the symbol of the first entry.

    Raises TablesError naming the first table that breaks a rule.
    """

    def __init__(self, cdfs: Sequence[Sequence[int]], offsets: Sequence[int]):
        if len(cdfs) != len(offsets):
            raise TablesError(f"{len(cdfs)} tables and {len(offsets)} offsets: export the bundle again")
        try:
            self.cdfs = [_integers(cdf).astype(np.uint32) for cdf in cdfs]
            self.offsets = _integers(offsets).astype(np.int32)
            self._native = _coder.Tables(*self.flat())
        except (ValueError, OverflowError, TypeError) as error:
            raise TablesError(f"bad entropy tables, {error}: export the bundle again") from error
        for array in (*self.cdfs, self.offsets):
            array.setflags(write=False)

    def flat(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]:
        """All CDFs one after the other, the length of each, and the offsets: what the native coder takes."""
        lengths = np.array([len(cdf) for cdf in self.cdfs], np.uint32)
        return np.concatenate([*self.cdfs, np.empty(0, np.uint32)]), lengths, self.offsets

    @property
    def channels(self) -> int:
        return len(self.cdfs)

    def encode(self, symbols: NDArray[np.int16]) -> bytes:
        """Symbols int16 [channels, ...], C-contiguous, each -32767..32767 -> payload.

        Raises NotANumberError on -32768, by which the edge graph marks a latent that is no number.
        """
        try:
            return self._native.encode(symbols.reshape(self.channels, -1))
        except ValueError as error:
            if not (symbols == _coder.NOT_A_SYMBOL).any():
                raise
            raise NotANumberError(
                "the encoder graph computed a latent that is not a number: the checkpoint is broken, export another"
            ) from error

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.int16]:
        """Payload -> symbols int16 [channels, *shape]. Memory taken depends on `shape` alone.

        Raises DamagedFeatureFileError unless the payload is consumed exactly.
        """
        out = np.empty((self.channels, math.prod(shape)), np.int16)
        reason = self._native.decode(payload, out)
        if reason is not None:
            raise DamagedFeatureFileError(f"the payload of {len(payload)} bytes is damaged, {reason}: send it again")
        return out.reshape(self.channels, *shape)

    def digest(self) -> bytes:
        """SHA-256 of the tables' values."""
        sha = hashlib.sha256()
        for cdf, offset in zip(self.cdfs, self.offsets, strict=True):
            sha.update(np.array([offset, len(cdf)], "<i4").tobytes() + cdf.astype("<u4").tobytes())
        return sha.digest()

    def to_json(self) -> bytes:
        """The contents of a bundle's tables.json."""
        rows = ",\n  ".join(json.dumps(cdf.tolist()) for cdf in self.cdfs)
        offsets = json.dumps(self.offsets.tolist())
        return f'{{"precision": {PRECISION},\n "offsets": {offsets},\n "cdfs": [\n  {rows}]}}\n'.encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Tables":
        """Inverse of `to_json`; raises TablesError."""
        try:
            content = json.loads(text)
            precision, cdfs, offsets = content["precision"], content["cdfs"], content["offsets"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TablesError(f"tables.json is not understood ({error!r}): export the bundle again") from error
        if precision != PRECISION or not isinstance(cdfs, list) or not isinstance(offsets, list):
            raise TablesError(f"tables.json has precision {precision!r}, {PRECISION} is known: export the bundle again")
        return cls(cdfs, offsets)
