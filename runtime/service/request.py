"""One request: what is measured of it, and the line that is logged for it.

Always holds: a log line has no payload and no token.
"""

import logging
import secrets
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

# Its level is an option of its own: see log.py.
requests_log = logging.getLogger("runtime.service.requests")

_LOGGED_CHARACTERS = 200  # of a path, which the client chooses


@dataclass(kw_only=True)
class RequestContext:
    """One request, for its log line and metrics. A front makes one, and `Service.finish` ends it.

    Attributes:
        method, path: as the client sent them.
        endpoint: label of its metrics, with few values; "other" for a path that does not exist.
        id: the client's own, or a random one.
        start: when it began, by `perf_counter`.
        status: an HTTP status (each error has one in refusals.py); 0 until it is known.
        code: of its refusal.
        model: name of the bundle that answered.
        images: feature files that were answered.
        received, sent: bytes of its body, and of its answer's.
        held: bytes of its body in memory, counted against `max_buffer_bytes`.
        seconds: stage -> seconds. The stages are read (of the body), coder, queue, graph, total.
    """

    method: str
    path: str
    endpoint: str = "other"
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    start: float = field(default_factory=perf_counter)
    status: int = 0
    code: str | None = None
    model: str | None = None
    images: int = 0
    received: int = 0
    sent: int = 0
    held: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def log(self) -> None:
        """Write the request's line, if its level is logged."""
        level = logging.INFO
        if self.status in (0, 500):
            level = logging.ERROR
        elif self.status >= 400:
            level = logging.WARNING
        if not requests_log.isEnabledFor(level):
            return
        line: dict[str, Any] = {
            "id": self.id,
            "method": self.method,
            "path": self.path[:_LOGGED_CHARACTERS],
            "status": self.status,
        }
        if self.code:
            line["code"] = self.code
        if self.model:
            line |= {"model": self.model, "images": self.images}
        line |= {
            "received": self.received,
            "sent": self.sent,
            "milliseconds": milliseconds(self.seconds),
        }
        text = f"{line['method']} {line['path']}: {line['status']}"
        requests_log.log(level, "%s", text, extra={"request": line})


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    """Stage -> seconds as stage -> milliseconds, to the microsecond."""
    return {stage: round(1e3 * value, 3) for stage, value in seconds.items()}
