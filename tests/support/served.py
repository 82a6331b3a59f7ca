"""The service on a real socket, in a thread of the test's process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.service import http as serve_http
from runtime.service.app import Settings, create_app


@contextmanager
def served(
    settings: Settings, most: int = 1000
) -> Iterator[tuple[serve_http.Server, tuple[str, int]]]:
    """The server, of so many connections at most, and the address where it listens; ended at the end."""
    started = threading.Event()
    server = serve_http.make_server(create_app(settings), started.set, most)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    assert started.wait(60)
    try:
        yield server, listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
