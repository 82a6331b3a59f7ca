"""uvicorn with time limits and size limits, as a service on the open network needs them.

uvicorn waits for ever for a request's head, and for a client to read its answer. (The core limits
the time for a body.)

Always holds: a connection is closed if the head of a request does not arrive in time, or an answer
is not read in time; a head of more than HEAD_BYTES is refused, however it is split over packets;
the number of connections is limited (http_connections.py).
"""

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import HeadTooLargeError
from ..refusals import code_of
from .http_connections import MAX_CONNECTIONS, Connections, State

HEAD_BYTES = 16 << 10  # of a request line and its headers
HEAD_SECONDS = 10.0  # from the connection to the first request's whole head
# From an answer to the next request's first byte; the rest of its head has HEAD_SECONDS more.
IDLE_SECONDS = 75
WRITE_SECONDS = 10.0  # for a client to read what does not fit into the socket's buffer
_CLOSE_SECONDS = 2  # for connections to end, after all admitted requests have been answered
_LINGER_SECONDS = 1.0  # for a refused client to read its answer, while it still sends
_HOST = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class _Parser(h11.Connection):
    """h11, which by itself limits only heads that arrive in parts.

    A target `http://host/path` is read as `/path`.
    """

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is not h11.IDLE:
            return super().next_event()
        before = len(self.trailing_data[0])
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        if before - len(self.trailing_data[0]) > HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        names = [name for name, _ in event.headers]
        # A proxy in front may have used the other of the two lengths.
        if b"content-length" in names and b"transfer-encoding" in names:
            raise h11.RemoteProtocolError("the body has two lengths")
        if host := _HOST.match(event.target):
            event = h11.Request(
                method=event.method,
                target=b"/" + event.target[host.end() :].removeprefix(b"/"),
                headers=event.headers.raw_items(),
                http_version=event.http_version,
            )
        return event


class LimitedProtocol(H11Protocol):
    """One connection, with its time limits."""

    def __init__(self, server: "HttpServer"):
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self.conn = _Parser(h11.SERVER, HEAD_BYTES)
        self._connections = server.connections
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refused = False  # what still arrives is dropped

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_state(self) -> None:
        if not self._answering():
            state = State.IDLE
        else:
            state = State.RECEIVING if self.cycle.more_body else State.WORKING
        self._connections.move(self, state)

    def _await_head(self, seconds: float) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(seconds, self._abort_if_idle)

    def _abort_if_idle(self) -> None:
        if not self._answering():
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head(HEAD_SECONDS)
        self._connections.join(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._head_timer and self._answering():
            self._head_timer.cancel()
            self._head_timer = None
        self._note_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering():  # otherwise the client has already sent another request
            self._await_head(IDLE_SECONDS + HEAD_SECONDS)
        self._note_state()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles h11's error, which has the status.

        Reads on for a moment, so that the client gets the answer.
        """
        if self.cycle is not None:  # the error is in the body of a request under way
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
            self.transport.close()
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        content, kind = msg.encode(), b"text/plain; charset=utf-8"
        if status == 431:
            error = (
                f"the request line and headers have more than {HEAD_BYTES} bytes: send less of them"
            )
            refusal = JSONResponse({"code": code_of(HeadTooLargeError), "error": error})
            content, kind = bytes(refusal.body), b"application/json"
        reason = HTTPStatus(status).phrase.encode()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer to HEAD has no content
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _unsupported_upgrade_warning(self) -> None:
        """No warning: a request that offers another protocol is answered over HTTP/1.1."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        self._connections.leave(self)


class HttpServer(uvicorn.Server):
    """uvicorn on a socket that already listens. Signals are left to the command.

    Args:
        config: uvicorn's.
        listener: the socket; closed when the server ends.
        on_start: called when connections are accepted.
        limit: of connections.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        on_start: Callable[[], None],
        limit: int,
    ):
        super().__init__(config)
        self._listener, self._on_start = listener, on_start
        self.connections = Connections(limit, listener, lambda: LimitedProtocol(self))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self.connections.open()
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.connections.close()
        await super().shutdown([self._listener])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(
    app: Starlette,
    listener: socket.socket,
    on_start: Callable[[], None],
    limit: int = MAX_CONNECTIONS,
) -> HttpServer:
    """A server of the application, which runs with `await server.serve()`.

    Args:
        app: of `create_app`.
        listener: a socket that already listens; closed when the server ends.
        on_start: called when connections are accepted.
        limit: of connections.
    """
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    return HttpServer(config, listener, on_start, limit)
