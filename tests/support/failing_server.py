"""A real HTTP server that fails on demand; edge-send is tested against it and cloud-serve.

A Failure is a function that handles one request of a Handler instead of an answer.
"""

import http.server
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES = [
    {"label": "golf ball", "probability": 0.99, "class_index": 574},
    {"label": "tench", "probability": 0.01, "class_index": 0},
]
Failure = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a POST with CLASSES, unless its server has a failure for it."""

    protocol_version = "HTTP/1.1"
    server: "FailingServer"  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.mutex:
            self.server.posts.append(
                {
                    "path": self.path,
                    "headers": dict(self.headers),
                    "body": body,
                    "time": time.monotonic(),
                    "peer": self.client_address,
                }
            )
            failure = self.server.next_failure(body)
        if failure is not None:
            failure(self)
            return
        with self.server.mutex:
            self.server.answered[self.headers["Idempotency-Key"]] += 1
        self.answer(200, {"classes": CLASSES})

    def do_CONNECT(self) -> None:
        """Fail as a proxy that is asked for a tunnel."""
        with self.server.mutex:
            self.server.posts.append(
                {
                    "path": self.path,
                    "headers": dict(self.headers),
                    "body": b"",
                    "time": time.monotonic(),
                }
            )
            failure = self.server.next_failure(b"")
        assert failure
        failure(self)

    def answer(self, status: int, content: Any, **headers: str) -> None:
        """Send a response; content that is not bytes is sent as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Server" not in headers:
            self.send_header("Server", self.version_string())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class FailingServer(http.server.ThreadingHTTPServer):
    """Answers with CLASSES, unless one of these has a failure for the request, in this order.

    Attributes:
        poison: body -> failure.
        script: the failures of the next requests, None for an answer.
        chances: failures, one of which is drawn at random for half of the requests.
        always: the failure of all other requests.
        posts: all requests so far.
        answered: how often each Idempotency-Key was answered.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, certificate: Path | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.mutex = threading.Lock()
        self.script: list[Failure | None] = []
        self.always: Failure | None = None
        self.poison: dict[bytes, Failure] = {}
        self.chances: list[Failure] = []
        self.random = random.Random(1)
        self.posts: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    def __enter__(self) -> "FailingServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Nothing: tests kill clients."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_address[1]}"

    def next_failure(self, body: bytes) -> Failure | None:
        """The failure of a request with this body; None for an answer."""
        if body in self.poison:
            return self.poison[body]
        if self.script:
            return self.script.pop(0)
        if self.chances and self.random.random() < 0.5:
            return self.random.choice(self.chances)
        return self.always


def status(code: int, content: Any = b"", **headers: str) -> Failure:
    """A failure with this status."""
    return lambda handler: handler.answer(code, content, **headers)


def refusal(code: int, name: str, **headers: str) -> Failure:
    """A failure in the form of cloud-serve's refusals."""
    return status(code, {"code": name, "error": f"it is {name}"}, **headers)


def hang_up(handler: Handler) -> None:
    """Read the request and close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def answer_and_hang_up(handler: Handler) -> None:
    """Count the request as answered, but lose the answer, so that it is sent again."""
    with handler.server.mutex:
        handler.server.answered[handler.headers["Idempotency-Key"]] += 1
    hang_up(handler)


def silence(handler: Handler) -> None:
    """Never answer."""
    time.sleep(3)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Send an answer very slowly, and not to its end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def flood(handler: Handler) -> None:
    """Send an answer far larger than any of cloud-serve's."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(bytes(1 << 16))
