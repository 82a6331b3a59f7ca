"""Delivers feature files to a cloud-serve: what the spool holds, oldest first, then new ones.

    endpoint = Endpoint("https://cloud.example")
    with Spool("spool") as spool:
        for outcome in deliver(spool, endpoint, [Encoded("photo.jpg", data)]):
            print(outcome)

A feature file is accepted when it is on the disk. It is then posted under its key (the
Idempotency-Key header), its result is recorded, and only then is the file deleted. So it is
delivered at least once, and has one result.

Always holds: an answer counts only if cloud-serve gave it. The token goes only to the URL that was
named; no redirect is followed. The size and the time of an answer are limited. Nothing is retried
forever, and nothing is dropped. Slow images, or a slow reader of the outcomes, do not delay what is
in the spool.
"""

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from .. import __version__
from ..errors import (
    DamagedSpoolFileError,
    EdgeCloudError,
    SendError,
    ServerAwayError,
    ServerSetupError,
    SpoolDiskError,
    SpoolError,
)
from .answers import Answer, explain, judge
from .outcomes import Encoded, Outcome, accept_all, recorded
from .route import Endpoint, Proxy, httpx
from .spool import DELIVERED, REFUSED, Entry, Spool

__all__ = ["Encoded", "Endpoint", "Outcome", "deliver"]

_MAX_ANSWER = 1 << 20  # bytes; a thousand classes take a tenth of it
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds after the first failure, and after many
_PATIENCE = 120.0  # seconds; if the server asks to wait longer, and no images come, the run ends
_MAX_FOREIGN = 4  # answers in a row that are not of cloud-serve, after which posting stops


def deliver(
    spool: Spool, endpoint: Endpoint, images: Iterable[Encoded] = ()
) -> Generator[Outcome, None, None]:
    """Accept `images` into the spool, and post its files until none is left or none can be posted.

    `images` is iterated in other threads, ahead of the posts as far as the spool has room. Outcomes
    come as they are known: one for each image, and one for each file of an earlier run that has a
    result now, or was tried and is still in the spool. While images come, a server that is away is
    tried again and again, and the spool fills. After the last image it is tried
    `endpoint.attempts` times.

    Raises, after the last outcome and with the rest in the spool:
        ServerUrlError, ProxySettingError, CertificateFileError: nothing was posted.
        ServerAwayError: the server gave no answer in the end.
        ServerSetupError: the server, or something in front of it, takes no file with these
            settings: a wrong token or URL, a redirect, an untrusted certificate, a proxy's limit.
        SpoolDiskError: a result could not be recorded.
        What `images` raises.
    """
    try:
        client, proxy = endpoint.client(), endpoint.proxy()
    except SendError as error:
        yield from accept_all(spool, images, error)
        return
    delivery = _Delivery(spool, endpoint, client, proxy)
    # Signals reach the caller's thread. asyncio runs in another one, so none interrupts its work.
    thread = threading.Thread(
        target=delivery.run, args=(iter(images),), name="delivery", daemon=True
    )
    thread.start()
    try:
        yield from _until_none(delivery.outcomes)
    finally:
        delivery.end()
        thread.join()
    if delivery.error:
        raise delivery.error


def _until_none(outcomes: SimpleQueue[Outcome | None]) -> Iterator[Outcome]:
    """What is put into the queue, up to None.

    A signal that comes just before a wait does not interrupt it: Python runs the handler after it.
    So no wait is long.
    """
    while True:
        try:
            outcome = outcomes.get(timeout=0.5)
        except Empty:
            continue
        if outcome is None:
            return
        yield outcome


async def _abandon() -> None:
    """Cancel all other tasks until they have ended.

    A task may miss a cancellation that comes together with a time-out.
    """
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.2)


async def _next(images: Iterator[Encoded]) -> Encoded | None:
    """The next image; None after the last.

    A daemon thread waits for it, so that a camera that gives no more images does not delay the end.
    """
    future: Future[Encoded | None] = Future()
    future.set_running_or_notify_cancel()

    def draw() -> None:
        try:
            image = next(images, None)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(image)

    threading.Thread(target=draw, name="images", daemon=True).start()
    return await asyncio.wrap_future(future)


class _Delivery:
    """The state of one deliver().

    It belongs to one event loop. Only the spool's work and `images` run in other threads.
    """

    def __init__(
        self, spool: Spool, endpoint: Endpoint, client: httpx.AsyncClient, proxy: Proxy | None
    ):
        self.spool, self.endpoint, self.client, self.proxy = spool, endpoint, client, proxy
        self.url = endpoint.post_url()
        self.outcomes: SimpleQueue[Outcome | None] = SimpleQueue()  # None ends them
        self.error: BaseException | None = None  # what deliver() raises at the end
        self.loop = asyncio.new_event_loop()
        self.told_to_end = asyncio.Event()
        self.waiting = deque(spool.pending())
        self.active = {entry.key for entry in self.waiting}  # waiting or being posted
        # Names of this run's images, by key, while the key has no result.
        self.named: dict[str, list[str]] = {}
        self.left: dict[str, str] = {}  # keys that are given up for this run, and why
        self.changed = asyncio.Condition()  # notified when any of these attributes changes
        self.ended = False  # no more images come
        self.stopped: BaseException | None = None  # why nothing more is posted
        # After a failure, all posts wait until `resumes`, a time of the loop's clock. Each wait has
        # a number: posts that began before the same wait and failed count as one failure.
        self.failures = self.wait_number = 0
        self.resumes = 0.0
        self.last_failure = ""
        # Answers in a row that are not of cloud-serve. After one, no more posts are under way at a
        # time than could stop the run.
        self.foreign = self.posting = 0
        self.foreign_error: ServerSetupError | None = None  # of the last such answer

    def run(self, images: Iterator[Encoded]) -> None:
        """Deliver everything; runs in a thread of its own."""
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._run(images))
                finally:
                    runner.run(_abandon())
        except BaseException as error:  # deliver() raises it
            self.error = self.error or error
        finally:
            self.outcomes.put(None)

    def end(self) -> None:
        """Stop, and leave the rest in the spool; may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.told_to_end.set)

    @property
    def away(self) -> bool:
        """Whether the server has failed too often in a row."""
        return self.failures >= self.endpoint.attempts

    async def _run(self, images: Iterator[Encoded]) -> None:
        async with self.client:
            work = asyncio.create_task(self._work(images))
            told = asyncio.create_task(self.told_to_end.wait())
            await asyncio.wait((work, told), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        if error := self.stopped or self.foreign_error:
            raise error

    async def _work(self, images: Iterator[Encoded]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(images))
            for _ in range(self.endpoint.in_flight):
                group.create_task(self._post_all())
        for key, names in self.named.items():
            error = self.left.get(key) or (self.last_failure if self.away else str(self.stopped))
            for name in names:
                self.outcomes.put(Outcome(name, "spooled", key, error=error))

    async def _take(self, images: Iterator[Encoded]) -> None:
        """Accept images into the spool until there are no more."""
        try:
            while (image := await _next(images)) is not None:
                if image.error is None:
                    await self._accept(image.image, image.data)
                else:
                    self.outcomes.put(Outcome(image.image, "failed", error=image.error))
        except Exception as error:  # of `images`; what is in the spool is delivered all the same
            self.error = error
        finally:
            async with self.changed:
                self.ended = True
                self.changed.notify_all()

    async def _accept(self, image: str, data: bytes) -> None:
        async with self.changed:
            # Posts that succeed make room. When none can, accept() refuses the image.
            await self.changed.wait_for(
                lambda: self.spool.fits(image, data) or self.away or self.stopped or not self.active
            )
        try:
            entry = await asyncio.to_thread(self.spool.accept, image, data)
        except SpoolError as error:
            self.outcomes.put(Outcome(image, "failed", error=str(error)))
            return
        async with self.changed:
            # Meanwhile the same feature file may have been posted, and its result recorded.
            result = self.spool.result(entry.key) if isinstance(entry, Entry) else entry
            if isinstance(entry, Entry) and result is None:
                self.named.setdefault(entry.key, []).append(image)
                if entry.key not in self.active and entry.key not in self.left:
                    self.active.add(entry.key)
                    self.waiting.append(entry)
                    self.changed.notify_all()
                return
        assert result is not None
        self.outcomes.put(recorded(image, result))

    async def _post_all(self) -> None:
        """Post waiting files, one at a time, until there are no more."""
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self.waiting or self.ended or self.stopped)
                if self.stopped or not self.waiting:
                    return
                entry = self.waiting.popleft()
            try:
                await self._deliver(entry)
            except SpoolError as error:
                await self._stop(error)

    async def _deliver(self, entry: Entry) -> None:
        """Post one file until it has a result, its attempts are used up, or posting stops.

        Raises SpoolDiskError.
        """
        try:
            image, data = await asyncio.to_thread(self.spool.read, entry)
        except DamagedSpoolFileError as error:
            details = {"code": "damaged_in_spool", "message": str(error)}
            await self._finish(entry, Answer("refused", str(error), details), "?", 0)
            return
        except SpoolDiskError as error:
            # Other files may be readable.
            await self._leave(entry, str(error), "?")
            return
        failures = 0
        while failures < self.endpoint.attempts:
            if not await self._may_post():
                return
            number = self.wait_number
            answer = await self._post(entry.key, data)
            await self._count(answer)
            if answer.kind in ("delivered", "refused"):
                await self._finish(entry, answer, image, len(data))
                return
            if answer.kind == "stop":
                await self._stop(ServerSetupError(answer.message))
                return
            if answer.kind == "foreign":
                await self._leave(entry, answer.message, image)
                return
            failures += answer.kind == "failed"
            await self._back_off(number, answer)
        await self._leave(entry, answer.message, image)

    async def _count(self, answer: Answer) -> None:
        """Count a post that is over."""
        async with self.changed:
            self.posting -= 1
            if answer.kind in ("delivered", "refused"):
                self.failures = self.foreign = 0
            elif answer.kind == "foreign":
                self.foreign += 1
                self.foreign_error = ServerSetupError(answer.message)
            self.changed.notify_all()

    async def _leave(self, entry: Entry, why: str, image: str) -> None:
        """Give a file up for this run."""
        async with self.changed:
            self.left[entry.key] = why
            self.active.discard(entry.key)
            self.changed.notify_all()
        if entry.key not in self.named:  # it is of an earlier run
            self.outcomes.put(Outcome(image, "spooled", entry.key, error=why))

    async def _finish(self, entry: Entry, answer: Answer, image: str, size: int) -> None:
        """Record a file's result."""
        status = DELIVERED if answer.kind == "delivered" else REFUSED
        result = await asyncio.to_thread(
            self.spool.finish, entry, status, image=image, bytes=size, **answer.details
        )
        async with self.changed:
            self.active.discard(entry.key)
            names = self.named.pop(entry.key, None)
            self.changed.notify_all()
        for name in [image] if names is None else names:  # None if it is of an earlier run
            self.outcomes.put(recorded(name, result))

    async def _stop(self, error: EdgeCloudError) -> None:
        async with self.changed:
            self.stopped = self.stopped or error
            self.changed.notify_all()

    async def _may_post(self) -> bool:
        """Wait until a post is allowed, and count it; False if there will be no more posts."""
        clock = asyncio.get_running_loop().time
        async with self.changed:
            while not self.stopped:
                wait = self.resumes - clock()
                crowded = self.foreign and self.foreign + self.posting >= _MAX_FOREIGN
                if self.ended and (self.away or wait > _PATIENCE):
                    self.stopped = ServerAwayError(
                        f"no result from {self.url}: {self.last_failure}; "
                        "what is in the spool waits for the next run"
                    )
                elif self.foreign >= _MAX_FOREIGN:
                    self.stopped = self.foreign_error
                elif wait <= 0 and not crowded:
                    self.posting += 1
                    return True
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait if wait > 0 else None):
                            await self.changed.wait()
            self.changed.notify_all()
            return False

    async def _back_off(self, number: int, answer: Answer) -> None:
        """Let all posts wait after a failure; `number` is the last wait before the failed post."""
        async with self.changed:
            now = asyncio.get_running_loop().time()
            if number == self.wait_number:
                self.wait_number += 1
                self.failures += 1
                self.last_failure = answer.message
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self.failures - 1, 16))
                self.resumes = max(self.resumes, now + wait * random.uniform(0.5, 1))
            # Never before the server allows it; a little after, at random, so that not all devices
            # come back at once.
            self.resumes = max(self.resumes, now + answer.wait * random.uniform(1, 1.2))
            self.changed.notify_all()

    async def _post(self, key: str, data: bytes) -> Answer:
        answer = await self._request(key, data)
        if answer.message and self.proxy and str(self.proxy) not in answer.message:
            answer = answer._replace(message=f"{answer.message} (through {self.proxy})")
        return answer

    async def _request(self, key: str, data: bytes) -> Answer:
        body = bytearray()
        headers = {"Idempotency-Key": key, "User-Agent": f"edge-send/{__version__}"}
        try:
            async with (
                asyncio.timeout(self.endpoint.timeout),
                self.client.stream("POST", self.url, content=data, headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        said = f"the answer has more than {_MAX_ANSWER} bytes"
                        return Answer("failed", f"{said}, which no answer of cloud-serve has")
        except TimeoutError:
            return Answer("failed", f"no answer within {self.endpoint.timeout:g} seconds")
        except (httpx.HTTPError, OSError) as error:  # httpx does not wrap all errors of TLS
            return explain(error, self.endpoint, self.proxy)
        return judge(response, bytes(body), data, self.endpoint)
