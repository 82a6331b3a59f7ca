"""What a variable-rate bundle codes with: its rate levels, and the tables of each whole level.

A file of a step is coded with the tables of the nearest whole level. A cut file, for budgets below
the smallest level, has level 0's symbols of the first `kept` channels of the order alone; all other
symbols are 0.

Always holds: a payload of a cut file is that of a bundle with these channels' tables alone, in the
order of the bundle; without channels, it has no bytes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedFeatureFileError, TablesError
from .coder import Tables
from .feature_file import MAX_STEP, FeatureFile, Profile
from .rates import LEVELS, Rates, whole_level


class VariableRate:
    """Rate levels, and tables. Does not change; may be shared between threads.

    Args:
        rates: gains and order.
        levels: the tables of the 16 whole levels, each of as many channels as `rates` has.

    Raises TablesError.
    """

    def __init__(self, rates: Rates, levels: Sequence[Tables]):
        if len(levels) != LEVELS or any(one.channels != rates.channels for one in levels):
            raise TablesError(
                f"tables.json has {len(levels)} levels of {sorted({t.channels for t in levels})} "
                f"tables, rates.json {LEVELS} of {rates.channels}: export the bundle again"
            )
        self.rates, self.levels = rates, tuple(levels)
        self._kept: dict[int, Tables] = {}  # tables of cut files, by their number of channels

    @property
    def has_contexts(self) -> bool:
        """Whether any level has context tables, without which no small file is written."""
        return any(tables.contexts for tables in self.levels)

    @property
    def most_kept(self) -> int:
        """The most channels of a cut file: not all, and no more than its byte can say."""
        return min(self.rates.channels - 1, 255)

    def tables_at(self, step: int) -> Tables:
        """The tables that the symbols of a step, 0 to 240, are coded with."""
        return self.levels[whole_level(step)]

    def tables_of(self, kept: int) -> Tables:
        """The tables of a cut file of `kept` channels, 1 or more. They are made when first used."""
        if kept not in self._kept:
            self._kept[kept] = self.levels[0].of_channels(self.rates.order[:kept].tolist())
        return self._kept[kept]

    def encode(
        self, symbols: NDArray[np.int16], profile: Profile, step: int, kept: int | None = None
    ) -> bytes:
        """Encode symbols int16 [C, H', W'] of a step; with `kept`, that many channels alone.

        Returns the payload. Raises NotANumberError, and ValueError for a step or a number of
        channels that does not exist.
        """
        if not 0 <= step <= MAX_STEP or not 0 <= (kept or 0) <= self.most_kept:
            raise ValueError(
                f"step {step} is not from 0 to {MAX_STEP}, or {kept} channels not from 0 to "
                f"{self.most_kept}"
            )
        if kept is None:
            return self.tables_at(step).encode(symbols, profile)
        if kept == 0:
            return b""
        return self.tables_of(kept).encode(symbols[self.rates.order[:kept]], profile)

    def decode(self, file: FeatureFile, shape: tuple[int, int]) -> NDArray[np.int16]:
        """Decode a file's payload to symbols int16 [C, H', W']; `shape` is (H', W').

        The file is of version 2. Raises DamagedFeatureFileError.
        """
        assert file.step is not None
        if file.kept is None:
            return self.tables_at(file.step).decode(file.payload, shape, file.profile)
        symbols = np.zeros((self.rates.channels, *shape), np.int16)
        if file.kept:
            symbols[self.rates.order[: file.kept]] = self.tables_of(file.kept).decode(
                file.payload, shape, file.profile
            )
        elif len(file.payload):
            raise DamagedFeatureFileError(
                f"the feature file has no channels, and {len(file.payload)} bytes of them: "
                "send it again"
            )
        return symbols

    def digest(self) -> bytes:
        """SHA-256 of the tables of all levels, the gains and the order."""
        tables = b"".join(tables.digest() for tables in self.levels)
        return hashlib.sha256(tables + self.rates.to_bytes()).digest()
