"""HTTP on a real socket: pipelined requests, chunked bodies, and limits of heads and bodies."""

import json
import re
import socket
import time

import pytest
from raw_http import LIMIT, head, post, read_answer, seconds_until_closed

from runtime.service import http_server


def test_a_connection_serves_several_requests(client: socket.socket, feature_bytes: bytes) -> None:
    for _ in range(2):
        client.sendall(post(feature_bytes))
        status, headers, body = read_answer(client)
        assert status == 200
        assert "connection" not in headers
        assert json.loads(body)["classes"][0]["label"] == "golf ball"


def test_pipelined_requests(client: socket.socket, feature_bytes: bytes) -> None:
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


def test_a_body_declared_too_large_is_refused_unread(client: socket.socket) -> None:
    client.sendall(post(b"", "Expect: 100-continue", length=1 << 40))
    status, headers, body = read_answer(client)
    assert (status, json.loads(body)["code"], headers["connection"]) == (
        413,
        "body_too_large",
        "close",
    )
    assert seconds_until_closed(client) < LIMIT / 2


def test_a_client_that_waits_for_100_continue(client: socket.socket, feature_bytes: bytes) -> None:
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


@pytest.mark.parametrize(
    "cuts",
    [(), (10_000,), (-1,), tuple(range(0, 16_000, 4000))],
    ids=["whole", "halves", "last", "parts"],
)
def test_a_head_has_the_same_limit_however_it_is_split(
    client: socket.socket, cuts: tuple[int, ...]
) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size, expected in ((http_server.HEAD_BYTES, 200), (http_server.HEAD_BYTES + 1, 431)):
        data = head(size)
        for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            client.sendall(data[start:end])
            time.sleep(0.02)
        status, headers, body = read_answer(client)
        assert status == expected
    assert (json.loads(body)["code"], headers["connection"]) == ("head_too_large", "close")
    seconds_until_closed(client)


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_a_head_far_too_large_is_answered_before_the_connection_ends(
    client: socket.socket, size: int
) -> None:
    client.sendall(b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert read_answer(client)[0] == 431
    assert client.recv(1) == b""


def test_a_large_head_after_another_request(client: socket.socket) -> None:
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
def test_a_body_without_one_clear_length_is_refused(
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


def test_a_request_to_upgrade_the_protocol_is_answered_over_http_1_1(
    client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    client.sendall(
        b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n"
        b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert read_answer(client)[0] == 200
    assert "uvicorn" not in caplog.text


def test_a_refused_body_that_is_still_being_sent_is_read_on(
    client: socket.socket, feature_bytes: bytes
) -> None:
    """Its sender gets the refusal."""
    client.sendall(post(b"", "Expect: 100-continue", "Transfer-Encoding: chunked"))
    assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
    for _ in range(9):
        client.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
    client.sendall(b"0\r\n\r\n")
    assert read_answer(client)[0] == 413


def test_bytes_that_are_not_http_are_refused(client: socket.socket) -> None:
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 400")
    seconds_until_closed(client)
