"""The service: feature files in over HTTP, classes out. docs/SERVING.md is its manual, `cloud-serve` its command.

    app = create_app(Settings(bundles=("bundles/ours_n4",)))   # any ASGI server runs it

    request -> token, room -> body -> coder, in threads -> batcher -> cloud graph -> answer
               401, 429, 503  408, 413  400, 404            504        500

The application starts and stops with its ASGI lifespan. `app.state.service` has what a command
connects to signals: `reload`, and `drain`.

Always holds: whatever is not answered is refused with a status and a code of refusals.py; a refusal
for lack of room comes before any work; nothing that takes long runs on the event loop; the memory that requests
take is bounded, whoever sends them.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..cloud import CloudDecoder
from ..codec import feature_file
from ..codec.bundle import default_bundle
from ..engine.processor import cores
from ..errors import (
    BodyTooLargeError,
    ClientGoneError,
    DrainingError,
    EdgeCloudError,
    FeatureFileError,
    MalformedRequestError,
    QueueFullError,
    SlowBodyError,
    StartingError,
    TokenFileError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedEncodingError,
    UnsupportedSharedMemoryError,
)
from ..refusals import INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, code_of, status_of
from . import oip
from .batcher import Answer, Batcher
from .metrics import CONTENT_TYPE, Metrics
from .models import Model, Models, load_models
from .openapi import document, page

log = logging.getLogger(__name__)
requests_log = logging.getLogger(f"{__name__}.requests")

T = TypeVar("T")

_INLINE_BYTES = (
    64 << 10
)  # a body up to here is taken apart on the event loop; a larger one in a coder thread
_BATCH_BYTES = 4 << 20  # of the body of several feature files, if one of them may not have more
_DISCARD_BYTES, _DISCARD_SECONDS = (
    1 << 20,
    1.0,
)  # of a refused body, so that its sender reads the refusal
_ROOM = 0.8  # of the deadline: who would have to wait longer is refused at once, rather than at the deadline
_MIN_TOKEN = 16
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_OPEN_PATHS = {"/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"}


@dataclass(frozen=True)
class Settings:
    """What a service is made of. Times are in milliseconds where the name says so, else in seconds."""

    bundles: tuple[
        str | Path, ...
    ] = ()  # bundles, and folders of bundles; none: $EDGECLOUD_BUNDLE, else bundles/ours_n4
    token_file: str | Path | None = None  # a token a line; one of them must come with a request
    threads: int | None = None  # of the cloud graph; None for one a core
    provider: str = "auto"
    precision: str = "auto"
    max_batch: int = 8  # images of one graph call
    max_wait_ms: float = 2.0  # when idle, the graph waits so long for more requests
    max_queue: int = 128  # images that are admitted and not yet answered
    deadline_ms: float = 2000.0  # from admission to the graph call
    max_files: int = 64  # feature files of one request
    body_seconds: float = 10.0  # for a request's body to come
    drain_seconds: float = 10.0  # for requests that were admitted, when the service stops
    max_buffer_bytes: int = 256 << 20  # bodies of all requests together


@dataclass
class Visit:
    """One request, for its log line and its metrics."""

    id: str
    path: str
    start: float = field(default_factory=perf_counter)
    status: int = 0
    code: str | None = None
    model: str | None = None
    images: int = 0
    received: int = 0
    sent: int = 0
    buffered: int = 0
    body_begun: bool = False  # it was asked for; a client that waits for "100 Continue" got it then
    body_ended: bool = False
    answered: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


class Service:
    """Models, queue and metrics behind the application."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.models: Models | None = None
        self.loading = False  # which a thread does
        self.draining = False
        self.buffered = 0
        self._tokens: list[bytes] | None = None
        self._lock = asyncio.Lock()  # of loading
        self._reading: set[asyncio.Timeout] = set()  # of bodies that are still coming
        self.batcher: Batcher
        self.metrics = Metrics(
            lambda: self.batcher.admitted, lambda: self.batcher.seconds_per_image
        )

    def load(self) -> None:
        """Read the tokens and load all bundles, which takes seconds. Any thread may call this.

        What is served stays as it is if anything is wrong.
        Raises TokenFileError, ServedBundlesError, EngineChoiceError, the BundleErrors, OSError.
        """
        settings = self.settings
        self.loading = True
        try:
            tokens = _read_tokens(settings.token_file) if settings.token_file is not None else None
            folders = [Path(folder) for folder in settings.bundles or (default_bundle(),)]
            models = load_models(
                folders,
                self.models,
                lambda folder: CloudDecoder(
                    folder, settings.threads, settings.provider, settings.precision
                ),
            )
            # Tokens first: from the moment that there are models, requests are answered.
            self._tokens = tokens
            self.models = models
        finally:
            self.loading = False

    async def start(self) -> None:
        """On the event loop that the application runs on. From here on requests are answered, or refused as `starting`."""
        settings = self.settings
        self.batcher = Batcher(
            settings.max_batch,
            settings.max_wait_ms / 1e3,
            settings.max_queue,
            _ROOM * settings.deadline_ms / 1e3,
            on_batch=self.metrics.batch,
        )
        # The coder takes a hundredth of the graph's time: few threads keep up, and leave it the cores.
        self._coder = ThreadPoolExecutor(max(1, min(4, cores() // 4)), "coder")

    async def open(self) -> None:
        """Load, unless that is done, and serve. Raises what `load` does."""
        async with self._lock:
            if self.models is None:
                await _in_thread(self.load)
        self.batcher.seconds_per_image = max(
            model.seconds_per_image for model in self.served.by_name.values()
        )

    async def stop(self) -> None:
        """Refuse what comes, answer what was admitted, and end the threads."""
        self.drain()
        await self.drained()
        self._coder.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.batcher.close)

    async def reload(self) -> bool:
        """Serve what the folders and the token file hold now. Requests under way keep the models that they have.

        Gives False, and logs why, where something is wrong with it: then all stays as it was. So it does once the service drains.
        """
        async with self._lock:
            if self.draining:
                return False
            before = self.models
            try:
                await _in_thread(self.load)
            except (EdgeCloudError, OSError) as error:
                log.error("not reloaded, all stays as it was: %s", error)
                return False
            for model in self.served.by_name.values():
                if before is None or before.by_name.get(model.name) is not model:
                    log.info(
                        "%s is loaded: fingerprint %s, %s",
                        model.name,
                        model.fingerprint,
                        model.decoder.engine.choice,
                    )
            log.info("reloaded: %s", ", ".join(self.served.by_name))
            return True

    @property
    def ready(self) -> bool:
        """Whether feature files are taken."""
        return self.models is not None and not self.draining

    def drain(self) -> None:
        """Refuse what comes from now on, and what has not wholly come. What was admitted is answered."""
        self.draining = True
        now = asyncio.get_running_loop().time()
        for patience in self._reading:
            if not patience.expired():
                patience.reschedule(now)

    @asynccontextmanager
    async def patience(self, seconds: float) -> AsyncIterator[None]:
        """For a body to come. Ends with TimeoutError after so many seconds, or at once when the service drains."""
        async with asyncio.timeout(seconds) as patience:
            self._reading.add(patience)
            try:
                yield
            finally:
                self._reading.discard(patience)

    async def drained(self) -> bool:
        """Until all that was admitted is answered, for `drain_seconds` at most; False if something is left."""
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

    @property
    def served(self) -> Models:
        """Raises StartingError."""
        if self.models is None:
            raise StartingError("the service loads its bundles: ask again in 1 s")
        return self.models

    def authorize(self, header: str | None) -> None:
        """Raises UnauthorizedError unless the header holds one of the tokens, or none is asked for.

        Raises StartingError before the tokens are read.
        """
        _ = self.served
        if self._tokens is None:
            return
        scheme, _, token = (header or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        # All are compared, and in constant time: how long it takes says nothing of any.
        found = [hmac.compare_digest(digest, known) for known in self._tokens]
        if scheme.lower() != "bearer" or not any(found):
            raise UnauthorizedError(
                "the request has no right token: send `Authorization: Bearer TOKEN`"
            )

    def require_room(self) -> None:
        """Raises DrainingError, QueueFullError."""
        if self.draining:
            raise DrainingError("the service is about to stop: ask another, or again in a while")
        self.batcher.require_room()

    def body_limit(self, several: bool) -> int:
        """Bytes that a body may have. Feature files may have what the largest of the served bundles allows."""
        one = self.served.max_file_bytes
        return max(one + 4, _BATCH_BYTES) if several else one

    async def in_coder(self, work: Callable[[], T]) -> T:
        """Run in a coder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._coder, work)


async def _in_thread(work: Callable[[], None]) -> None:
    """Like asyncio.to_thread, but the process can end without waiting for the thread: a bundle takes seconds to load."""
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
        except BaseException as error:  # is raised where this is awaited
            failed = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, failed)

    threading.Thread(target=run, name="load", daemon=True).start()
    await done


Outcome = tuple[Model, Answer] | EdgeCloudError


async def _classify(
    request: Request, files: Sequence[bytes], only: Model | None = None
) -> list[Outcome]:
    """Answer each feature file, or say why not; in their order. `only`: the model that they have to be of."""
    service: Service = request.app.state.service
    visit: Visit = request.scope["visit"]
    loop, models = asyncio.get_running_loop(), service.served
    with service.batcher.admit(len(files)):
        deadline = loop.time() + service.settings.deadline_ms / 1e3
        start = perf_counter()
        decoded = await service.in_coder(lambda: [_decode(models, file, only) for file in files])
        visit.seconds["coder"] = perf_counter() - start
        futures = [
            service.batcher.submit(*entry, deadline)
            for entry in decoded
            if not isinstance(entry, EdgeCloudError)
        ]
        answers = iter(await _until_gone(request.receive, futures))
    outcomes: list[Outcome] = []
    for entry in decoded:
        if isinstance(entry, EdgeCloudError):
            outcomes.append(entry)
            continue
        model, answer = entry[0], next(answers)
        if isinstance(answer, EdgeCloudError):
            outcomes.append(answer)
            continue
        outcomes.append((model, answer))
        visit.seconds["queue"] = max(visit.seconds.get("queue", 0), answer.queue)
        visit.seconds["graph"] = max(visit.seconds.get("graph", 0), answer.graph)
        visit.model, visit.images = model.name, visit.images + 1
        service.metrics.images.labels(model.name).inc()
    return outcomes


def _decode(
    models: Models, data: bytes, only: Model | None
) -> tuple[Model, NDArray[np.int16]] | EdgeCloudError:
    try:
        file = feature_file.parse(data)
        model = only or models.of(file)
        return model, model.decoder.bundle.decode_parsed(file)
    except EdgeCloudError as error:
        return error


async def _until_gone(
    receive: Receive, futures: "list[asyncio.Future[Answer]]"
) -> list[Answer | EdgeCloudError]:
    """Answers or refusals, in order; a client that goes gives up its places. Raises ClientGoneError."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for future in futures:
            future.cancel()

    watch = asyncio.ensure_future(gone())
    try:
        results = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        watch.cancel()
    found: list[Answer | EdgeCloudError] = []
    for result in results:
        if isinstance(result, asyncio.CancelledError):
            raise ClientGoneError("the client went before it was answered")
        if not isinstance(result, Answer | EdgeCloudError):
            raise result
        found.append(result)
    return found


async def classify(request: Request) -> Response:
    """POST /v1/classify: one feature file."""
    top_k = _top_k(request)
    data = await _read_body(request, several=False)
    (outcome,) = await _classify(request, [data])
    if isinstance(outcome, EdgeCloudError):
        with _telling_forms(request, data):
            raise outcome
    return JSONResponse(_result(request, outcome, top_k, len(data)))


async def classify_batch(request: Request) -> Response:
    """POST /v1/classify/batch: several, each after its length; each is answered or refused by itself."""
    service: Service = request.app.state.service
    top_k, most = _top_k(request), _max_files(service)
    body = await _read_body(request, several=True)
    with _telling_forms(request, body):
        files = await _take_apart(service, body, lambda: oip.elements(memoryview(body), most))
    if not files:
        raise MalformedRequestError(
            "the request holds no feature file: send each after its length, a 32-bit little-endian number"
        )
    answers = []
    for data, outcome in zip(files, await _classify(request, files), strict=True):
        if isinstance(outcome, EdgeCloudError):
            status, content, _ = _refusal(service, outcome)
            service.metrics.refusals.labels(content["code"]).inc()
            answers.append({"status": status, **content})
        else:
            answers.append({"status": 200, **_result(request, outcome, top_k, len(data))})
    return JSONResponse({"answers": answers})


def _result(
    request: Request, outcome: tuple[Model, Answer], top_k: int, size: int
) -> dict[str, Any]:
    model, answer = outcome
    visit: Visit = request.scope["visit"]
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "bytes": size,
        "classes": [
            prediction._asdict() for prediction in model.decoder.predictions(answer.logits, top_k)
        ],
        "milliseconds": _milliseconds(
            {"coder": visit.seconds["coder"], "queue": answer.queue, "graph": answer.graph}
        ),
    }


async def infer(request: Request) -> Response:
    """POST /v2/models/NAME/infer."""
    service: Service = request.app.state.service
    model, most = service.served.named(request.path_params["name"]), _max_files(service)
    body = await _read_body(request, several=True)
    header = request.headers.get(oip.HEADER_LENGTH)
    with _telling_forms(request):
        asked = await _take_apart(service, body, lambda: oip.parse(body, header, most))
    outcomes = await _classify(request, asked.files, model)
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, EdgeCloudError):
            raise outcome
        rows.append(outcome[1].logits)
    content, json_bytes = oip.render(asked, model.name, model.decoder.labels, np.stack(rows))
    if json_bytes is None:
        return Response(content, media_type="application/json")
    return Response(
        content, media_type="application/octet-stream", headers={oip.HEADER_LENGTH: str(json_bytes)}
    )


async def list_models(request: Request) -> Response:
    """GET /v2/models: all that are served."""
    return JSONResponse({"models": request.app.state.service.served.describe()})


async def model_metadata(request: Request) -> Response:
    """GET /v2/models/NAME."""
    model = request.app.state.service.served.named(request.path_params["name"])
    return JSONResponse(
        oip.metadata(model.name, len(model.decoder.labels), str(model.decoder.engine.choice))
    )


async def model_ready(request: Request) -> Response:
    """GET /v2/models/NAME/ready."""
    service: Service = request.app.state.service
    model = service.served.named(request.path_params["name"])
    return JSONResponse({"name": model.name, "ready": service.ready}, 200 if service.ready else 503)


async def server_metadata(_: Request) -> Response:
    """GET /v2."""
    return JSONResponse(
        {"name": "edgecloud-features", "version": __version__, "extensions": oip.EXTENSIONS}
    )


async def live(_: Request) -> Response:
    """GET /v2/health/live: the event loop runs."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """GET /v2/health/ready: feature files are taken."""
    service: Service = request.app.state.service
    return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(
        request.app.state.service.metrics.render(), headers={"Content-Type": CONTENT_TYPE}
    )


async def openapi(_: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(document())


async def docs(_: Request) -> Response:
    """GET /docs: a page that fetches nothing."""
    return HTMLResponse(page())


ROUTES = [
    Route("/v1/classify", classify, methods=["POST"]),
    Route("/v1/classify/batch", classify_batch, methods=["POST"]),
    Route("/v2", server_metadata),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    Route("/v2/models", list_models),
    Route("/v2/models/{name}", model_metadata),
    Route("/v2/models/{name}/ready", model_ready),
    Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    Route("/metrics", metrics),
    Route("/openapi.json", openapi),
    Route("/docs", docs),
]
_PATHS: dict[Any, str] = {route.endpoint: route.path for route in ROUTES}


def _top_k(request: Request) -> int:
    text = request.query_params.get("top_k", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise MalformedRequestError(f"top_k is {text[:20]!r}, which is not a number from 1 up")
    return int(text)


def _max_files(service: Service) -> int:
    return min(service.settings.max_files, service.settings.max_queue)


async def _take_apart(service: Service, body: bytes, work: Callable[[], T]) -> T:
    return work() if len(body) <= _INLINE_BYTES else await service.in_coder(work)


@contextmanager
def _telling_forms(request: Request, body: bytes | None = None) -> Iterator[None]:
    """If the refused body was sent as a form, the refusal says so. `curl -F` wraps a file in a form. `curl -d @FILE`
    drops line ends and zeros. `curl --data-binary` has the same content type as the latter, and drops nothing.
    """
    try:
        yield
    except (FeatureFileError, MalformedRequestError) as error:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        stripped = (
            kind == "application/x-www-form-urlencoded"
            and body is not None
            and not re.search(rb"[\0\r\n]", body)
        )
        if not stripped and kind != "multipart/form-data":
            raise
        advice = (
            f"it came as a form ({kind}), send the file as the raw body: curl --data-binary @FILE"
        )
        raise type(error)(f"{error}; {advice}") from None


async def _read_body(request: Request, several: bool) -> bytes:
    """The body, if there is room for what it asks.

    Raises DrainingError, QueueFullError, UnsupportedEncodingError, MalformedRequestError, BodyTooLargeError, SlowBodyError,
    ClientGoneError.
    """
    service: Service = request.app.state.service
    visit: Visit = request.scope["visit"]
    service.require_room()
    codings = (
        ",".join(request.headers.getlist("content-encoding")).lower().replace(" ", "").split(",")
    )
    if not set(codings) <= {"", "identity"}:
        raise UnsupportedEncodingError(
            "the body is compressed: send it as it is, feature files cannot be made smaller"
        )
    limit = service.body_limit(several)
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise MalformedRequestError(f"Content-Length is {declared[:20]!r}, not a number of bytes")
    if len(declared) > 12 or int(declared) > limit:
        raise BodyTooLargeError(
            f"the body has {declared[:20]} bytes, {limit} are taken: send fewer feature files"
        )
    chunks: list[bytes] = []
    start = perf_counter()
    try:
        async with service.patience(service.settings.body_seconds):
            while not visit.body_ended:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError("the client went before its request was whole")
                chunk = message.get("body", b"")
                visit.buffered += len(chunk)
                service.buffered += len(chunk)
                if visit.received > limit:
                    raise BodyTooLargeError(
                        f"the body has more than {limit} bytes: send fewer feature files"
                    )
                if service.buffered > service.settings.max_buffer_bytes:
                    raise QueueFullError(
                        f"requests of {service.buffered} bytes are waiting: ask again in 1 s", 1
                    )
                chunks.append(chunk)
    except TimeoutError:
        if service.draining:
            raise DrainingError(
                "the service stopped before the request was whole: ask another, or again in a while"
            ) from None
        raise SlowBodyError(
            f"{visit.received} bytes of the body came in {service.settings.body_seconds:g} s, and not its end: send it again, faster"
        ) from None
    visit.seconds["read"] = perf_counter() - start
    return b"".join(chunks)


def _refusal(service: Service, error: EdgeCloudError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, content and headers."""
    headers: dict[str, str] = {}
    content: dict[str, Any] = {"code": code_of(type(error)), "error": str(error)}
    if isinstance(error, UnknownModelError):
        content["known"] = service.served.describe()
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.seconds)
    if isinstance(error, StartingError):
        headers["Retry-After"] = "1"
    if isinstance(error, DrainingError):
        headers |= {"Retry-After": "1", "Connection": "close"}
    if isinstance(error, UnsupportedEncodingError):
        headers["Accept-Encoding"] = "identity"
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return status_of(error), content, headers


def _read_tokens(path: str | Path) -> list[bytes]:
    """SHA-256 of each token. What is wrong is told by the line's number: its text is a secret."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise TokenFileError(f"{path} is not ASCII text: write a token a line") from None
    except OSError as error:
        raise TokenFileError(
            f"{path} cannot be read ({error.strerror}): name the tokens' file with --token-file"
        ) from None
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        token = line.strip()
        if not token:
            continue
        if token.startswith("#"):
            wrong = "begins with #: there are no comments in it, remove the line"
        elif not token.isascii() or not token.isprintable() or " " in token:
            wrong = "has more than ASCII letters, digits and signs: write a token a line, and nothing else"
        elif len(token) < _MIN_TOKEN:
            wrong = f"has {len(token)} characters, a token has {_MIN_TOKEN} or more: make one with `openssl rand -hex 32`"
        else:
            tokens.append(hashlib.sha256(token.encode()).digest())
            continue
        raise TokenFileError(f"{path}, line {number}, {wrong}")
    if not tokens:
        raise TokenFileError(f"{path} holds no token: make one with `openssl rand -hex 32`")
    return tokens


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(1e3 * value, 3) for stage, value in seconds.items()}


class Gate:
    """Around all paths: tokens, refusals, the log line, and metrics."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {
            name: value
            for name, value in scope["headers"]
            if name in (b"x-request-id", b"authorization", b"expect")
        }
        named = headers.get(b"x-request-id", b"").decode("latin-1")
        visit = Visit(
            named if _REQUEST_ID.fullmatch(named) else secrets.token_hex(8), scope["path"]
        )
        scope["visit"] = visit

        async def counted_receive() -> Message:
            visit.body_begun = True
            message = await receive()
            if message["type"] == "http.request":
                visit.received += len(message.get("body", b""))
                visit.body_ended = not message.get("more_body", False)
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status, visit.answered = message["status"], True
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", visit.id.encode()),
                ]
            else:
                visit.sent += len(message.get("body", b""))
            await send(message)

        try:
            if scope["path"].removeprefix(scope.get("root_path", "")) not in _OPEN_PATHS:
                self.service.authorize(
                    headers[b"authorization"].decode("latin-1")
                    if b"authorization" in headers
                    else None
                )
            await self.app(scope, counted_receive, counted_send)
        except ClientGoneError as error:
            visit.status, visit.code = (
                status_of(error),
                code_of(type(error)),
            )  # nobody is there to be told
        except (Exception, asyncio.CancelledError) as error:
            if visit.answered or (
                isinstance(error, asyncio.CancelledError) and not self.service.draining
            ):
                raise
            response = self._refuse(visit, scope, error)
            # Closing with unread data can discard our response; a client awaiting "100 Continue" has sent no body.
            if not visit.body_ended and (visit.body_begun or b"expect" not in headers):
                await _discard(visit, counted_receive)
            if not visit.body_ended:
                response.headers["Connection"] = "close"
            await response(scope, counted_receive, counted_send)
        finally:
            self.service.buffered -= visit.buffered
            self._report(visit, scope)

    def _refuse(self, visit: Visit, scope: Scope, error: BaseException) -> JSONResponse:
        """What the client is told of an error."""
        headers: Mapping[str, str] | None = None
        if isinstance(
            error, asyncio.CancelledError
        ):  # by a server that has drained for as long as it may
            error = DrainingError("the service stopped before its answer was ready: send it again")
        if isinstance(error, EdgeCloudError):
            status, content, headers = _refusal(self.service, error)
        elif isinstance(error, HTTPException):
            status, headers = error.status_code, error.headers
            code = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(status, INTERNAL)
            content = {
                "code": code,
                "error": f"{scope['method']} {scope['path'][:200]}: {error.detail}; see /docs",
            }
        else:
            log.error("request %s failed", visit.id, exc_info=error)
            status, content = (
                500,
                {
                    "code": INTERNAL,
                    "error": f"the service failed: its log says more of request {visit.id}",
                },
            )
        visit.code = content["code"]
        return JSONResponse(content, status, headers)

    def _report(self, visit: Visit, scope: Scope) -> None:
        metrics = self.service.metrics
        path = _PATHS.get(scope.get("endpoint"), "other")
        visit.seconds["total"] = perf_counter() - visit.start
        metrics.requests.labels(path, str(visit.status)).inc()
        metrics.received.inc(visit.received)
        metrics.sent.inc(visit.sent)
        if visit.code:
            metrics.refusals.labels(visit.code).inc()
        if visit.images:
            for stage, seconds in visit.seconds.items():
                metrics.stages.labels(stage).observe(seconds)
        level = (
            logging.ERROR
            if visit.status in (0, 500)
            else logging.WARNING
            if visit.status >= 400
            else logging.INFO
        )
        if requests_log.isEnabledFor(level):
            line: dict[str, Any] = {
                "id": visit.id,
                "method": scope["method"],
                "path": visit.path[:200],
                "status": visit.status,
            }
            if visit.code:
                line["code"] = visit.code
            if visit.model:
                line |= {"model": visit.model, "images": visit.images}
            line |= {
                "received": visit.received,
                "sent": visit.sent,
                "milliseconds": _milliseconds(visit.seconds),
            }
            requests_log.log(
                level,
                "%s %s: %d",
                line["method"],
                line["path"],
                line["status"],
                extra={"request": line},
            )


async def _discard(visit: Visit, receive: Receive) -> None:
    """Read on for a moment, and forget it."""
    most = visit.received + _DISCARD_BYTES
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while not visit.body_ended and visit.received <= most:
                if (await receive())["type"] == "http.disconnect":
                    return
    except (
        TimeoutError,
        asyncio.CancelledError,
    ):  # a server that stops cancels its requests, which are still to be answered
        pass


def create_app(settings: Settings, load: bool = True) -> Starlette:
    """The service as an ASGI application, which loads its bundles when its lifespan begins, unless
    `app.state.service.load()` has been called. Without `load`, it refuses requests as `starting`
    until `app.state.service.open()` has loaded them. Raises nothing; what is wrong with the settings
    or the bundles is raised by `load` and `open`.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            if load:
                await service.open()
            yield
        finally:
            await service.stop()

    async def refuse_path(request: Request, error: Exception) -> Response:
        if request.url.path.startswith(("/v2/systemsharedmemory", "/v2/cudasharedmemory")):
            error = UnsupportedSharedMemoryError(oip.NO_SHARED_MEMORY)
        raise error  # to the gate, which is around

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Gate, service=service)],
        exception_handlers={HTTPException: refuse_path},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app
