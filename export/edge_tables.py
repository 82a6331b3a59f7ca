"""edge.tables: what an edge without Python needs of a bundle's manifest and tables.

docs/BUNDLE.md, section 11, specifies the file, and csrc/library/edge_tables.hpp reads it. It is
binary, so that a device needs no JSON parser, and it names the SHA-256 of edge.weights.
"""

import hashlib
import struct
import zlib

from runtime.codec.bundle import EDGE_TABLES
from runtime.codec.coder import Tables

from .bundle import max_symbols
from .states import Chosen
from .tables import shape_rule

MAGIC, VERSION = b"EDGETABL", 1


def write_edge_tables(state: Chosen) -> None:
    """Write edge.tables beside the edge.weights of a bundle with one rate. Raises OSError."""
    coder, shape, rule = state.coder, shape_rule(state.model), state.reading.rule
    assert isinstance(coder.tables, Tables)  # there are no weights of variable-rate bundles
    body = struct.pack(
        "<8s8I32s32s32s",
        MAGIC,
        VERSION,
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
    body += coder.tables.to_bytes()
    (state.work / EDGE_TABLES).write_bytes(body + struct.pack("<I", zlib.crc32(body)))
