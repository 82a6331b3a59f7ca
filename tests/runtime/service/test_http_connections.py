"""How many connections there may be, and which ones are closed for new ones."""

import asyncio
import errno
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from raw_http import LIMIT, connect, post, read_answer, seconds_until_closed
from served import served

from runtime import CloudDecoder
from runtime.service import http_connections
from runtime.service.http_connections import State
from runtime.service.http_server import HttpServer
from runtime.service.settings import Settings

MOST = 4


@pytest.fixture(scope="module")
def small_server(bundle: Path) -> Iterator[tuple[HttpServer, tuple[str, int]]]:
    """A service with MOST connections at most, and its address."""
    with served(Settings(bundles=(bundle,), threads=1, deadline_ms=60_000), MOST) as server:
        yield server


@pytest.fixture
def small(small_server: tuple[HttpServer, tuple[str, int]]) -> tuple[str, int]:
    """The address of a service with MOST connections at most."""
    return small_server[1]


def test_idle_connections_are_closed_for_new_ones_oldest_first(small: tuple[str, int]) -> None:
    silent = [connect(small) for _ in range(MOST)]
    for _ in range(MOST):
        asked = connect(small, b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(asked)[0] == 200
        silent.append(asked)
        assert seconds_until_closed(silent.pop(0)) < LIMIT / 2
    for connection in silent:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(connection)[0] == 200
        connection.close()


def test_many_more_connections_than_the_limit(small: tuple[str, int], feature_bytes: bytes) -> None:
    connections = [
        connect(small, b"" if number % 2 else post(b"\xfc", length=400))
        for number in range(50 * MOST)
    ]
    client = connect(small, post(feature_bytes))
    assert read_answer(client)[0] == 200
    for connection in (client, *connections):
        connection.close()


def test_a_connection_with_a_request_at_work_is_not_closed_for_a_new_one(
    small_server: tuple[HttpServer, tuple[str, int]],
    feature_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new connection waits until one of them is done."""
    server, small = small_server
    run, release = CloudDecoder.logits_of_symbols, threading.Event()

    def held(self: CloudDecoder, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        assert release.wait(LIMIT)
        return run(self, symbols)

    monkeypatch.setattr(CloudDecoder, "logits_of_symbols", held)
    working = [connect(small, post(feature_bytes)) for _ in range(MOST)]
    end = time.monotonic() + LIMIT
    while server.connections.number_in(State.WORKING) < MOST:  # all four have been read
        assert time.monotonic() < end
        time.sleep(0.01)
    late = connect(small, b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
    late.settimeout(0.3)
    with pytest.raises(TimeoutError):
        late.recv(1)
    release.set()
    late.settimeout(LIMIT)
    assert [read_answer(connection)[0] for connection in (*working, late)] == [200] * (MOST + 1)
    for connection in (*working, late):
        connection.close()


def test_no_file_for_a_connection_is_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Listener(socket.socket):
        refusals = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(http_connections, "_RETRY_SECONDS", 0.01)
    taken = asyncio.Event()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.set()
            transport.close()

    async def work() -> None:
        with Listener() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            connections = http_connections.Connections(10, listener, Protocol)
            connections.open()
            with socket.create_connection(listener.getsockname()):
                await asyncio.wait_for(taken.wait(), LIMIT)
            connections.close()

    asyncio.run(work())
    assert caplog.text.count("no connection can be accepted for now (Too many open files)") == 3
    assert "Traceback" not in caplog.text


def test_fewer_connections_are_allowed_than_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    for soft, hard, least, most in (
        (64, 64, 4, 40),
        (1024, 1 << 20, 60_000, 1 << 16),
        (8, 8, 4, 4),
        (1024, -1, 60_000, 1 << 16),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft, hard=hard: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
        assert least <= http_connections.allowed_connections() <= most
    assert asked == [(1 << 16, 1 << 20), (1 << 16, -1)]
