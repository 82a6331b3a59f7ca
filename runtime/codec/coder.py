"""Entropy tables, and the native coder behind them.

A table is one channel's integer CDF, 0 to 2^16, and the offset: entry k stands for the symbol
offset + k, and the last entry for every symbol that the table lacks (an escape). A channel may have
context tables beside it, chosen symbol by symbol by what lies above and to the left: small files are
coded under those. Payloads are described in docs/FORMAT.md, the algorithm in csrc/coder/rans.hpp.

Always holds: tables are validated when they are made, so coding never meets a bad one. A Tables
object does not change and may be shared between threads; coding releases the GIL.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedFeatureFileError, NotANumberError, TablesError
from . import _coder, strict_json
from .feature_file import Profile

PRECISION = 16
LEVELS = _coder.LEVELS
CONTEXTS = LEVELS**2


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    """A row of 32-bit integers; numpy alone would wrap larger ones, and cut fractions off."""
    array = np.array(values)
    if array.ndim != 1 or (
        array.size and (array.dtype.kind != "i" or (array != array.astype(np.int32)).any())
    ):
        raise ValueError(f"{str(values)[:40]} is not a row of integers")
    return array


class Contexts(NamedTuple):
    """One channel's tables by context.

    A symbol's level is the number of `thresholds` (4, strictly increasing) that it has reached; its
    context is 5 x the level of the symbol above + the level of the symbol to the left. `cdfs` has 25
    rows, each as long as the channel's own CDF, 257 values at most.
    """

    thresholds: Sequence[int]
    cdfs: Sequence[Sequence[int]]


class Tables:
    """One static integer table a channel, and for some channels tables by context.

    Args:
        cdfs: for each channel strictly increasing integers from 0 to 65536, three at least.
        offsets: for each channel the symbol of the first entry.
        contexts: channel -> its tables by context.

    Raises TablesError naming the first table that breaks a rule.
    """

    def __init__(
        self,
        cdfs: Sequence[Sequence[int]],
        offsets: Sequence[int],
        contexts: Mapping[int, Contexts] | None = None,
    ):
        if len(cdfs) != len(offsets):
            raise TablesError(
                f"{len(cdfs)} tables and {len(offsets)} offsets: export the bundle again"
            )
        try:
            self.cdfs = [_integers(cdf).astype(np.uint32) for cdf in cdfs]
            self.offsets = _integers(offsets).astype(np.int32)
            self.contexts = {
                channel: (
                    _integers(thresholds).astype(np.int32),
                    [_integers(cdf).astype(np.uint32) for cdf in rows],
                )
                for channel, (thresholds, rows) in sorted((contexts or {}).items())
            }
            self._native = _coder.Tables(*self.flat())
            for channel, (thresholds, rows) in self.contexts.items():
                self._check_contexts(channel, thresholds, rows)
            self._native.add_contexts(*self._flat_contexts())
        except (ValueError, OverflowError, TypeError) as error:
            raise TablesError(f"bad entropy tables, {error}: export the bundle again") from error
        for array in (
            *self.cdfs,
            self.offsets,
            *(array for pair in self.contexts.values() for array in (pair[0], *pair[1])),
        ):
            array.setflags(write=False)

    def _check_contexts(
        self, channel: int, thresholds: NDArray[np.int32], rows: list[NDArray[np.uint32]]
    ) -> None:
        """What the flat lists for the native coder no longer show."""
        if not 0 <= channel < len(self.cdfs):
            raise ValueError(f"context tables of channel {channel}, which does not exist")
        if (
            len(thresholds) != LEVELS - 1
            or len(rows) != CONTEXTS
            or any(len(row) != len(self.cdfs[channel]) for row in rows)
        ):
            raise ValueError(
                f"context tables of channel {channel}: not 4 thresholds and 25 CDFs as long as the channel's own"
            )

    def _flat_contexts(
        self,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint32]]:
        """Channels, thresholds, CDFs one after the other, and how many values of those are each channel's."""
        thresholds = [pair[0] for pair in self.contexts.values()]
        rows = [row for pair in self.contexts.values() for row in pair[1]]
        return (
            np.array(list(self.contexts), np.uint32),
            np.array(thresholds, np.int32).reshape(-1, LEVELS - 1),
            np.concatenate([*rows, np.empty(0, np.uint32)]),
            np.array([sum(map(len, pair[1])) for pair in self.contexts.values()], np.uint32),
        )

    def flat(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]:
        """All CDFs one after the other, the length of each, and the offsets: what the native coder takes."""
        lengths = np.array([len(cdf) for cdf in self.cdfs], np.uint32)
        return np.concatenate([*self.cdfs, np.empty(0, np.uint32)]), lengths, self.offsets

    @property
    def channels(self) -> int:
        return len(self.cdfs)

    def encode(self, symbols: NDArray[np.int16], profile: Profile = Profile.STATIC) -> bytes:
        """Symbols int16 [channels, rows, columns], C-contiguous, each -32767..32767 -> payload.

        Under the tables by context: fewer bytes, in more time.
        Raises NotANumberError on -32768, by which the edge graph marks a latent that is no number.
        """
        try:
            if profile is Profile.CONTEXT:
                return self._native.encode_small(symbols)
            return self._native.encode(symbols.reshape(self.channels, -1))
        except ValueError as error:
            if not (symbols == _coder.NOT_A_SYMBOL).any():
                raise
            raise NotANumberError(
                "the encoder graph computed a latent that is not a number: the checkpoint is broken, export another"
            ) from error

    def decode(
        self, payload: bytes | memoryview, shape: tuple[int, ...], profile: Profile = Profile.STATIC
    ) -> NDArray[np.int16]:
        """Payload -> symbols int16 [channels, *shape]; `shape` is (rows, columns). Memory taken depends on it alone.

        Raises DamagedFeatureFileError unless the payload is consumed exactly.
        """
        out = np.empty((self.channels, *shape), np.int16)
        if profile is Profile.CONTEXT:
            reason = self._native.decode_small(payload, out)
        else:
            reason = self._native.decode(payload, out.reshape(self.channels, -1))
        if reason is not None:
            raise DamagedFeatureFileError(
                f"the payload of {len(payload)} bytes is damaged, {reason}: send it again"
            )
        return out

    def digest(self) -> bytes:
        """SHA-256 of the tables' values."""
        sha = hashlib.sha256()
        for cdf, offset in zip(self.cdfs, self.offsets, strict=True):
            sha.update(np.array([offset, len(cdf)], "<i4").tobytes() + cdf.astype("<u4").tobytes())
        for channel, (thresholds, rows) in self.contexts.items():
            sha.update(
                np.array([channel, *thresholds], "<i4").tobytes()
                + np.concatenate(rows).astype("<u4").tobytes()
            )
        return sha.digest()

    def to_json(self) -> bytes:
        """The contents of a bundle's tables.json."""

        def lines(cdfs: list[NDArray[np.uint32]], indent: int) -> str:
            return ",".join(
                "\n" + " " * indent + json.dumps(cdf.tolist(), allow_nan=False) for cdf in cdfs
            )

        contexts = ",".join(
            f'\n  "{channel}": {{"thresholds": {json.dumps(thresholds.tolist(), allow_nan=False)}, "cdfs": [{lines(rows, 3)}]}}'
            for channel, (thresholds, rows) in self.contexts.items()
        )
        offsets = json.dumps(self.offsets.tolist(), allow_nan=False)
        return (
            f'{{"precision": {PRECISION},\n "offsets": {offsets},\n "cdfs": [{lines(self.cdfs, 2)}],\n "contexts": {{{contexts}}}}}\n'
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Tables":
        """Inverse of `to_json`; raises TablesError."""
        try:
            content = strict_json.loads(text)
            precision, cdfs, offsets = content["precision"], content["cdfs"], content["offsets"]
            contexts = {
                int(channel): Contexts(entry["thresholds"], entry["cdfs"])
                for channel, entry in content["contexts"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TablesError(
                f"tables.json is not understood ({error!r}): export the bundle again"
            ) from error
        if precision != PRECISION or not isinstance(cdfs, list) or not isinstance(offsets, list):
            raise TablesError(
                f"tables.json has precision {precision!r}, {PRECISION} is known: export the bundle again"
            )
        return cls(cdfs, offsets, contexts)
