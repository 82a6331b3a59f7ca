"""uvicorn, with the patience and the room that a service on the open network can afford.

uvicorn waits for ever for a request's head, and for a client to read its answer; a body's end is
awaited by app.py. It takes as many connections as come, though each is an open file, of which the
system allows a process some number.

Always holds: a connection on which neither a request's head comes, nor an answer goes, in time is closed;
there are at most `most` connections, and a new one replaces the one that has waited longest for its client;
a head of more than HEAD_BYTES is refused, however it is split over writes.
"""

import asyncio
import contextlib
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import HeadTooLargeError
from ..refusals import code_of

log = logging.getLogger(__name__)

HEAD_BYTES = 16 << 10  # of a request line and its headers
HEAD_SECONDS = 10.0  # from the connection to the first request's whole head
IDLE_SECONDS = 75  # from an answer to the next request's first byte; and HEAD_SECONDS more for the rest of its head
WRITE_SECONDS = 10.0  # for a client to read what does not fit into the socket's buffer
_CLOSE_SECONDS = 2  # for connections to end, after all that was admitted has been answered
_LINGER_SECONDS = 1.0  # in which a client that is cut off may read why, while it still sends
_AT_ONCE = 64  # connections that are taken before others get their turn
_RETRY_SECONDS = 0.2  # after the system had no file for a connection
_MOST = 1 << 16  # connections, whatever the system allows
_SPARE_FILES = 24  # for bundles and tokens that are read again, metrics, and what libraries open
_LEAST = 4  # connections, however few files there are
_HOST = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


def allowed_connections(now: int = 0) -> int:
    """How many connections the system has files for, of which there are some `now`. Asks it for as many as it may have.

    Some systems allow a process 1024 open files unless it asks for more.
    """
    try:
        import resource
    except ImportError:  # Windows, which bounds no process so
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = _MOST if soft == resource.RLIM_INFINITY else soft
    others = len(list(Path("/dev/fd").iterdir())) - now
    return max(_LEAST, min(_MOST, files - others - _SPARE_FILES))


class Stage(IntEnum):
    """What a connection does. The lower its stage, the sooner it is closed for a new one."""

    IDLE = 0  # no request, or not the whole of its head
    RECEIVING = 1  # a request whose body has not wholly come
    WORKING = 2  # a request that came, until its answer is sent
    CLOSING = 3


class Crowd:
    """The connections of a server. Accepts new ones, and closes old ones to make room."""

    def __init__(self, most: int, listener: socket.socket, make: Callable[[], "PatientProtocol"]):
        self.most, self._listener, self._make = most, listener, make
        self._loop = asyncio.get_running_loop()
        self.count = 0
        # Each stage's connections, in the order in which they came to it.
        self._stages: dict[Stage, dict[PatientProtocol, None]] = {stage: {} for stage in Stage}
        self._open = False
        self._paused = True
        self._coming: set[asyncio.Task[None]] = set()  # the loop keeps no tasks alive by itself

    def open(self) -> None:
        """Take connections."""
        self._listener.setblocking(False)
        self._open = True
        self._resume()

    def close(self) -> None:
        """Take no more."""
        self._pause()
        self._open = False

    def join(self, connection: "PatientProtocol") -> None:
        """A connection has begun."""
        self._stages[Stage.IDLE][connection] = None
        self._resume()

    def move(self, connection: "PatientProtocol", stage: Stage) -> None:
        """Note what a connection does now."""
        for members in self._stages.values():
            if (
                members is not self._stages[stage]
                and connection in members
                and members is not self._stages[Stage.CLOSING]
            ):
                del members[connection]
                self._stages[stage][connection] = None
                if stage < Stage.WORKING:
                    self._resume()
                return

    def leave(self, connection: "PatientProtocol") -> None:
        """A connection has ended."""
        for members in self._stages.values():
            members.pop(connection, None)
        self._lose_one()

    def _lose_one(self) -> None:
        self.count -= 1
        self._resume()

    def _resume(self) -> None:
        if self._paused and self._open:
            self._paused = False
            self._loop.add_reader(self._listener, self._accept)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        """Called while there are new ones."""
        if self.count >= self.most:
            self._make_room()
        for _ in range(min(_AT_ONCE, self.most - self.count)):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except (
                OSError
            ) as error:  # the system, or all its processes together, have no file for it
                log.error(
                    "no connection can be taken for now (%s): allow more open files (ulimit -n)",
                    error.strerror,
                )
                self._make_room()
                self._pause()
                self._loop.call_later(_RETRY_SECONDS, self._resume)
                return
            self.count += 1
            task = self._loop.create_task(self._begin(connection))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def _begin(self, connection: socket.socket) -> None:
        protocol = self._make()
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it ended before it began
            connection.close()
            if protocol.transport is None:
                self._lose_one()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client. If all are at work, accept none until one is done."""
        if self._stages[Stage.CLOSING]:
            return  # one has just been ended, and is gone in a moment
        for stage in (Stage.IDLE, Stage.RECEIVING):
            for connection in self._stages[stage]:
                log.warning(
                    "all %d connections that there may be are taken: those that wait longest are closed for new ones; "
                    "allow more open files (ulimit -n)",
                    self.most,
                )
                self.move(connection, Stage.CLOSING)
                connection.transport.abort()
                return
        self._pause()


class _Connection(h11.Connection):
    """h11, which bounds only heads that are incomplete, with a bound for all. `GET http://host/path` is taken as `GET /path`."""

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
        if (
            b"content-length" in names and b"transfer-encoding" in names
        ):  # a proxy may see another end of the body
            raise h11.RemoteProtocolError("two lengths of one body")
        if host := _HOST.match(event.target):
            target, headers = (
                b"/" + event.target[host.end() :].removeprefix(b"/"),
                event.headers.raw_items(),
            )
            event = h11.Request(
                method=event.method, target=target, headers=headers, http_version=event.http_version
            )
        return event


class PatientProtocol(H11Protocol):
    """A connection with its patience."""

    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None
    _deaf = False  # what comes is read and forgotten

    def __init__(self, server: "Server"):
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self.conn = _Connection(h11.SERVER, HEAD_BYTES)
        self._crowd = server.crowd

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_stage(self) -> None:
        if not self._answering():
            stage = Stage.IDLE
        else:
            stage = Stage.RECEIVING if self.cycle.more_body else Stage.WORKING
        self._crowd.move(self, stage)

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
        self._crowd.join(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        super().data_received(data)
        if self._head and self._answering():
            self._head.cancel()
            self._head = None
        self._note_stage()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering():  # and no request that was sent behind the last one is under way
            self._await_head(IDLE_SECONDS + HEAD_SECONDS)
        self._note_stage()

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled, which has the status. Reads on for a moment, so that the client gets the answer."""
        if self.cycle is not None:  # of a body that goes wrong
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
        self._deaf = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _unsupported_upgrade_warning(self) -> None:
        """No warning: a request that offers to change to another protocol is answered in this one."""

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
        self._crowd.leave(self)


class Server(uvicorn.Server):
    """A server on a socket that listens already. It says when it takes connections, and leaves signals to the command."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], most: int):
        super().__init__(config)
        self._on_start, self._most = on_start, most
        self.crowd: Crowd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        assert len(sockets) == 1
        await super().startup([])
        self.crowd = Crowd(self._most, sockets[0], lambda: PatientProtocol(self))
        self.crowd.open()
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.crowd.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Starlette, on_start: Callable[[], None], most: int = _MOST) -> Server:
    """A uvicorn server of the application, which tells `on_start` when it takes connections; `most` at a time."""
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
        ),
        on_start,
        most,
    )
