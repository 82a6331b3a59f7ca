"""A queue between requests, which come one by one, and a graph that is fastest on several images.

Feature files of one bundle and one shape share a graph call. One call runs at a time, in a thread
of its own, with all of the graph's threads. While it runs, the next batch collects, so that a busy
service fills its batches without waiting. When idle, it waits up to `max_wait` for more requests.

Always holds: everything but the graph call runs on the event loop. Every admitted image is answered
or refused with an error of its own: at its deadline, or when its graph call ends. Expired or
abandoned images are dropped before dispatch. A graph call that fails affects only its own batch.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineError, GraphFailedError, QueueFullError

log = logging.getLogger(__name__)

_MAX_RETRY_SECONDS = 60
_NEWEST_WEIGHT = 0.2  # of the last graph call in the moving average of seconds per image


class Graph(Protocol):
    """What a batch runs through. Images of different graphs never share a call."""

    @property
    def max_symbols(self) -> int:
        """The most symbols that one image may have, and so a call of several images."""

    def run(self, symbols: NDArray[Any]) -> NDArray[np.float32]:
        """Symbols int16, or values float32, [N, C, H', W'] -> logits float32 [N, classes]."""


class Answer(NamedTuple):
    """One image's logits float32 [classes], and two times in seconds."""

    logits: NDArray[np.float32]
    queue: float  # until its graph call
    graph: float  # of its graph call


class _Item:
    """One image in the queue: the graph's input [C, H', W'], and the loop's time of queueing."""

    def __init__(self, symbols: NDArray[Any], queued: float, future: "asyncio.Future[Answer]"):
        self.symbols, self.queued, self.future = symbols, queued, future


_Key = tuple[Graph, tuple[int, ...]]


class Batcher:
    """Collects admitted images into graph calls. Belongs to one event loop.

    Args:
        max_batch: images in one graph call. Fewer where they are large: a call has no more symbols
            than the bundle allows for one image.
        max_wait: seconds that an idle graph waits for a batch to fill.
        max_queue: images that are admitted and not yet answered.
        max_delay: seconds. An image that would wait longer, at the graph's recent speed, is not
            admitted.
        seconds_per_image: of the graph, until it has been measured.
        on_batch: called with the images and the seconds of each graph call.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        max_delay: float,
        seconds_per_image: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        self.max_batch, self.max_wait = max_batch, max_wait
        self.max_queue, self.max_delay = max_queue, max_delay
        self.seconds_per_image = seconds_per_image
        self.admitted = 0
        self._on_batch = on_batch
        # Waiting images: for each graph and shape a set in the order of arrival.
        self._groups: dict[_Key, dict[_Item, None]] = {}
        self._thread = ThreadPoolExecutor(1, "graph")
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def require_capacity(self, images: int = 1) -> None:
        """Raises QueueFullError if so many more images cannot be admitted now."""
        delay = self.admitted * self.seconds_per_image
        if self.admitted + images > self.max_queue or delay > self.max_delay:
            seconds = min(max(1, math.ceil(delay)), _MAX_RETRY_SECONDS)
            raise QueueFullError(
                f"{self.admitted} images are waiting, which takes {delay:.1f} s: "
                f"ask again in {seconds} s",
                seconds,
            )

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Reserve places for so many images. Raises QueueFullError."""
        self.require_capacity(images)
        self.admitted += images
        self._idle.clear()
        try:
            yield
        finally:
            self.admitted -= images
            if not self.admitted:
                self._idle.set()

    def submit(
        self, graph: Graph, symbols: NDArray[Any], deadline: float
    ) -> "asyncio.Future[Answer]":
        """Queue one admitted image: symbols or values [C, H', W'], deadline in the loop's time.

        The future raises DeadlineError or GraphFailedError. Cancelling it gives up its place.
        """
        loop = asyncio.get_running_loop()
        item = _Item(symbols, loop.time(), loop.create_future())
        key = graph, symbols.shape
        self._groups.setdefault(key, {})[item] = None
        timer = loop.call_at(deadline, self._expire, key, item)
        item.future.add_done_callback(lambda _: self._remove(key, item, timer))
        self._dispatch()
        return item.future

    def _expire(self, key: _Key, item: _Item) -> None:
        if item in self._groups.get(key, ()) and not item.future.done():
            waited = asyncio.get_running_loop().time() - item.queued
            item.future.set_exception(
                DeadlineError(
                    f"no graph call was free within {1e3 * waited:.0f} ms: "
                    "send it again when the service is less busy"
                )
            )

    def _remove(self, key: _Key, item: _Item, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        group = self._groups.get(key, {})
        if item in group:
            del group[item]
            if not group:
                del self._groups[key]

    def _dispatch(self) -> None:
        """Start a graph call if none runs, and a batch is full or has waited long enough."""
        if self._running:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        now, first = loop.time(), math.inf
        # The group whose first image has waited longest goes first.
        for key, group in sorted(
            self._groups.items(), key=lambda entry: next(iter(entry[1])).queued
        ):
            due = next(iter(group)).queued + self.max_wait
            if len(group) >= self._size(key) or due <= now:
                return self._start(key)
            first = min(first, due)
        if self._groups:
            self._timer = loop.call_at(first, self._dispatch)

    def _size(self, key: _Key) -> int:
        graph, shape = key
        return max(1, min(self.max_batch, graph.max_symbols // math.prod(shape)))

    def _start(self, key: _Key) -> None:
        waiting = [item for item in self._groups.pop(key) if not item.future.done()]
        batch, rest = waiting[: self._size(key)], waiting[self._size(key) :]
        if rest:
            self._groups[key] = dict.fromkeys(rest)
        if not batch:
            return self._dispatch()
        self._running = True
        loop = asyncio.get_running_loop()
        start = loop.time()
        call = loop.run_in_executor(
            self._thread, lambda: key[0].run(np.stack([item.symbols for item in batch]))
        )
        call.add_done_callback(lambda done: self._finish(batch, start, done))

    def _finish(
        self, batch: list[_Item], start: float, call: "asyncio.Future[NDArray[np.float32]]"
    ) -> None:
        self._running = False
        seconds = asyncio.get_running_loop().time() - start
        # Start the next call before the answers of this one: the graph is the bottleneck.
        self._dispatch()
        if error := call.exception():
            log.error("a graph call of %d images failed", len(batch), exc_info=error)
            for item in batch:
                _fail(item, f"the cloud graph failed ({type(error).__name__}): send it again")
            return
        self.seconds_per_image += _NEWEST_WEIGHT * (seconds / len(batch) - self.seconds_per_image)
        self._on_batch(len(batch), seconds)
        for item, logits in zip(batch, call.result(), strict=True):
            if not np.isfinite(logits).all():
                _fail(
                    item,
                    "the cloud graph computed logits that are not numbers: "
                    "the bundle is broken, export another",
                )
            elif not item.future.done():
                item.future.set_result(Answer(logits, start - item.queued, seconds))

    async def drained(self) -> None:
        """Wait until no image is admitted."""
        await self._idle.wait()

    def close(self) -> None:
        """End the graph's thread, after its current call."""
        if self._timer:
            self._timer.cancel()
        self._thread.shutdown(wait=True)


def _fail(item: _Item, message: str) -> None:
    if not item.future.done():
        item.future.set_exception(GraphFailedError(message))
