"""edge.tables: what an edge without Python needs of a bundle's manifest, tables and rates.

docs/BUNDLE.md, section 11, specifies the file, and csrc/library/edge_tables.hpp reads it. It is
binary, so that a device needs no JSON parser, and it names the SHA-256 of edge.weights.
"""

import hashlib
import struct
import zlib

from runtime.codec.bundle import EDGE_TABLES
from runtime.codec.feature_file import MAX_STEP
from runtime.codec.manifest import DEFAULT_LEVEL
from runtime.codec.rates import step_of
from runtime.codec.variable_rate import VariableRate

from .bundle import max_symbols
from .states import Chosen
from .tables import shape_rule

MAGIC, FIXED, VARIABLE = b"EDGETABL", 1, 2  # the last two are versions of the file


def write_edge_tables(state: Chosen) -> None:
    """Write edge.tables beside the edge.weights of a bundle. Raises OSError."""
    coder, shape, rule = state.coder, shape_rule(state.model), state.reading.rule
    tables = coder.tables
    varies = isinstance(tables, VariableRate)
    body = struct.pack(
        "<8s8I32s32s32s",
        MAGIC,
        VARIABLE if varies else FIXED,
        shape.channels,
        shape.stride,
        shape.shrink,
        max_symbols(state),
        rule.resize,
        rule.crop,
        coder.profile.value,
        bytes.fromhex(state.bottleneck_sha256),
        coder.fingerprint,
        hashlib.sha256(state.graphs["edge"]["native"].read_bytes()).digest(),
    )
    if isinstance(tables, VariableRate):
        body += variable_bytes(tables, step_of(DEFAULT_LEVEL))
    else:
        body += tables.to_bytes()
    (state.work / EDGE_TABLES).write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def variable_bytes(variable: VariableRate, default_step: int) -> bytes:
    """What the file of a variable-rate bundle has in the place of the tables."""
    rates = variable.rates
    parts = [struct.pack("<I", default_step), rates.to_bytes()]
    parts += [rates.gain(step).astype("<f4").tobytes() for step in range(MAX_STEP + 1)]
    for tables in variable.levels:
        data = tables.to_bytes()
        parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)
