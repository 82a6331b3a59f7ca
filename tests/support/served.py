"""The service on a real socket, in a thread of the test's process."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from runtime.service.app import create_app
from runtime.service.http_server import HttpServer, make_server
from runtime.service.settings import Settings


@contextmanager
def served(
    settings: Settings, limit: int = 1000, allow_origins: Sequence[str] = ()
) -> Iterator[tuple[HttpServer, tuple[str, int]]]:
    """The server, with so many connections at most, and its address. It ends with the context."""
    started = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    app = create_app(settings, allow_origins=allow_origins)
    server = make_server(app, listener, started.set, limit)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    assert started.wait(60)
    try:
        yield server, address
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
