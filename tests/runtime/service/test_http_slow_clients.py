"""Clients on a real socket that are slow, silent, endless, or gone: each is limited in time."""

import json
import socket
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from raw_http import LIMIT, PATIENCE, post, read_answer, seconds_until_closed, trickle

from runtime import CloudDecoder
from runtime.service.http_server import HttpServer


def test_an_answer_may_take_longer_than_the_time_limits(
    client: socket.socket, feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CloudDecoder.logits_of_symbols

    def slow(self: CloudDecoder, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        time.sleep(3 * PATIENCE)
        return run(self, symbols)

    monkeypatch.setattr(CloudDecoder, "logits_of_symbols", slow)
    client.sendall(post(feature_bytes))
    assert read_answer(client)[0] == 200


def test_a_silent_connection_is_closed(client: socket.socket) -> None:
    assert seconds_until_closed(client) < LIMIT / 2


def test_a_head_sent_byte_by_byte_is_cut_off(client: socket.socket) -> None:
    assert (
        PATIENCE * 0.9
        < trickle(client, post(b"", *(f"X-{index}: y" for index in range(100))))
        < LIMIT / 2
    )


def test_a_second_head_sent_byte_by_byte_is_cut_off(
    client: socket.socket, feature_bytes: bytes
) -> None:
    client.sendall(post(feature_bytes))
    assert read_answer(client)[0] == 200
    assert trickle(client, post(b"", *(f"X-{index}: y" for index in range(100)))) < LIMIT / 2


def test_an_idle_connection_is_closed(client: socket.socket) -> None:
    client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
    assert read_answer(client)[0] == 200
    assert seconds_until_closed(client) < LIMIT / 2


def test_an_incomplete_body_is_refused(client: socket.socket) -> None:
    client.sendall(post(b"\xfc", length=400))
    status, headers, body = read_answer(client)
    assert (status, json.loads(body)["code"], headers["connection"]) == (408, "slow_body", "close")
    seconds_until_closed(client)


def test_a_body_sent_byte_by_byte_is_refused(client: socket.socket, feature_bytes: bytes) -> None:
    client.sendall(post(b"", length=1000))
    for _ in range(4):
        client.sendall(b"\xfc")
        time.sleep(PATIENCE / 8)
    assert read_answer(client)[0] == 408
    seconds_until_closed(client)


def test_an_endless_body_is_cut_off(client: socket.socket) -> None:
    client.sendall(post(b"", "Transfer-Encoding: chunked"))
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    sent = 0
    try:
        while sent < 200:
            client.sendall(chunk)
            sent += 1
    except OSError:
        pass
    assert sent < 100
    seconds_until_closed(client)


def test_a_client_that_does_not_read_is_cut_off(
    limited_server: tuple[HttpServer, tuple[str, int]], feature_bytes: bytes
) -> None:
    """Answers fill the sockets' buffers, then the connection is closed."""
    server, address = limited_server
    before = len(server.server_state.connections)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.settimeout(0.2)
        question = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n"
        start = time.monotonic()
        cut = False
        while not cut and time.monotonic() - start < LIMIT:
            try:
                client.sendall(question * 500)
            except TimeoutError:
                continue
            except ConnectionError:
                cut = True
        assert cut
    deadline = time.monotonic() + LIMIT
    while len(server.server_state.connections) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(server.server_state.connections) <= before


def test_clients_that_reset_their_connections(
    limited_server: tuple[HttpServer, tuple[str, int]],
    client: socket.socket,
    feature_bytes: bytes,
) -> None:
    _, address = limited_server
    for request in (b"", b"POST /v1", post(feature_bytes, length=2000), post(feature_bytes)):
        for _ in range(5):
            with socket.create_connection(address, LIMIT) as other:
                # Reset the connection rather than close it.
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                other.sendall(request)
    client.sendall(post(feature_bytes))
    assert read_answer(client)[0] == 200
