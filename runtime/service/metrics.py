"""What a service counts, for Prometheus.

Always holds: each service has a registry of its own, so that several can run in one process; labels
have few values, and no client can add one.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from .request import RequestContext

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of `render`
# Buckets of the histograms.
_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """The counters of one service.

    Args:
        admitted: images that are admitted and not yet answered, read whenever metrics are.
        seconds_per_image: of the graph at present, read likewise.
    """

    def __init__(self, admitted: Callable[[], float], seconds_per_image: Callable[[], float]):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "edgecloud_requests",
            "Requests, by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.refusals = Counter(
            "edgecloud_refusals",
            "Requests and feature files that were refused",
            ["code"],
            registry=registry,
        )
        self.images = Counter(
            "edgecloud_images", "Feature files that were answered", ["model"], registry=registry
        )
        self.stages = Histogram(
            "edgecloud_stage_seconds",
            "Seconds of a request, by stage",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "edgecloud_batch_images", "Images of a graph call", buckets=_IMAGES, registry=registry
        )
        self.calls = Counter("edgecloud_graph_seconds", "Seconds in graph calls", registry=registry)
        self.received = Counter(
            "edgecloud_received_bytes", "Bytes of request bodies", registry=registry
        )
        self.sent = Counter("edgecloud_sent_bytes", "Bytes of response bodies", registry=registry)
        self.lost_lines = Counter(
            "edgecloud_lost_log_lines", "Log lines that nobody read in time", registry=registry
        )
        queue = Gauge(
            "edgecloud_queue_images",
            "Images that are admitted and not yet answered",
            registry=registry,
        )
        queue.set_function(admitted)
        pace = Gauge(
            "edgecloud_seconds_per_image",
            "Seconds of the graph an image, of late",
            registry=registry,
        )
        pace.set_function(seconds_per_image)
        ProcessCollector(registry=registry)

    def record_batch(self, images: int, seconds: float) -> None:
        """Count one graph call."""
        self.batches.observe(images)
        self.calls.inc(seconds)

    def record_request(self, context: RequestContext) -> None:
        """Count one request that has ended. Stages are counted only of requests with an answer."""
        self.requests.labels(context.endpoint, str(context.status)).inc()
        self.received.inc(context.received)
        self.sent.inc(context.sent)
        if context.code:
            self.refusals.labels(context.code).inc()
        if context.images:
            for stage, seconds in context.seconds.items():
                self.stages.labels(stage).observe(seconds)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
