"""Delivers feature files to a cloud-serve: new ones through a spool, and what the spool still holds, oldest first.

    with Spool("spool") as spool:
        for outcome in deliver(spool, Server("https://cloud.example"), [Encoded("photo.jpg", data)]):
            print(outcome)

A feature file is accepted when it is on the disk, then posted under its key (the Idempotency-Key header), then its
result is recorded, and only then it leaves the disk. So it is delivered at least once, and has one result.

Always holds: an answer counts only if it is one of cloud-serve's; the token goes to the URL that was named and
follows no redirect; an answer's size and time are bounded; nothing is retried for ever, and nothing dropped; whoever takes
the outcomes, or gives the images, may be as slow as they like without holding up what is in the spool.
"""

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

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
from .route import Proxy, Server, httpx
from .spool import DELIVERED, REFUSED, Entry, Spool

__all__ = ["Encoded", "Outcome", "Server", "deliver"]

_MAX_ANSWER = 1 << 20  # bytes; a thousand classes are a tenth of it
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds after one failure, after many
_PATIENCE = 120.0  # seconds that a server may ask to wait for, with nothing else to do
_STRANGE = 4  # answers in a row that are not cloud-serve's, after which no more are asked for


def deliver(
    spool: Spool, server: Server, images: Iterable[Encoded] = ()
) -> Generator[Outcome, None, None]:
    """Accept `images` into the spool, and post everything in it until it is empty or nothing more can be done.

    `images` is drawn in other threads, ahead of the posts as far as the spool has room. An outcome comes for every one of
    them, in the order in which they are known, and for every file that was in the spool before and has a result now, or was
    tried and left. While there are images to come a server that is away is tried again and again, and the spool fills;
    after them, `server.attempts` times.

    Raises, after the last outcome and with the rest in the spool: ServerUrlError, ProxySettingError, CertificateFileError,
    with which nothing is posted; ServerAwayError where the server gave no answer in the end; ServerSetupError where it, or
    what stands before it, takes no file as things are (a wrong token, a wrong URL, a redirect, a certificate that is not
    trusted, a limit of a proxy); SpoolDiskError where a result could not be recorded; and what `images` raises.
    """
    try:
        client, proxy = server.client(), server.proxy()
    except SendError as error:
        yield from accept_all(spool, images, error)
        return
    delivery = _Delivery(spool, server, client, proxy)
    # A thread of its own: signals reach the caller's thread, and there they interrupt no step of asyncio's.
    thread = threading.Thread(
        target=delivery.run, args=(iter(images),), name="delivery", daemon=True
    )
    thread.start()
    try:
        while (outcome := delivery.outcomes.get()) is not None:
            yield outcome
    finally:
        delivery.end()
        thread.join()
    if delivery.error:
        raise delivery.error


async def _abandon() -> None:
    """Cancel whatever still runs until it has ended: once may not do, where a cancellation comes together with a time-out."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.2)


async def _next(images: Iterator[Encoded]) -> Encoded | None:
    """The next image, from a thread that nobody waits for in the end: a camera may never give it."""
    future: Future[Encoded | None] = Future()
    future.set_running_or_notify_cancel()

    def draw() -> None:
        try:
            image = next(images, None)
        except BaseException as error:  # for whoever waits
            future.set_exception(error)
        else:
            future.set_result(image)

    threading.Thread(target=draw, name="images", daemon=True).start()
    return await asyncio.wrap_future(future)


class _Delivery:
    """The state of one deliver(). All of it belongs to one event loop; only the spool's work and `images` run in other threads."""

    def __init__(
        self, spool: Spool, server: Server, client: httpx.AsyncClient, proxy: Proxy | None
    ):
        self.spool, self.server, self.client, self.proxy = spool, server, client, proxy
        self.endpoint = server.endpoint()
        self.outcomes: SimpleQueue[Outcome | None] = SimpleQueue()  # None is the last
        self.error: BaseException | None = None  # what is raised after that
        self.loop = asyncio.new_event_loop()
        self.told_to_end = asyncio.Event()
        self.waiting = deque(spool.pending())
        self.active = {entry.key for entry in self.waiting}  # waiting or being posted
        self.named: dict[
            str, list[str]
        ] = {}  # the images given in this run whose key has no result yet
        self.left: dict[str, str] = {}  # keys that are given up for this run, and why
        self.changed = asyncio.Condition()  # of what is above and below
        self.ended = False  # no more images come
        self.stopped: BaseException | None = None  # why nothing more is posted
        # The gate: nobody posts before `opens`. Failures of posts that began before it last closed count once.
        self.failures = self.round = 0
        self.opens = 0.0
        self.last_failure = ""
        # Answers in a row that are not cloud-serve's. With one, no more posts are under way than could end the run.
        self.strange = self.posting = 0
        self.strangest: ServerSetupError | None = None  # the last that left a file

    def run(self, images: Iterator[Encoded]) -> None:
        """All of it, in a thread of its own."""
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._run(images))
                finally:
                    runner.run(_abandon())
        except BaseException as error:  # raised where the outcomes are taken
            self.error = self.error or error
        finally:
            self.outcomes.put(None)

    def end(self) -> None:
        """Leave everything as it is; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self.told_to_end.set)

    @property
    def away(self) -> bool:
        return self.failures >= self.server.attempts

    async def _run(self, images: Iterator[Encoded]) -> None:
        async with self.client:
            work = asyncio.create_task(self._work(images))
            told = asyncio.create_task(self.told_to_end.wait())
            await asyncio.wait((work, told), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        if error := self.stopped or self.strangest:
            raise error

    async def _work(self, images: Iterator[Encoded]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(images))
            for _ in range(self.server.in_flight):
                group.create_task(self._post_all())
        for key, names in self.named.items():
            error = self.left.get(key) or (self.last_failure if self.away else str(self.stopped))
            for name in names:
                self.outcomes.put(Outcome(name, "spooled", key, error=error))

    async def _take(self, images: Iterator[Encoded]) -> None:
        try:
            while (image := await _next(images)) is not None:
                if image.error is None:
                    await self._accept(image.image, image.data)
                else:
                    self.outcomes.put(Outcome(image.image, "failed", error=image.error))
        except (
            Exception
        ) as error:  # of the caller's; what is in the spool is delivered all the same
            self.error = error
        finally:
            async with self.changed:
                self.ended = True
                self.changed.notify_all()

    async def _accept(self, image: str, data: bytes) -> None:
        async with self.changed:
            # While posts succeed, room comes; else accept() refuses.
            await self.changed.wait_for(
                lambda: self.spool.fits(image, data) or self.away or self.stopped or not self.active
            )
        try:
            entry = await asyncio.to_thread(self.spool.accept, image, data)
        except SpoolError as error:
            self.outcomes.put(Outcome(image, "failed", error=str(error)))
            return
        async with self.changed:
            # The same image may have been posted, and its result recorded, since.
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
        """Post one file until it has a result, or its attempts are used up, or nothing more is posted. Raises SpoolDiskError."""
        try:
            image, data = await asyncio.to_thread(self.spool.read, entry)
        except DamagedSpoolFileError as error:
            await self._finish(
                entry,
                Answer("refused", str(error), {"code": "damaged_in_spool", "message": str(error)}),
                "?",
                0,
            )
            return
        except SpoolDiskError as error:
            # Others may be readable.
            await self._leave(entry, str(error), "?")
            return
        failures = 0
        while failures < self.server.attempts:
            if not await self._gate():
                return
            number = self.round
            answer = await self._post(entry.key, data)
            await self._count(answer)
            if answer.kind in ("delivered", "refused"):
                await self._finish(entry, answer, image, len(data))
                return
            if answer.kind == "stop":
                await self._stop(ServerSetupError(answer.message))
                return
            if answer.kind == "strange":
                await self._leave(entry, answer.message, image)
                return
            failures += answer.kind == "failed"
            await self._close_gate(number, answer)
        await self._leave(entry, answer.message, image)

    async def _count(self, answer: Answer) -> None:
        """A post is over."""
        async with self.changed:
            self.posting -= 1
            if answer.kind in ("delivered", "refused"):
                self.failures = self.strange = 0
            elif answer.kind == "strange":
                self.strange += 1
                self.strangest = ServerSetupError(answer.message)
            self.changed.notify_all()

    async def _leave(self, entry: Entry, why: str, image: str) -> None:
        async with self.changed:
            self.left[entry.key] = why
            self.active.discard(entry.key)
            self.changed.notify_all()
        if entry.key not in self.named:  # an earlier run accepted it
            self.outcomes.put(Outcome(image, "spooled", entry.key, error=why))

    async def _finish(self, entry: Entry, answer: Answer, image: str, size: int) -> None:
        status = DELIVERED if answer.kind == "delivered" else REFUSED
        result = await asyncio.to_thread(
            self.spool.finish, entry, status, image=image, bytes=size, **answer.details
        )
        async with self.changed:
            self.active.discard(entry.key)
            names = self.named.pop(entry.key, None)
            self.changed.notify_all()
        for name in [image] if names is None else names:  # none where an earlier run accepted it
            self.outcomes.put(recorded(name, result))

    async def _stop(self, error: EdgeCloudError) -> None:
        async with self.changed:
            self.stopped = self.stopped or error
            self.changed.notify_all()

    async def _gate(self) -> bool:
        """Wait until a post is allowed, and count it; False when there will be none."""
        clock = asyncio.get_running_loop().time
        async with self.changed:
            while not self.stopped:
                wait = self.opens - clock()
                crowded = self.strange and self.strange + self.posting >= _STRANGE
                if self.ended and (self.away or wait > _PATIENCE):
                    said = f"no result from {self.endpoint}: {self.last_failure}; what is in the spool waits for the next run"
                    self.stopped = ServerAwayError(said)
                elif self.strange >= _STRANGE:
                    self.stopped = self.strangest
                elif wait <= 0 and not crowded:
                    self.posting += 1
                    return True
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait if wait > 0 else None):
                            await self.changed.wait()
            self.changed.notify_all()
            return False

    async def _close_gate(self, number: int, answer: Answer) -> None:
        async with self.changed:
            now = asyncio.get_running_loop().time()
            if number == self.round:
                self.round += 1
                self.failures += 1
                self.last_failure = answer.message
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self.failures - 1, 16))
                self.opens = max(self.opens, now + wait * random.uniform(0.5, 1))
            # Never before the server asks; a little after, so that not all devices come back at once.
            self.opens = max(self.opens, now + answer.wait * random.uniform(1, 1.2))
            self.changed.notify_all()

    async def _post(self, key: str, data: bytes) -> Answer:
        answer = await self._ask(key, data)
        if answer.message and self.proxy and str(self.proxy) not in answer.message:
            answer = answer._replace(message=f"{answer.message} (by way of {self.proxy})")
        return answer

    async def _ask(self, key: str, data: bytes) -> Answer:
        body = bytearray()
        headers = {"Idempotency-Key": key, "User-Agent": f"edge-send/{__version__}"}
        try:
            async with (
                asyncio.timeout(self.server.timeout),
                self.client.stream(
                    "POST", self.endpoint, content=data, headers=headers
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        return Answer(
                            "failed",
                            f"the answer has more than {_MAX_ANSWER} bytes, none of cloud-serve's has",
                        )
        except TimeoutError:
            return Answer("failed", f"no answer within {self.server.timeout:g} seconds")
        except (httpx.HTTPError, OSError) as error:  # some of TLS's come as they are
            return explain(error, self.server, self.proxy)
        return judge(response, bytes(body), data, self.server)
