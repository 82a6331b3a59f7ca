"""The connections of the HTTP front: how many there may be, and which one is closed for a new one.

uvicorn accepts every connection, but each is an open file, and the system allows a process only so
many of them.

Always holds: there are at most `limit` connections. At the limit, a new one replaces the one that
has waited longest for its client; connections with a request at work are never closed for others.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1 << 16  # whatever the system allows
_MIN_CONNECTIONS = 4  # however few files there are
_SPARE_FILES = 24  # for bundles and tokens that are read again, metrics, and what libraries open
_ACCEPTED_AT_ONCE = 64  # connections, before other work on the event loop gets its turn
_RETRY_SECONDS = 0.2  # after the system had no file for a connection


def allowed_connections(current: int = 0) -> int:
    """How many connections the system has files for.

    Raises the process's limit of open files first, as far as the system allows: the default may be
    as low as 1024.

    Args:
        current: connections that are open now.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft
    others = len(list(Path("/dev/fd").iterdir())) - current
    return max(_MIN_CONNECTIONS, min(MAX_CONNECTIONS, files - others - _SPARE_FILES))


class State(IntEnum):
    """What a connection does. Connections with a lower state are closed first for a new one."""

    IDLE = 0  # no request, or only part of its head
    RECEIVING = 1  # a request whose body is incomplete
    WORKING = 2  # a complete request, until its answer is sent
    CLOSING = 3


class Connection(Protocol):
    """What `Connections` needs of an asyncio protocol, besides being one."""

    transport: asyncio.Transport


class Connections:
    """The connections of a server. Accepts new ones, and closes old ones to make place for them.

    Args:
        limit: of connections. May be changed.
        listener: a socket that listens.
        make: makes the protocol of a new connection, which calls `join`, `move` and `leave`.
    """

    def __init__(self, limit: int, listener: socket.socket, make: Callable[[], asyncio.Protocol]):
        self.limit = limit
        self.count = 0
        self._listener, self._make = listener, make
        # The connections in each state, in the order in which they came to it.
        self._by_state: dict[State, dict[Connection, None]] = {state: {} for state in State}
        self._open = False
        self._paused = True
        self._starting: set[asyncio.Task[None]] = set()  # the loop itself keeps no tasks alive

    def open(self) -> None:
        """Accept connections."""
        self._listener.setblocking(False)
        self._open = True
        self._resume()

    def close(self) -> None:
        """Accept no more."""
        self._pause()
        self._open = False

    def join(self, connection: Connection) -> None:
        """A connection has begun."""
        self._by_state[State.IDLE][connection] = None
        self._resume()

    def move(self, connection: Connection, state: State) -> None:
        """A connection has changed its state. One that is closing stays so."""
        for old, members in self._by_state.items():
            if connection in members and old not in (state, State.CLOSING):
                del members[connection]
                self._by_state[state][connection] = None
                if state < State.WORKING:
                    self._resume()
                return

    def number_in(self, state: State) -> int:
        """How many connections are in a state."""
        return len(self._by_state[state])

    def leave(self, connection: Connection) -> None:
        """A connection has ended."""
        for members in self._by_state.values():
            members.pop(connection, None)
        self._lose_one()

    def _lose_one(self) -> None:
        self.count -= 1
        self._resume()

    def _resume(self) -> None:
        if self._paused and self._open:
            self._paused = False
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            asyncio.get_running_loop().remove_reader(self._listener)

    def _accept(self) -> None:
        """Called by the loop while new connections wait."""
        loop = asyncio.get_running_loop()
        if self.count >= self.limit:
            self._close_oldest()
        for _ in range(min(_ACCEPTED_AT_ONCE, self.limit - self.count)):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file is left for this process, or for the whole system
                log.error(
                    "no connection can be accepted for now (%s): allow more open files (ulimit -n)",
                    error.strerror,
                )
                self._close_oldest()
                self._pause()
                loop.call_later(_RETRY_SECONDS, self._resume)
                return
            self.count += 1
            task = loop.create_task(self._start(accepted))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, accepted: socket.socket) -> None:
        protocol = self._make()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, accepted)
        except OSError:  # it ended before it began
            accepted.close()
            if getattr(protocol, "transport", None) is None:  # `leave` will not be called
                self._lose_one()

    def _close_oldest(self) -> None:
        """Close the connection that has waited longest for its client.

        If all are at work, accept none until one is done.
        """
        if self._by_state[State.CLOSING]:
            return  # one has just been closed, and ends in a moment
        for state in (State.IDLE, State.RECEIVING):
            for connection in self._by_state[state]:
                log.warning(
                    "all %d possible connections are in use: those that wait longest are closed "
                    "for new ones; allow more open files (ulimit -n)",
                    self.limit,
                )
                self.move(connection, State.CLOSING)
                connection.transport.abort()
                return
        self._pause()
