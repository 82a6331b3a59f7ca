"""The service on a real socket, and clients that are slow, silent, endless, or gone."""

import asyncio
import errno
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from served import served

from runtime import CloudDecoder
from runtime.service import http as serve_http
from runtime.service.app import Settings

PATIENCE = 0.4
LIMIT = 20.0  # after which a test has failed: machines are slow at times


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[serve_http.Server]:
    """In a thread of this process, with little patience."""
    patch = pytest.MonkeyPatch()
    for name in ("HEAD_SECONDS", "WRITE_SECONDS"):
        patch.setattr(serve_http, name, PATIENCE)
    patch.setattr(serve_http, "IDLE_SECONDS", 1)
    with served(
        Settings(bundles=(bundle,), threads=1, deadline_ms=60_000, body_seconds=PATIENCE)
    ) as (server, address):
        server.address = address  # type: ignore[attr-defined]
        yield server
    patch.undo()


@pytest.fixture
def client(server: serve_http.Server) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, LIMIT) as client:  # type: ignore[attr-defined]
        yield client


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "Host: test", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response, read as far as it says."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(1 << 16)
        assert chunk, data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += client.recv(int(headers["content-length"]) - len(body))
    return int(first.split()[1]), headers, body


def seconds_until_closed(client: socket.socket) -> float:
    start = time.monotonic()
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - start


def trickle(client: socket.socket, data: bytes) -> float:
    """A byte now and then until the other end has had enough; gives the seconds that took."""
    start = time.monotonic()
    client.settimeout(0.05)
    for byte in data:
        try:
            client.send(bytes([byte]))
            if client.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    else:
        raise AssertionError("the other end was patient to the end")
    return time.monotonic() - start


def test_a_connection_serves_several_requests(client: socket.socket, feature_bytes: bytes) -> None:
    for _ in range(2):
        client.sendall(post(feature_bytes))
        status, headers, body = read_answer(client)
        assert status == 200
        assert "connection" not in headers
        assert json.loads(body)["classes"][0]["label"] == "golf ball"


def test_requests_that_are_sent_one_behind_the_other(
    client: socket.socket, feature_bytes: bytes
) -> None:
    client.sendall(3 * post(feature_bytes, "X-Request-ID: one"))
    assert [read_answer(client)[0] for _ in range(3)] == [200] * 3


def test_a_body_in_chunks(client: socket.socket, feature_bytes: bytes) -> None:
    half = len(feature_bytes) // 2
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (feature_bytes[:half], feature_bytes[half:], b"")
    )
    client.sendall(post(chunks, "Transfer-Encoding: chunked"))
    assert read_answer(client)[0] == 200


def test_an_answer_that_takes_longer_than_the_patience(
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


def test_a_head_that_comes_byte_by_byte(client: socket.socket) -> None:
    assert (
        PATIENCE * 0.9
        < trickle(client, post(b"", *(f"X-{index}: y" for index in range(100))))
        < LIMIT / 2
    )


def test_a_second_head_that_comes_byte_by_byte(client: socket.socket, feature_bytes: bytes) -> None:
    client.sendall(post(feature_bytes))
    assert read_answer(client)[0] == 200
    assert trickle(client, post(b"", *(f"X-{index}: y" for index in range(100)))) < LIMIT / 2


def test_an_idle_connection_is_closed(client: socket.socket) -> None:
    client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
    assert read_answer(client)[0] == 200
    assert seconds_until_closed(client) < LIMIT / 2


def test_a_body_that_does_not_come_to_its_end(client: socket.socket) -> None:
    client.sendall(post(b"\xfc", length=400))
    status, headers, body = read_answer(client)
    assert (status, json.loads(body)["code"], headers["connection"]) == (408, "slow_body", "close")
    seconds_until_closed(client)


def test_a_body_that_comes_byte_by_byte(client: socket.socket, feature_bytes: bytes) -> None:
    client.sendall(post(b"", length=1000))
    for _ in range(4):
        client.sendall(b"\xfc")
        time.sleep(PATIENCE / 8)
    assert read_answer(client)[0] == 408
    seconds_until_closed(client)


def test_a_body_that_never_ends(client: socket.socket) -> None:
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


def test_a_body_that_is_said_to_be_too_large_is_refused_unread(client: socket.socket) -> None:
    client.sendall(post(b"", "Expect: 100-continue", length=1 << 40))
    status, headers, body = read_answer(client)
    assert (status, json.loads(body)["code"], headers["connection"]) == (
        413,
        "body_too_large",
        "close",
    )
    assert seconds_until_closed(client) < LIMIT / 2


def test_a_client_that_waits_to_be_told_to_go_on(
    client: socket.socket, feature_bytes: bytes
) -> None:
    client.sendall(post(b"", "Expect: 100-continue", length=len(feature_bytes)))
    assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
    client.sendall(feature_bytes)
    assert read_answer(client)[0] == 200


@pytest.mark.parametrize("length", [3, 10_000])
def test_a_wrong_content_length(client: socket.socket, feature_bytes: bytes, length: int) -> None:
    client.sendall(post(feature_bytes, length=length))
    status, _, _ = read_answer(client)
    assert status == (400 if length == 3 else 408)
    seconds_until_closed(client)


def test_a_client_that_does_not_read(server: serve_http.Server, feature_bytes: bytes) -> None:
    """Answers pile up in the sockets' buffers, then the connection is cut."""
    before = len(server.server_state.connections)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)  # type: ignore[attr-defined]
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


def test_clients_that_vanish(
    server: serve_http.Server, client: socket.socket, feature_bytes: bytes
) -> None:
    for request in (b"", b"POST /v1", post(feature_bytes, length=2000), post(feature_bytes)):
        for _ in range(5):
            with socket.create_connection(server.address, LIMIT) as other:  # type: ignore[attr-defined]
                # Reset, rather than closed as is right.
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                other.sendall(request)
    client.sendall(post(feature_bytes))
    assert read_answer(client)[0] == 200


def head(size: int) -> bytes:
    start = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nX-Long: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "cuts",
    [(), (10_000,), (-1,), tuple(range(0, 16_000, 4000))],
    ids=["whole", "halves", "last", "parts"],
)
def test_a_head_has_one_limit_however_it_is_split(
    client: socket.socket, cuts: tuple[int, ...]
) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size, expected in ((serve_http.HEAD_BYTES, 200), (serve_http.HEAD_BYTES + 1, 431)):
        data = head(size)
        for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            client.sendall(data[start:end])
            time.sleep(0.02)
        status, headers, body = read_answer(client)
        assert status == expected
    assert (json.loads(body)["code"], headers["connection"]) == ("head_too_large", "close")
    seconds_until_closed(client)


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_a_head_that_is_far_too_large_is_answered_before_the_connection_ends(
    client: socket.socket, size: int
) -> None:
    client.sendall(b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert read_answer(client)[0] == 431
    assert client.recv(1) == b""


def test_a_large_head_behind_another_request(client: socket.socket) -> None:
    client.sendall(head(100) + head(20_000))
    answers = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answers)] == [200, 431]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Transfer-Encoding: chunked", "", "zz"], 400),
        (["Transfer-Encoding: chunked", "", "3", "abcd"], 400),
        (["Transfer-Encoding: chunked", "", "1" * 20_000], 400),
        (["Transfer-Encoding: gzip, chunked", "", ""], 501),
        (["Transfer-Encoding: chunked", "Content-Length: 3", "", "0", ""], 400),
        (["Content-Length: 3", "Content-Length: 4", "", "abc"], 400),
        (["Content-Length: -1", "", ""], 400),
    ],
)
def test_a_body_without_one_clear_end(
    client: socket.socket, lines: list[str], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    client.sendall("\r\n".join(["POST /v1/classify HTTP/1.1", "Host: test", *lines, ""]).encode())
    assert read_answer(client)[0] == status
    assert seconds_until_closed(client) < LIMIT / 2
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://some.host:80/v2/health/live?x=1", 200),
        ("GET HTTPS://some.host/v2/health/live", 200),
        ("GET http://some.host", 404),
        ("OPTIONS *", 404),
        ("OPTIONS /v1/classify", 405),
        ("BREW /v1/classify", 405),
        ("CONNECT some.host:443", 404),
        ("GET /v2/models/ours%5Fn4/ready", 200),
        ("GET /v2/models/a%2Fb", 404),
    ],
)
def test_targets_and_methods(client: socket.socket, line: str, status: int) -> None:
    client.sendall(f"{line} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    found, headers, _ = read_answer(client)
    assert found == status
    assert status != 405 or headers["allow"] == "post"


def test_a_request_for_another_protocol_is_answered_in_this_one(
    client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    client.sendall(
        b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert read_answer(client)[0] == 200
    assert "uvicorn" not in caplog.text


def test_a_body_that_was_asked_for_and_is_refused_is_read_on(
    client: socket.socket, feature_bytes: bytes
) -> None:
    """Its sender is told, though it still sends."""
    client.sendall(post(b"", "Expect: 100-continue", "Transfer-Encoding: chunked"))
    assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
    for _ in range(9):
        client.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
    client.sendall(b"0\r\n\r\n")
    assert read_answer(client)[0] == 413


MOST = 4


@pytest.fixture(scope="module")
def small(bundle: Path) -> Iterator[tuple[str, int]]:
    """A service that has room for few connections."""
    with served(Settings(bundles=(bundle,), threads=1, deadline_ms=60_000), MOST) as (_, address):
        yield address


def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, LIMIT)
    connection.sendall(data)
    return connection


def test_silent_connections_make_way_oldest_first(small: tuple[str, int]) -> None:
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


def test_many_more_connections_than_there_is_room_for(
    small: tuple[str, int], feature_bytes: bytes
) -> None:
    crowd = [
        connect(small, b"" if number % 2 else post(b"\xfc", length=400))
        for number in range(50 * MOST)
    ]
    client = connect(small, post(feature_bytes))
    assert read_answer(client)[0] == 200
    for connection in (client, *crowd):
        connection.close()


def test_a_request_at_work_makes_way_for_none(
    small: tuple[str, int], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all are at work, a new connection waits until one is done."""
    run, entered, gate = CloudDecoder.logits_of_symbols, threading.Event(), threading.Event()

    def held(self: CloudDecoder, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        entered.set()
        assert gate.wait(LIMIT)
        return run(self, symbols)

    monkeypatch.setattr(CloudDecoder, "logits_of_symbols", held)
    working = [connect(small, post(feature_bytes)) for _ in range(MOST)]
    assert entered.wait(LIMIT)
    late = connect(small, b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
    late.settimeout(0.3)
    with pytest.raises(TimeoutError):
        late.recv(1)
    gate.set()
    late.settimeout(LIMIT)
    assert [read_answer(connection)[0] for connection in (*working, late)] == [200] * (MOST + 1)
    for connection in (*working, late):
        connection.close()


def test_a_system_without_a_file_for_a_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and tried again."""

    class Listener(socket.socket):
        refusals = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(serve_http, "_RETRY_SECONDS", 0.01)
    taken = asyncio.Event()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.set()
            transport.close()

    async def work() -> None:
        with Listener() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            crowd = serve_http.Crowd(10, listener, Protocol)  # type: ignore[arg-type]
            crowd.open()
            with socket.create_connection(listener.getsockname()):
                await asyncio.wait_for(taken.wait(), LIMIT)
            crowd.close()

    asyncio.run(work())
    assert caplog.text.count("no connection can be taken for now (Too many open files)") == 3
    assert "Traceback" not in caplog.text


def test_connections_are_fewer_than_the_files_that_the_system_allows(
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
        assert least <= serve_http.allowed_connections() <= most
    assert asked == [(1 << 16, 1 << 20), (1 << 16, -1)]


def test_what_is_not_http(client: socket.socket) -> None:
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 400")
    seconds_until_closed(client)
