"""What the HTTP front reads from a request: its body, parameters, and whether its client is there.

Always holds: every refusal is an error of errors.py; a body is read only after it is clear that
there is capacity for it, and never beyond its limit.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from ..errors import (
    BodyTooLargeError,
    ClientGoneError,
    FeatureFileError,
    MalformedRequestError,
    UnsupportedEncodingError,
)
from .core import Service
from .request import RequestContext

T = TypeVar("T")

_INLINE_BYTES = 64 << 10  # a larger body is parsed in a coder thread, not on the event loop
_FORM, _URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"


@dataclass(kw_only=True)
class HttpContext(RequestContext):
    """A request over HTTP.

    Attributes:
        body_begun: the application asked for the body, upon which a client that waits for
            "100 Continue" gets it.
        body_ended: all of the body has been read.
        answered: the head of the response has been sent.
    """

    body_begun: bool = False
    body_ended: bool = False
    answered: bool = False


def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


def context_of(request: Request) -> HttpContext:
    """The request's context, which the middleware made."""
    context: HttpContext = request.scope["context"]
    return context


def bearer_token(header: str | None) -> str | None:
    """The token in an Authorization header; None if there is none, or of another scheme."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def top_k(request: Request) -> int:
    """The parameter `top_k`. Raises MalformedRequestError."""
    text = request.query_params.get("top_k", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise MalformedRequestError(f"top_k is {text[:20]!r}, which is not a number from 1 up")
    return int(text)


async def read_body(request: Request, several: bool) -> bytes:
    """The body of a request that holds one feature file, or several.

    Raises StartingError, DrainingError, QueueFullError, UnsupportedEncodingError,
    MalformedRequestError, BodyTooLargeError, SlowBodyError, ClientGoneError.
    """
    service, context = service_of(request), context_of(request)
    service.require_capacity()
    limit = service.max_bytes(several)
    _check_head(request, limit)
    chunks: list[bytes] = []
    start = perf_counter()
    async with service.receiving(context):
        while not context.body_ended:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client disconnected before its request was complete")
            chunk = message.get("body", b"")
            if context.received > limit:
                raise BodyTooLargeError(
                    f"the body has more than {limit} bytes: send fewer feature files"
                )
            service.hold(context, len(chunk))
            chunks.append(chunk)
    context.seconds["read"] = perf_counter() - start
    return b"".join(chunks)


def _check_head(request: Request, limit: int) -> None:
    """Refuse a body that its headers show to be unusable.

    Raises UnsupportedEncodingError, MalformedRequestError, BodyTooLargeError.
    """
    encodings = ",".join(request.headers.getlist("content-encoding")).lower().replace(" ", "")
    if not set(encodings.split(",")) <= {"", "identity"}:
        raise UnsupportedEncodingError(
            "the body is compressed: send it as it is, feature files cannot be made smaller"
        )
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise MalformedRequestError(f"Content-Length is {declared[:20]!r}, not a number of bytes")
    if len(declared) > 12 or int(declared) > limit:
        raise BodyTooLargeError(
            f"the body has {declared[:20]} bytes, and at most {limit} are accepted: "
            "send fewer feature files"
        )


async def parse_body(request: Request, body: bytes, parse: Callable[[], T]) -> T:
    """What `parse` makes of the body; it runs in a coder thread where the body is large."""
    if len(body) <= _INLINE_BYTES:
        return parse()
    return await service_of(request).in_coder(parse)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects.

    Raises ClientGoneError, and what `work` raises.
    """
    working = asyncio.ensure_future(work)
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = working.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await working
    except asyncio.CancelledError:
        if gone:
            raise ClientGoneError("the client disconnected before it was answered") from None
        raise
    finally:
        watching.cancel()


@contextmanager
def explaining_forms(request: Request, body: bytes | None = None) -> Iterator[None]:
    """Adds advice to the refusal of a body that was sent as a form.

    `curl -F` wraps a file in a form. `curl -d @FILE` drops line ends and zeros, and has the same
    content type as `curl --data-binary @FILE`, which drops nothing: only `body` without any such
    byte has lost them.
    """
    try:
        yield
    except (FeatureFileError, MalformedRequestError) as error:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        stripped = kind == _URLENCODED and body is not None and not re.search(rb"[\0\r\n]", body)
        if not stripped and kind != _FORM:
            raise
        advice = (
            f"it came as a form ({kind}), send the file as the raw body: curl --data-binary @FILE"
        )
        raise type(error)(f"{error}; {advice}") from None
