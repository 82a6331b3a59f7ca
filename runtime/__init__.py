"""Both ends of feature compression: an edge device encodes an image, a server classifies the bytes.

    from runtime import EdgeEncoder, CloudDecoder

Needs numpy, onnxruntime, Pillow and the native coder; never torch. Names are loaded on first use,
so that a command's --help does not wait for onnxruntime.
"""

import os
from typing import TYPE_CHECKING, Any

# Before onnxruntime is imported, which would write a device id under HOME and look up its maker's host.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .cloud import CloudDecoder
    from .edge import EdgeEncoder

__version__ = "0.1.0"
__all__ = ["CloudDecoder", "EdgeEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "EdgeEncoder":
        from .edge import EdgeEncoder

        return EdgeEncoder
    if name == "CloudDecoder":
        from .cloud import CloudDecoder

        return CloudDecoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
