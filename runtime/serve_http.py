"""uvicorn, with the patience that a service on the open network can afford.

uvicorn waits for ever for a request's head, and for a client to read its answer; a body's end is
awaited by server.py.

Always holds: a connection on which neither a request's head comes, nor an answer goes, in time is closed.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from the connection to the first request's whole head
IDLE_SECONDS = 75  # from an answer to the next request's first byte; and HEAD_SECONDS more for the rest of its head
WRITE_SECONDS = 10.0  # for a client to read what does not fit into the socket's buffer
_CLOSE_SECONDS = 2  # for connections to end, after all that was admitted has been answered


class PatientProtocol(H11Protocol):
    """A connection with its patience."""

    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self, seconds: float) -> None:
        if self._head:
            self._head.cancel()
        self._head = self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if not self._answering():
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head and self._answering():
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering():  # and no request that was sent behind the last one is under way
            self._await_head(IDLE_SECONDS + HEAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write:
            self._write.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._write):
            if timer:
                timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that says when it listens, and leaves signals to the command."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Starlette, on_start: Callable[[], None]) -> Server:
    """A uvicorn server of the application, which tells `on_start` when it listens."""
    return Server(
        uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
            backlog=1024,
        ),
        on_start,
    )
