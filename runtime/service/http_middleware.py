"""The middleware around all endpoints: tokens, responses to errors, and the end of a request.

Always holds: every request is finished in the core, answered or not; at most one response is sent.
"""

import asyncio
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ClientGoneError
from ..refusals import code_of, http_status
from .core import Service
from .http_endpoints import PATHS
from .http_page import page_paths
from .http_refusal import error_response
from .http_request import HttpContext, bearer_token
from .openapi import open_paths

# How much of a refused body is still read, and for how long, so that its sender gets the refusal.
_DISCARD_BYTES, _DISCARD_SECONDS = 1 << 20, 1.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HEADERS = (b"x-request-id", b"authorization", b"expect")


class RequestMiddleware:
    """ASGI middleware. Endpoints find its HttpContext in the scope, as `context`."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service
        self._open_paths = open_paths() | page_paths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {
            name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS
        }
        named = headers.get(b"x-request-id", "")
        context = HttpContext(
            method=scope["method"],
            path=scope["path"],
            id=named if _REQUEST_ID.fullmatch(named) else secrets.token_hex(8),
        )
        scope["context"] = context
        receive, send = _count_received(context, receive), _count_sent(context, send)
        try:
            if scope["path"].removeprefix(scope.get("root_path", "")) not in self._open_paths:
                self._service.authorize(bearer_token(headers.get(b"authorization")))
            await self._app(scope, receive, send)
        except ClientGoneError as error:  # there is no client to send a response to
            context.status, context.code = http_status(error), code_of(type(error))
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            if context.answered or (cancelled and not self._service.draining):
                raise
            response = error_response(self._service, context, error)
            # Closing with unread data can discard our response; a client awaiting "100 Continue"
            # has sent no body.
            if not context.body_ended and (context.body_begun or b"expect" not in headers):
                await _discard_body(context, receive)
            if not context.body_ended:
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
        finally:
            context.endpoint = PATHS.get(scope.get("endpoint"), "other")
            self._service.finish(context)


def _count_received(context: HttpContext, receive: Receive) -> Receive:
    async def counted() -> Message:
        context.body_begun = True
        message = await receive()
        if message["type"] == "http.request":
            context.received += len(message.get("body", b""))
            context.body_ended = not message.get("more_body", False)
        return message

    return counted


def _count_sent(context: HttpContext, send: Send) -> Send:
    """Also adds the request's id to the response's headers."""

    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            context.status, context.answered = message["status"], True
            request_id = (b"x-request-id", context.id.encode())
            message["headers"] = [*message.get("headers", ()), request_id]
        else:
            context.sent += len(message.get("body", b""))
        await send(message)

    return counted


async def _discard_body(context: HttpContext, receive: Receive) -> None:
    """Read more of the body for a moment, and drop it."""
    limit = context.received + _DISCARD_BYTES
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while not context.body_ended and context.received <= limit:
                if (await receive())["type"] == "http.disconnect":
                    return
    except (TimeoutError, asyncio.CancelledError):
        pass  # a server that stops cancels its requests, which are to be answered all the same
