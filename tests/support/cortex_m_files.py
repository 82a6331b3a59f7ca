"""The two files that a microcontroller has of a bundle, and made ones, for tests.

Always holds: hashes, fingerprint and checksum fit what is inside.
"""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.codec.coder import Contexts, Tables

_RULE = struct.Struct("<8s8I32s32s32s")


class Files(NamedTuple):
    """A bundle's edge.tables and edge.weights."""

    tables: bytes
    weights: bytes

    def with_tables(self, tables: Tables, small: bool) -> "Files":
        """The files of a bundle with other tables."""
        values = list(_RULE.unpack_from(self.tables))
        text = "feature file 1; block 8; 64 channels, stride 8, shrink 0; "
        inner = hashlib.sha256(tables.to_bytes()).digest()
        fingerprint = hashlib.sha256(text.encode() + inner + values[9]).digest()
        weights = self.weights[:36] + fingerprint + self.weights[68:]
        values[8], values[10], values[11] = small, fingerprint, hashlib.sha256(weights).digest()
        body = _RULE.pack(*values) + tables.to_bytes()
        return Files(body + struct.pack("<I", zlib.crc32(body)), weights)

    def with_weights(self, weights: bytes) -> "Files":
        """The files of a bundle with other weights."""
        values = list(_RULE.unpack_from(self.tables))
        values[11] = hashlib.sha256(weights).digest()
        body = _RULE.pack(*values) + self.tables[_RULE.size : -4]
        return Files(body + struct.pack("<I", zlib.crc32(body)), weights)

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "edge.tables").write_bytes(self.tables)
        (folder / "edge.weights").write_bytes(self.weights)
        return folder


def _cdf(random: np.random.Generator, entries: int, peak: int) -> list[int]:
    """A random CDF; entry `peak` is the most frequent one."""
    inner = random.choice(np.arange(1, 65536), entries - 1, replace=False)
    widths = np.diff(np.sort(np.concatenate([[0], inner, [65536]])))
    widths[[peak, widths.argmax()]] = widths[[widths.argmax(), peak]]
    return [0, *np.cumsum(widths).tolist()]


def _steep_cdf(entries: int, peak: int) -> list[int]:
    """A CDF that gives all but one of 65536 for each other entry to `peak`: coded in runs."""
    widths = np.ones(entries, int)
    widths[peak] = 65537 - entries
    return [0, *np.cumsum(widths).tolist()]


def made_tables(random: np.random.Generator, contexts: int) -> Tables:
    """Tables of 64 channels with symbols from -2 to 4 at most, so that many others are escaped."""
    cdfs, offsets, with_contexts = [], [], {}
    chosen = set(random.choice(64, contexts, replace=False).tolist())
    for channel in range(64):
        entries = int(random.integers(2, 7))
        peak = int(random.integers(0, min(entries - 1, 3)))
        runs = random.random() < 0.5
        cdfs.append(_steep_cdf(entries, peak) if runs else _cdf(random, entries, peak))
        offsets.append(-peak)
        if channel in chosen:
            rows = [_cdf(random, entries, peak) for _ in range(25)]
            with_contexts[channel] = Contexts([-2, 0, 1, 3], rows)
    return Tables(cdfs, offsets, with_contexts)


def doubled(files: Files, times: int) -> Files:
    """Files with symbols that are doubled so many times."""
    at = len(files.weights) - 64 * (2 * 128 + 8) - 12  # the shift of the last convolution
    (shift,) = struct.unpack_from("<I", files.weights, at)
    shorter = struct.pack("<I", shift - times)
    return files.with_weights(files.weights[:at] + shorter + files.weights[at + 4 :])


def flat_tables(small: bool) -> Tables:
    """Tables of one far symbol and nothing else, under which all symbols are escaped and busy."""
    cdfs = [[0, 32768, 65536]] * 64
    rows = Contexts([-2, 0, 1, 3], [[0, 65535, 65536]] * 25)
    return Tables(cdfs, [32000] * 64, {channel: rows for channel in range(64)} if small else {})
