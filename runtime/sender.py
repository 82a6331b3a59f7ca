"""Delivers feature files to a cloud-serve: new ones through a spool, and what the spool still holds, oldest first.

    with Spool("spool") as spool:
        for outcome in deliver(spool, Server("https://cloud.example"), [Encoded("photo.jpg", data)]):
            print(outcome)

A feature file is accepted when it is on the disk, then posted under its key (the Idempotency-Key header), then its
result is recorded, and only then it leaves the disk. So it is delivered at least once, and has one result.

Always holds: an answer counts only if it is one of cloud-serve's; the token goes to the URL that was named and
follows no redirect; an answer's size and time are bounded; nothing is retried for ever, and nothing dropped.
"""

import asyncio
import contextlib
import email.utils
import json
import random
import ssl
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from . import __version__
from .errors import (
    CertificateFileError,
    DamagedSpoolFileError,
    EdgeCloudError,
    MissingExtraError,
    ServerAwayError,
    ServerSetupError,
    ServerUrlError,
    SpoolDiskError,
    SpoolError,
)
from .spool import DELIVERED, REFUSED, Entry, Spool

try:
    import httpx
except ImportError as error:
    raise MissingExtraError(f"edge-send needs httpx ({error}): pip install 'edgecloud-features[send]'") from error

_MAX_ANSWER = 1 << 20  # bytes; a thousand classes are a tenth of it
_MAX_TEXT = 500  # letters of a label or a message that are kept
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds after one failure, after many
_PATIENCE = 120.0  # seconds that a server may ask to wait for, with nothing else to do
# What answers say, by status. Any other than these and 200 says that the set-up is wrong, but for a 404 of this code.
_UNKNOWN_MODEL = "unknown_model"  # no bundle of the file's fingerprint is served
_BUSY = {408, 425, 429, 502, 503, 504}
_REFUSALS = {400, 413, 415, 422}


class Encoded(NamedTuple):
    """An image's feature file, or why it has none."""

    image: str
    data: bytes = b""
    error: str | None = None


class Outcome(NamedTuple):
    """What became of an image.

    `status` is "delivered", "refused", "failed" (no feature file, or the spool could not take it), or "spooled" (still in the
    spool); `result` is the recorded result of the first two; `error` says why of the others and of "refused".
    """

    image: str
    status: Literal["delivered", "refused", "failed", "spooled"]
    key: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Server:
    """Where to post, and how.

    Args:
        url: of a cloud-serve, http or https; a path before /v1 is kept.
        token: sent as `Authorization: Bearer`.
        ca_file: certificates to trust instead of the system's.
        timeout: seconds for one post, from the connection to the answer's last byte.
        attempts: failures of a file, or of the server in a row, after which it is left for another run.
        in_flight: posts at a time, each on a connection that is kept.
        top_k: classes asked for.
    """

    url: str
    token: str | None = None
    ca_file: str | None = None
    timeout: float = 30.0
    attempts: int = 6
    in_flight: int = 4
    top_k: int = 5

    def endpoint(self) -> httpx.URL:
        """Raises ServerUrlError."""
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ServerUrlError(f"{self.url!r} is not a URL ({error}): name one like https://cloud.example:8000") from error
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise ServerUrlError(f"{self.url!r} is not a URL of http or https: name one like https://cloud.example:8000")
        if url.userinfo or url.query or url.fragment:
            raise ServerUrlError("the URL has a password, a query or a fragment: leave it out, and pass a token with --token-file")
        return url.copy_with(path=f"{url.path.rstrip('/')}/v1/classify", params={"top_k": self.top_k})

    def hides_token(self) -> bool:
        """Whether nobody on the way can read what is posted."""
        url = self.endpoint()
        return url.scheme == "https" or url.host in ("localhost", "::1") or url.host.startswith("127.")

    def trust(self) -> ssl.SSLContext:
        """Raises CertificateFileError."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise CertificateFileError(f"{self.ca_file} holds no certificates that can be read: {error}") from error


def deliver(spool: Spool, server: Server, images: Iterable[Encoded] = ()) -> Iterator[Outcome]:
    """Accept `images` into the spool, and post everything in it until it is empty or nothing more can be done.

    `images` is drawn from a thread of its own, ahead of the posts as far as the spool has room. An outcome comes for every
    one of them, in the order in which they are known, and for every file that was in the spool before and has a result now.
    While there are images to come a server that is away is tried again and again, and the spool fills; after them,
    `server.attempts` times.

    Raises ServerUrlError, CertificateFileError at once; after the last outcome, with the rest in the spool, ServerAwayError
    where the server gave no answer in the end, ServerSetupError where its answer says that it will take no file as things
    are (a wrong token, a wrong URL, a redirect, a certificate that is not trusted), SpoolDiskError where a result could not be recorded.
    """
    delivery = _Delivery(spool, server, server.endpoint(), server.trust())
    with asyncio.Runner() as runner:
        try:
            runner.run(delivery.start(iter(images)))
            while (outcome := runner.run(delivery.outcomes.get())) is not None:
                yield outcome
            runner.run(delivery.end())
        finally:
            runner.run(_abandon())


async def _abandon() -> None:
    """Cancel whatever still runs until it has ended: once may not do, where a cancellation comes together with a time-out."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.2)


class _Answer(NamedTuple):
    """What one post came to: a result; a failure, of the file perhaps ("failed") or not ("busy"); or that no post can succeed ("stop")."""

    kind: Literal["delivered", "refused", "failed", "busy", "stop"]
    message: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    wait: float = 0.0  # seconds, as the server asks


class _Delivery:
    """The state of one deliver(). All of it belongs to one event loop; only the spool's work and `images` run in threads."""

    def __init__(self, spool: Spool, server: Server, endpoint: httpx.URL, trust: ssl.SSLContext):
        self.spool, self.server, self.endpoint, self.trust = spool, server, endpoint, trust
        self.outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self.waiting = deque(spool.pending())
        self.active = {entry.key for entry in self.waiting}  # waiting or being posted
        self.named: dict[str, list[str]] = {}  # the images given in this run whose key has no result yet
        self.left: dict[str, str] = {}  # keys that are given up for this run, and why
        self.changed = asyncio.Condition()  # of what is above and below
        self.ended = False  # no more images come
        self.stopped: EdgeCloudError | None = None  # why nothing more is posted
        # The gate: nobody posts before `opens`. Failures of posts that began before it last closed count once.
        self.failures = self.round = 0
        self.opens = 0.0
        self.last_failure = ""

    async def start(self, images: Iterator[Encoded]) -> None:
        self.task = asyncio.create_task(self._run(images))

    async def end(self) -> None:
        await self.task
        if self.stopped:
            raise self.stopped

    @property
    def away(self) -> bool:
        return self.failures >= self.server.attempts

    async def _run(self, images: Iterator[Encoded]) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer's size is bounded as it comes
            "User-Agent": f"edge-send/{__version__}",
        }
        if self.server.token is not None:
            headers["Authorization"] = f"Bearer {self.server.token}"
        count, seconds = self.server.in_flight, self.server.timeout
        try:
            async with (
                httpx.AsyncClient(
                    headers=headers,
                    verify=self.trust,
                    follow_redirects=False,
                    timeout=httpx.Timeout(seconds, connect=seconds / 2),
                    limits=httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=60),
                ) as client,
                asyncio.TaskGroup() as group,
            ):
                group.create_task(self._take(images))
                for _ in range(count):
                    group.create_task(self._post_all(client))
            for key, names in self.named.items():
                error = self.left.get(key) or (self.last_failure if self.away else str(self.stopped))
                for name in names:
                    self.outcomes.put_nowait(Outcome(name, "spooled", key, error=error))
        finally:
            self.outcomes.put_nowait(None)

    async def _take(self, images: Iterator[Encoded]) -> None:
        try:
            while (image := await asyncio.to_thread(next, images, None)) is not None:
                if image.error is None:
                    await self._accept(image.image, image.data)
                else:
                    self.outcomes.put_nowait(Outcome(image.image, "failed", error=image.error))
        finally:
            async with self.changed:
                self.ended = True
                self.changed.notify_all()

    async def _accept(self, image: str, data: bytes) -> None:
        async with self.changed:
            # While posts succeed, room comes; else accept() refuses.
            await self.changed.wait_for(lambda: self.spool.fits(image, data) or self.away or self.stopped or not self.active)
        try:
            entry = await asyncio.to_thread(self.spool.accept, image, data)
        except SpoolError as error:
            self.outcomes.put_nowait(Outcome(image, "failed", error=str(error)))
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
        self.outcomes.put_nowait(_outcome(image, result))

    async def _post_all(self, client: httpx.AsyncClient) -> None:
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self.waiting or self.ended or self.stopped)
                if self.stopped or not self.waiting:
                    return
                entry = self.waiting.popleft()
            try:
                await self._deliver(client, entry)
            except SpoolError as error:
                await self._stop(error)

    async def _deliver(self, client: httpx.AsyncClient, entry: Entry) -> None:
        """Post one file until it has a result, or its attempts are used up, or nothing more is posted. Raises SpoolDiskError."""
        try:
            image, data = await asyncio.to_thread(self.spool.read, entry)
        except DamagedSpoolFileError as error:
            await self._finish(entry, _Answer("refused", str(error), {"code": "damaged_in_spool", "message": str(error)}), "?", 0)
            return
        except SpoolDiskError as error:
            # Others may be readable.
            await self._leave(entry, str(error))
            return
        failures = 0
        while failures < self.server.attempts:
            if not await self._gate():
                return
            number = self.round
            answer = await self._post(client, entry.key, data)
            if answer.kind in ("delivered", "refused"):
                self.failures = 0
                await self._finish(entry, answer, image, len(data))
                return
            if answer.kind == "stop":
                await self._stop(ServerSetupError(answer.message))
                return
            failures += answer.kind == "failed"
            await self._close_gate(number, answer)
        await self._leave(entry, answer.message)

    async def _leave(self, entry: Entry, why: str) -> None:
        async with self.changed:
            self.left[entry.key] = why
            self.active.discard(entry.key)
            self.changed.notify_all()

    async def _finish(self, entry: Entry, answer: _Answer, image: str, size: int) -> None:
        status = DELIVERED if answer.kind == "delivered" else REFUSED
        result = await asyncio.to_thread(self.spool.finish, entry, status, image=image, bytes=size, **answer.details)
        async with self.changed:
            self.active.discard(entry.key)
            names = self.named.pop(entry.key, None)
            self.changed.notify_all()
        for name in [image] if names is None else names:  # none where an earlier run accepted it
            self.outcomes.put_nowait(_outcome(name, result))

    async def _stop(self, error: EdgeCloudError) -> None:
        async with self.changed:
            self.stopped = self.stopped or error
            self.changed.notify_all()

    async def _gate(self) -> bool:
        """Wait until posts are allowed; False when there will be none."""
        clock = asyncio.get_running_loop().time
        while True:
            wait = self.opens - clock()
            if self.ended and (self.away or wait > _PATIENCE):
                await self._stop(
                    ServerAwayError(f"no result from {self.endpoint}: {self.last_failure}; what is in the spool waits for the next run")
                )
            if self.stopped or wait <= 0:
                return not self.stopped
            async with self.changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self.changed.wait()

    async def _close_gate(self, number: int, answer: _Answer) -> None:
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

    async def _post(self, client: httpx.AsyncClient, key: str, data: bytes) -> _Answer:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self.server.timeout),
                client.stream("POST", self.endpoint, content=data, headers={"Idempotency-Key": key}) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        return _Answer("failed", f"the answer has more than {_MAX_ANSWER} bytes, none of cloud-serve's has")
        except TimeoutError:
            return _Answer("failed", f"no answer within {self.server.timeout:g} seconds")
        except httpx.HTTPError as error:
            if certificate := _certificate_error(error):
                return _Answer(
                    "stop", f"the certificate of {self.endpoint.host} is not trusted ({certificate}): name its issuer's with --ca-file"
                )
            unreached = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
            return _Answer("busy" if unreached else "failed", f"{type(error).__name__}: {error}")
        return _judge(response, bytes(body), self.server.top_k)


def _judge(response: httpx.Response, body: bytes, top_k: int) -> _Answer:
    """What an answer says. Only cloud-serve's own words decide about a file for good."""
    status = response.status_code
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    content = content if isinstance(content, dict) else {}
    if status == 200:
        if classes := _classes(content.get("classes"), top_k):
            return _Answer("delivered", details={"http": status, "classes": classes})
        return _Answer("failed", f"the answer is not one of cloud-serve's: {body[:80]!r}")
    code, message = (_printable(value) if isinstance(value := content.get(name), str) else None for name in ("code", "error"))
    said = f"HTTP {status}" + (f", {code}: {message}" if code else "")
    if status in _BUSY:
        return _Answer("busy", said, wait=_retry_after(response.headers.get("Retry-After", "")))
    if status >= 500:
        return _Answer("failed", said)
    if status in _REFUSALS or code == _UNKNOWN_MODEL:
        return _Answer("refused", said, {"http": status, "code": code, "message": message})
    remedy = {401: "name the right token's file with --token-file", 403: "name the right token's file with --token-file"}.get(
        status, "name a cloud-serve's address with --url"
    )
    if response.is_redirect:
        said += f" to {response.headers.get('Location', '')[:200]!r}, which is not followed"
    return _Answer("stop", f"{said}: {remedy}")


def _classes(value: Any, top_k: int) -> list[dict[str, Any]] | None:
    """The classes of an answer, best first; None where they are not as cloud-serve writes them."""
    if not isinstance(value, list):
        return None
    classes = []
    for entry in value[:top_k]:
        if not isinstance(entry, dict):
            return None
        label, probability, index = (entry.get(name) for name in ("label", "probability", "class_index"))
        if not (isinstance(label, str) and isinstance(probability, (int, float)) and 0 <= probability <= 1 and isinstance(index, int)):
            return None
        classes.append({"label": _printable(label), "probability": probability, "class_index": index})
    return classes


def _printable(text: str) -> str:
    """What may be written to a terminal, of a text that came over the network."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_TEXT])


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After, which is a number or a date; 0 where it is neither."""
    if text.isdecimal():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _certificate_error(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _outcome(image: str, result: dict[str, Any]) -> Outcome:
    error = None
    if result["status"] == REFUSED:
        error = result.get("message") or f"HTTP {result.get('http')}"
    return Outcome(image, result["status"], result["key"], result, error)
