"""The service, whatever protocol its clients use: bytes and limits in, answers or refusals out.

    service = Service(Settings(bundles=("bundles/ours_n4",)))
    await service.open()                                      # loads the bundles
    context = RequestContext(method="POST", path="/v1/classify")
    service.authorize(token)                                  # refuses a wrong token
    service.require_capacity()                                # refuses before any work
    async with service.receiving(context):                    # refuses a slow body
        service.hold(context, len(data))                      # refuses too many bytes in memory
    (outcome,) = await service.classify([data], context)      # Classified, or why not
    context.status = 200
    service.finish(context)                                   # metrics and log line
    await service.stop()

It owns the served bundles, the tokens, the queue and its batches, deadlines, limits, metrics,
readiness and reloading. A front translates between a protocol and these calls: app.py and the
http_* files are the front for HTTP. Each refusal is an error of errors.py; refusals.py has its code
and its HTTP status.

Always holds: nothing here knows a protocol; a refusal for lack of capacity comes before any work;
nothing that takes long runs on the event loop; the memory that requests take is bounded.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cloud import CloudDecoder, GraphInput
from ..codec import feature_file
from ..codec.bundle import default_bundle
from ..engine.processor import cores
from ..errors import (
    DrainingError,
    EdgeCloudError,
    QueueFullError,
    SlowBodyError,
    StartingError,
    UnauthorizedError,
)
from ..refusals import code_of
from .batcher import Answer, Batcher
from .bundles import ServedBundle, ServedBundles, load_bundles
from .metrics import Metrics
from .request import RequestContext
from .settings import Settings
from .tokens import is_known, read_tokens

__all__ = ["Classified", "Outcome", "Service", "Settings"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# A request that would wait longer than this part of its deadline is refused at once: otherwise it
# would be refused at the deadline, after its work is done for nothing.
_USABLE_DEADLINE = 0.8
_SEVERAL_FILES_BYTES = 4 << 20  # of several feature files together, or one largest file if more


class Classified(NamedTuple):
    """An answer: the bundle that gave it, its logits float32 [classes], and stage -> seconds."""

    bundle: ServedBundle
    logits: NDArray[np.float32]
    seconds: dict[str, float]


Outcome = Classified | EdgeCloudError


class Service:
    """Bundles, queue, limits and metrics behind every front.

    All but `load` is used on one event loop. No thread starts before the first work.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.loading = False  # in a thread, which cannot be stopped
        self.draining = False
        self.held_bytes = 0  # of bodies of requests under way
        self._bundles: ServedBundles | None = None
        self._tokens: list[bytes] | None = None
        self._load_lock = asyncio.Lock()
        self._body_timeouts: set[asyncio.Timeout] = set()  # of bodies that are still arriving
        self.metrics = Metrics(
            lambda: self.batcher.admitted, lambda: self.batcher.seconds_per_image
        )
        self.batcher = Batcher(
            settings.max_batch,
            settings.max_wait_ms / 1e3,
            settings.max_queue,
            _USABLE_DEADLINE * settings.deadline_ms / 1e3,
            on_batch=self.metrics.record_batch,
        )
        # Decoding takes about a hundredth of the graph's time: few threads are enough, and they
        # leave the cores to the graph.
        self._coder = ThreadPoolExecutor(max(1, min(4, cores() // 4)), "coder")

    # Start and stop.

    def load(self) -> None:
        """Read the tokens and load all bundles, which takes seconds. Any thread may call this.

        If anything fails, what is served stays as it was.
        Raises TokenFileError, ServedBundlesError, EngineChoiceError, the BundleErrors, OSError.
        """
        settings = self.settings
        self.loading = True
        try:
            tokens = read_tokens(settings.token_file) if settings.token_file is not None else None
            folders = [Path(folder) for folder in settings.bundles or (default_bundle(),)]
            bundles = load_bundles(
                folders,
                self._bundles,
                lambda folder: CloudDecoder(
                    folder, settings.threads, settings.provider, settings.precision
                ),
            )
            # Tokens first: as soon as there are bundles, requests are answered.
            self._tokens = tokens
            self._bundles = bundles
        finally:
            self.loading = False

    async def open(self) -> None:
        """Load, unless that is done, and serve. Raises what `load` does."""
        async with self._load_lock:
            if self._bundles is None:
                await _in_daemon_thread(self.load)
        self.batcher.seconds_per_image = max(
            bundle.seconds_per_image for bundle in self.bundles.by_name.values()
        )

    async def reload(self) -> bool:
        """Load again what the folders and the token file hold now.

        Requests under way keep the bundles that they have. Returns False, and logs why, if that
        fails: then all stays as it was. Returns False once the service drains.
        """
        async with self._load_lock:
            if self.draining:
                return False
            before = {} if self._bundles is None else self._bundles.by_name
            try:
                await _in_daemon_thread(self.load)
            except (EdgeCloudError, OSError) as error:
                log.error("not reloaded, all stays as it was: %s", error)
                return False
            for bundle in self.bundles.by_name.values():
                if before.get(bundle.name) is not bundle:
                    log.info(
                        "%s is loaded: fingerprint %s, %s",
                        bundle.name,
                        bundle.fingerprint,
                        bundle.decoder.engine.choice,
                    )
            log.info("reloaded: %s", ", ".join(self.bundles.by_name))
            return True

    @property
    def loaded(self) -> bool:
        """Whether the bundles have been loaded once."""
        return self._bundles is not None

    @property
    def ready(self) -> bool:
        """Whether feature files are accepted."""
        return self.loaded and not self.draining

    def drain(self) -> None:
        """From now on refuse new requests and incomplete ones. Admitted ones are answered."""
        self.draining = True
        now = asyncio.get_running_loop().time()
        for timeout in self._body_timeouts:
            if not timeout.expired():
                timeout.reschedule(now)

    async def drained(self) -> bool:
        """Wait until all admitted requests are answered, for at most `drain_seconds`.

        Returns False if some are left.
        """
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            log.warning(
                "%d images are not answered after %g s",
                self.batcher.admitted,
                self.settings.drain_seconds,
            )
            return False
        return True

    async def stop(self) -> None:
        """Refuse new requests, answer the admitted ones, and end the threads."""
        self.drain()
        await self.drained()
        self._coder.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.batcher.close)

    # What a request may do.

    @property
    def bundles(self) -> ServedBundles:
        """The bundles that are served now. Raises StartingError before they are loaded."""
        if self._bundles is None:
            raise StartingError("the service is still loading its bundles: ask again in 1 s")
        return self._bundles

    def authorize(self, token: str | None) -> None:
        """Raises UnauthorizedError unless the token is a known one, or none is needed.

        Raises StartingError before the tokens are read.
        """
        _ = self.bundles
        if self._tokens is not None and not is_known(self._tokens, token or ""):
            raise UnauthorizedError(
                "the request has no right token: send `Authorization: Bearer TOKEN`"
            )

    def require_capacity(self) -> None:
        """Raises DrainingError, QueueFullError if one more image could not be admitted now."""
        if self.draining:
            raise DrainingError("the service is about to stop: ask another, or again in a while")
        self.batcher.require_capacity()

    @property
    def max_files(self) -> int:
        """Feature files in one request."""
        return min(self.settings.max_files, self.settings.max_queue)

    def max_bytes(self, several: bool) -> int:
        """Bytes of a body with one feature file, or with several, each after its 4-byte length.

        One file may have as many as the largest served bundle allows. Raises StartingError.
        """
        one = self.bundles.max_file_bytes
        return max(one + 4, _SEVERAL_FILES_BYTES) if several else one

    @asynccontextmanager
    async def receiving(self, context: RequestContext) -> AsyncIterator[None]:
        """Bounds the time in which a body arrives.

        Raises SlowBodyError after `body_seconds`, or DrainingError at once when the service drains.
        """
        try:
            async with asyncio.timeout(self.settings.body_seconds) as timeout:
                self._body_timeouts.add(timeout)
                try:
                    yield
                finally:
                    self._body_timeouts.discard(timeout)
        except TimeoutError:
            if self.draining:
                raise DrainingError(
                    "the service stopped before the request was complete: "
                    "ask another, or again in a while"
                ) from None
            raise SlowBodyError(
                f"only {context.received} bytes of the body arrived in "
                f"{self.settings.body_seconds:g} s, and not its end: send it again, faster"
            ) from None

    def hold(self, context: RequestContext, size: int) -> None:
        """Count so many bytes of a body as held in memory, until the request is finished.

        Raises QueueFullError if all requests together hold more than `max_buffer_bytes`.
        """
        context.held += size
        self.held_bytes += size
        if self.held_bytes > self.settings.max_buffer_bytes:
            raise QueueFullError(
                f"requests of {self.held_bytes} bytes are waiting: ask again in 1 s", 1
            )

    async def classify(
        self, files: Sequence[bytes], context: RequestContext, only: ServedBundle | None = None
    ) -> list[Outcome]:
        """Answer each feature file, or say why not, in their order.

        Args:
            files: bytes of feature files.
            context: gets the stages' seconds and the number of images.
            only: the bundle that all files must be of; None: each file's fingerprint chooses.

        Cancelling this gives up the request's places in the queue: a front does so when its client
        has gone. Raises StartingError, QueueFullError.
        """
        loop, bundles = asyncio.get_running_loop(), self.bundles
        with self.batcher.admit(len(files)):
            deadline = loop.time() + self.settings.deadline_ms / 1e3
            start = perf_counter()
            decoded = await self.in_coder(lambda: [_decode(bundles, file, only) for file in files])
            context.seconds["coder"] = perf_counter() - start
            futures = [
                self.batcher.submit(*entry, deadline)
                for entry in decoded
                if not isinstance(entry, EdgeCloudError)
            ]
            answers = iter(await asyncio.gather(*futures, return_exceptions=True))
        return [
            entry
            if isinstance(entry, EdgeCloudError)
            else self._outcome(entry[0], next(answers), context)
            for entry in decoded
        ]

    def _outcome(
        self, bundle: ServedBundle, answer: Answer | BaseException, context: RequestContext
    ) -> Outcome:
        if isinstance(answer, EdgeCloudError):
            return answer
        if isinstance(answer, BaseException):
            raise answer
        stages = {"queue": answer.queue, "graph": answer.graph}
        for stage, seconds in stages.items():
            context.seconds[stage] = max(context.seconds.get(stage, 0), seconds)
        context.model = bundle.name
        context.images += 1
        self.metrics.images.labels(bundle.name).inc()
        return Classified(bundle, answer.logits, {"coder": context.seconds["coder"], **stages})

    async def in_coder(self, work: Callable[[], T]) -> T:
        """Run in a coder thread what would take too long on the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._coder, work)

    def count_refusal(self, error: EdgeCloudError) -> None:
        """Count the refusal of one feature file in a request that is answered as a whole."""
        self.metrics.refusals.labels(code_of(type(error))).inc()

    def finish(self, context: RequestContext) -> None:
        """End a request: free what it holds, count it, and write its log line."""
        self.held_bytes -= context.held
        context.held = 0
        context.seconds["total"] = perf_counter() - context.start
        self.metrics.record_request(context)
        context.log()


def _decode(
    bundles: ServedBundles, data: bytes, only: ServedBundle | None
) -> tuple[ServedBundle, GraphInput] | EdgeCloudError:
    try:
        file = feature_file.parse(data)
        bundle = only or bundles.of(file)
        return bundle, bundle.decoder.bundle.graph_input(file)
    except EdgeCloudError as error:
        return error


async def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Like asyncio.to_thread, but the process can end while the thread still runs."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failed: BaseException | None = None
        try:
            work()
        except BaseException as error:  # raised again where this is awaited
            failed = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, failed)

    threading.Thread(target=run, name="load", daemon=True).start()
    await done
