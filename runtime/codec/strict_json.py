"""Reads JSON as RFC 8259 defines it: without NaN and infinity.

Python's json module accepts `NaN` and `Infinity`, and reads `1e999` as infinity. Such values pass
later range checks, since every comparison with a NaN is false. What we write follows the same rule
through `json.dumps(..., allow_nan=False)`.

Always holds: every number that is read is finite.
"""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """As json.loads, and also raises ValueError for a number that is not finite."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value
