"""HTTP written by hand on a socket, for clients that no library would be."""

import socket
import time

LIMIT = 20.0  # seconds after which a test has failed; machines are slow at times
PATIENCE = 0.4  # seconds that the `client` fixture's server waits for a client


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "Host: test", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one response."""
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
    """Send one byte now and then until the other end closes. Returns the seconds that took."""
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
        raise AssertionError("the other end never closed")
    return time.monotonic() - start


def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, LIMIT)
    connection.sendall(data)
    return connection


def head(size: int) -> bytes:
    start = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nX-Long: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
