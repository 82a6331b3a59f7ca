"""Reading JSON as its standard has it, RFC 8259: no NaN, no infinity.

Python's own module takes `NaN`, `Infinity`, and makes an infinity of `1e999`. Each slips through the
comparisons that follow, since a NaN is neither over a limit nor under it. What we write is held to
the same by `json.dumps(..., allow_nan=False)`.
"""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """As json.loads; raises ValueError for a number that is not finite, too."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value
