"""Entropy tables, and the native coder that uses them.

A table is one channel's integer CDF, from 0 to 2^16, and an offset. Entry k stands for the symbol
offset + k; the last entry stands for every symbol outside the table (an escape). A channel may also
have context tables, for small files: each symbol's table is chosen by the symbols above it and to
its left. docs/FORMAT.md describes payloads, csrc/coder/rans.hpp the algorithm.

Always holds: tables are validated when they are made, so coding never meets a bad one. A Tables
object does not change and may be shared between threads; coding releases the GIL.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedFeatureFileError, NotANumberError, TablesError
from . import _coder, strict_json
from .feature_file import Profile

_CDF_BITS = 16  # a CDF ends at 2^16; tables.json calls it precision
LEVELS = _coder.LEVELS  # of a neighbouring symbol
CONTEXTS = LEVELS**2  # of the neighbours above and to the left


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    """Values as an array. Raises ValueError for one that is not a 32-bit integer.

    astype alone would wrap large integers and cut off fractions.
    """
    array = np.array(values)
    if array.ndim != 1 or (
        array.size and (array.dtype.kind != "i" or (array != array.astype(np.int32)).any())
    ):
        raise ValueError(f"{str(values)[:40]} is not a row of integers")
    return array


def _rows(rows: Sequence[Sequence[int]]) -> list[NDArray[np.uint32]]:
    """Rows of integers as read-only parts of one array: to make one is several times faster.

    Raises ValueError, TypeError.
    """
    flat = _integers(list(chain.from_iterable(rows))).astype(np.uint32)
    flat.setflags(write=False)
    ends = list(accumulate(map(len, rows)))
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Contexts(NamedTuple):
    """One channel's context tables.

    The level of a symbol is how many of the four strictly increasing `thresholds` are not above it.
    A symbol's context is 5 x (level of the symbol above) + (level of the symbol to the left).
    `cdfs` has one CDF per context, 25 in all, each as long as the channel's static one and of at
    most 257 values.
    """

    thresholds: Sequence[int]
    cdfs: Sequence[Sequence[int]]


class Tables:
    """A static integer table for each channel, and context tables for some.

    Args:
        cdfs: per channel, at least three strictly increasing integers from 0 to 65536.
        offsets: per channel, the symbol of the first entry.
        contexts: context tables by channel.

    Attributes, all read-only arrays:
        cdfs: list of uint32 [entries + 1]. offsets: int32 [channels].
        contexts: channel -> (thresholds int32 [4], list of 25 CDFs uint32).

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
            self.cdfs = _rows(cdfs)
            self.offsets = _integers(offsets).astype(np.int32)
            self.contexts = {
                channel: (_integers(thresholds).astype(np.int32), _rows(rows))
                for channel, (thresholds, rows) in sorted((contexts or {}).items())
            }
            for channel, (thresholds, rows) in self.contexts.items():
                self._check_contexts(channel, thresholds, rows)
            cdf, lengths, own = self.flat()
            _coder.check_tables(cdf, lengths, own, *self._flat_contexts())
        except (ValueError, OverflowError, TypeError) as error:
            raise TablesError(f"bad entropy tables, {error}: export the bundle again") from error
        for array in (self.offsets, *(pair[0] for pair in self.contexts.values())):
            array.setflags(write=False)

    @cached_property
    def _native(self) -> _coder.Tables:
        """The native coder's tables. Made when first used: few levels of a bundle are."""
        native = _coder.Tables(*self.flat())
        native.add_contexts(*self._flat_contexts())
        return native

    def _check_contexts(
        self, channel: int, thresholds: NDArray[np.int32], rows: list[NDArray[np.uint32]]
    ) -> None:
        """Check what the concatenated form no longer shows. Raises ValueError."""
        if not 0 <= channel < len(self.cdfs):
            raise ValueError(f"context tables of channel {channel}, which does not exist")
        if (
            len(thresholds) != LEVELS - 1
            or len(rows) != CONTEXTS
            or any(len(row) != len(self.cdfs[channel]) for row in rows)
        ):
            raise ValueError(
                f"context tables of channel {channel}: not 4 thresholds and 25 CDFs as long as the "
                "channel's own"
            )

    def _flat_contexts(
        self,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint32]]:
        """Channels, thresholds, all CDFs concatenated, and how many of their values each has."""
        thresholds = [pair[0] for pair in self.contexts.values()]
        rows = [row for pair in self.contexts.values() for row in pair[1]]
        return (
            np.array(list(self.contexts), np.uint32),
            np.array(thresholds, np.int32).reshape(-1, LEVELS - 1),
            np.concatenate([*rows, np.empty(0, np.uint32)]),
            np.array([sum(map(len, pair[1])) for pair in self.contexts.values()], np.uint32),
        )

    def flat(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]:
        """All static CDFs concatenated, the length of each, and the offsets.

        The native coder takes this form.
        """
        lengths = np.array([len(cdf) for cdf in self.cdfs], np.uint32)
        return np.concatenate([*self.cdfs, np.empty(0, np.uint32)]), lengths, self.offsets

    @property
    def channels(self) -> int:
        """How many static tables there are."""
        return len(self.cdfs)

    def of_channels(self, channels: Sequence[int]) -> "Tables":
        """The tables of some channels, in the order that `channels` gives; at least one."""
        return Tables(
            [self.cdfs[channel].tolist() for channel in channels],
            self.offsets[list(channels)].tolist(),
            {
                place: Contexts(
                    self.contexts[channel][0].tolist(),
                    [row.tolist() for row in self.contexts[channel][1]],
                )
                for place, channel in enumerate(channels)
                if channel in self.contexts
            },
        )

    def encode(self, symbols: NDArray[np.int16], profile: Profile = Profile.STATIC) -> bytes:
        """Encode symbols int16 [channels, rows, columns], C-contiguous, each -32767 to 32767.

        Profile.CONTEXT gives fewer bytes and takes more time. Returns the payload.

        Raises NotANumberError for -32768, with which the edge graph marks a NaN in the latent.
        """
        try:
            if profile is Profile.CONTEXT:
                return self._native.encode_small(symbols)
            return self._native.encode(symbols.reshape(self.channels, -1))
        except ValueError as error:
            if not (symbols == _coder.NOT_A_SYMBOL).any():
                raise
            raise NotANumberError(
                "the edge graph computed a latent that is not a number: "
                "the checkpoint is broken, export another"
            ) from error

    def decode(
        self, payload: bytes | memoryview, shape: tuple[int, ...], profile: Profile = Profile.STATIC
    ) -> NDArray[np.int16]:
        """Decode a payload to symbols int16 [channels, rows, columns]; `shape` is (rows, columns).

        Memory depends on the shape alone, not on the payload.

        Raises DamagedFeatureFileError unless exactly the whole payload is used.
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
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """The tables' values in binary form, as edge.tables has them and the fingerprint covers."""
        parts = []
        for cdf, offset in zip(self.cdfs, self.offsets, strict=True):
            parts += [np.array([offset, len(cdf)], "<i4"), cdf.astype("<u4", copy=False)]
        for channel, (thresholds, rows) in self.contexts.items():
            parts += [
                np.array([channel, *thresholds], "<i4"),
                np.concatenate(rows).astype("<u4"),
            ]
        return b"".join(part.tobytes() for part in parts)

    def to_json(self, precision: bool = True) -> bytes:
        """The contents of a bundle's tables.json; without `precision`, those of one level in it."""

        def lines(cdfs: list[NDArray[np.uint32]], indent: int) -> str:
            return ",".join(
                "\n" + " " * indent + json.dumps(cdf.tolist(), allow_nan=False) for cdf in cdfs
            )

        contexts = ",".join(
            f'\n  "{channel}": {{"thresholds": {json.dumps(thresholds.tolist(), allow_nan=False)}, '
            f'"cdfs": [{lines(rows, 3)}]}}'
            for channel, (thresholds, rows) in self.contexts.items()
        )
        offsets = json.dumps(self.offsets.tolist(), allow_nan=False)
        head = f'"precision": {_CDF_BITS},\n ' if precision else ""
        return (
            f'{{{head}"offsets": {offsets},\n'
            f' "cdfs": [{lines(self.cdfs, 2)}],\n "contexts": {{{contexts}}}}}\n'
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Tables":
        """Tables from the contents of tables.json. Raises TablesError."""
        return cls._from(_read(text))

    @classmethod
    def levels_from_json(cls, text: bytes) -> "list[Tables]":
        """The tables of each level, from a variable-rate bundle's tables.json.

        Raises TablesError.
        """
        levels = _read(text).get("levels")
        if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
            raise TablesError("tables.json has no list of levels: export the bundle again")
        return [cls._from(level) for level in levels]

    @classmethod
    def _from(cls, content: dict[str, Any]) -> "Tables":
        try:
            cdfs, offsets = content["cdfs"], content["offsets"]
            contexts = {
                int(channel): Contexts(entry["thresholds"], entry["cdfs"])
                for channel, entry in content["contexts"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _not_understood(error) from error
        if not isinstance(cdfs, list) or not isinstance(offsets, list):
            raise _not_understood(f"{str(cdfs)[:40]} is no list")
        return cls(cdfs, offsets, contexts)


def levels_to_json(levels: "Sequence[Tables]") -> bytes:
    """The contents of a variable-rate bundle's tables.json: the tables of each level."""
    text = b",\n".join(tables.to_json(precision=False).strip() for tables in levels)
    return b'{"precision": %d, "levels": [\n%s\n]}\n' % (_CDF_BITS, text)


def _read(text: bytes) -> dict[str, Any]:
    """The JSON object of a tables.json. Raises TablesError."""
    try:
        content = strict_json.loads(text)
        precision = content["precision"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_understood(error) from error
    if precision != _CDF_BITS:
        raise TablesError(
            f"tables.json has precision {precision!r}, this release reads {_CDF_BITS}: "
            "export the bundle again"
        )
    return dict(content)


def _not_understood(why: object) -> TablesError:
    return TablesError(f"tables.json is not understood ({why!r}): export the bundle again")
