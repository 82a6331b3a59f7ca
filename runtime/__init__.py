"""Both ends of feature compression: an edge device encodes an image, a server classifies the bytes.

    from runtime import EdgeEncoder, CloudDecoder

Needs numpy, onnxruntime, Pillow and the native coder; never torch. Names are loaded on first use,
so that a command's --help does not wait for onnxruntime.

Always holds: onnxruntime, OpenVINO and Ray send no telemetry and write nothing under HOME, if this
package is imported before them. A program that imports onnxruntime earlier sets
ORT_DISABLE_TELEMETRY=1 itself; one that imports OpenVINO earlier blocks `openvino_telemetry`, as
is done below.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

# When imported, onnxruntime writes a device id and a database under HOME, and later looks up a
# telemetry host. Ray reads its variable when it starts a cluster.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# OpenVINO reports its import through this package, which no variable switches off. Where the
# package cannot be imported, OpenVINO uses an empty stub of its own.
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
