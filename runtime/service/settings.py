"""The settings of a service, which are the same whatever protocol is in front of it.

Always holds: they do not change while a service runs, and importing them imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What a service is told. Times are in milliseconds where the name says so, else in seconds.

    Attributes:
        bundles: bundles, and folders of bundles. None: $EDGECLOUD_BUNDLE, else bundles/ours_n4.
        token_file: one token per line; each request must carry one of them. None: no token is
            needed.
        threads: of the cloud graph; None for one per core.
        provider: of the cloud graph, as CloudDecoder takes it.
        precision: of the cloud graph, as CloudDecoder takes it.
        max_batch: images in one graph call.
        max_wait_ms: when idle, the graph waits this long for more requests.
        max_queue: images that are admitted and not yet answered.
        deadline_ms: from the admission of a request to the start of its graph call.
        max_files: feature files in one request.
        body_seconds: for the whole body of a request to arrive.
        drain_seconds: for admitted requests to be answered when the service stops.
        max_buffer_bytes: bodies of all requests together.
    """

    bundles: tuple[str | Path, ...] = ()
    token_file: str | Path | None = None
    threads: int | None = None
    provider: str = "auto"
    precision: str = "auto"
    max_batch: int = 8
    max_wait_ms: float = 2.0
    max_queue: int = 128
    deadline_ms: float = 2000.0
    max_files: int = 64
    body_seconds: float = 10.0
    drain_seconds: float = 10.0
    max_buffer_bytes: int = 256 << 20
