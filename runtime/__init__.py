"""Both ends of feature compression: an edge device encodes an image, a server classifies the bytes.

    from runtime import EdgeEncoder, CloudDecoder

Needs numpy, onnxruntime, Pillow and the native coder; never torch. Names are loaded on first use,
so that a command's --help does not wait for onnxruntime.

Always holds: what runs below reports nothing to its makers, and writes nothing under HOME, as long as this is imported
first. Who imports onnxruntime or OpenVINO earlier sets ORT_DISABLE_TELEMETRY=1 for the one, and does as here for the other.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

# onnxruntime writes a device id and a database under HOME as it is imported, and soon looks up its maker's host. Ray asks
# for this variable before it starts a cluster.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# OpenVINO reports its import through this package, which has no variable. Without the package it uses an empty stub of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from .cloud import CloudDecoder
    from .edge import EdgeEncoder

__version__ = "0.2.0"
__all__ = ["CloudDecoder", "EdgeEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "EdgeEncoder":
        from .edge import EdgeEncoder

        return EdgeEncoder
    if name == "CloudDecoder":
        from .cloud import CloudDecoder

        return CloudDecoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
