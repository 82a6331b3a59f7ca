"""edge.tables: what an edge without Python needs of a bundle's manifest and tables.

docs/BUNDLE.md, section 11, specifies the file, and csrc/library/edge_tables.hpp reads it. It is
binary, so that a device needs no JSON parser, and it names the SHA-256 of edge.weights.
"""

import hashlib
import struct
import zlib
from pathlib import Path

from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile
from runtime.codec.manifest import Preprocessing, ShapeRule

MAGIC, VERSION = b"EDGETABL", 1


def write_edge_tables(
    out: Path,
    shape: ShapeRule,
    max_symbols: int,
    rule: Preprocessing,
    profile: Profile,
    bottleneck_sha256: str,
    fingerprint: bytes,
    tables: Tables,
    weights: Path,
) -> None:
    """Write edge.tables of a bundle with one rate.

    Args:
        rule, profile, max_symbols, shape: as the manifest has them.
        bottleneck_sha256: 64 hexadecimal digits. fingerprint: 32 bytes.
        weights: the bundle's edge.weights.
    """
    body = struct.pack(
        "<8s8I32s32s32s",
        MAGIC,
        VERSION,
        shape.channels,
        shape.stride,
        shape.shrink,
        max_symbols,
        rule.resize,
        rule.crop,
        profile.value,
        bytes.fromhex(bottleneck_sha256),
        fingerprint,
        hashlib.sha256(weights.read_bytes()).digest(),
    )
    body += tables.to_bytes()
    out.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
