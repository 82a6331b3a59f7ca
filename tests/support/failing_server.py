"""A real HTTP server that fails as it is told, for the tests of edge-send."""

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
    """Notes each post, then fails or answers as its server says."""

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
    """Answers with CLASSES, after the failures in `script`, one for each post."""

    daemon_threads = True

    def __init__(self, port: int = 0, certificate: Path | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.mutex = threading.Lock()
        self.script: list[Failure | None] = []
        self.always: Failure | None = None
        self.poison: dict[bytes, Failure] = {}
        self.chances: list[Failure | None] = []  # drawn at random for half of the posts
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
        """Say nothing of clients that are killed."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_address[1]}"

    def next_failure(self, body: bytes) -> Failure | None:
        if body in self.poison:
            return self.poison[body]
        if self.script:
            return self.script.pop(0)
        if self.chances and self.random.random() < 0.5:
            return self.random.choice(self.chances)
        return self.always


def status(code: int, content: Any = b"", **headers: str) -> Failure:
    """An answer with any status and content."""
    return lambda handler: handler.answer(code, content, **headers)


def refusal(code: int, name: str, **headers: str) -> Failure:
    """A refusal as cloud-serve writes it."""
    return status(code, {"code": name, "error": f"it is {name}"}, **headers)


def hang_up(handler: Handler) -> None:
    """Take the post, and close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def answer_and_hang_up(handler: Handler) -> None:
    """Do the work, and lose the answer, so that the file is delivered twice."""
    with handler.server.mutex:
        handler.server.answered[handler.headers["Idempotency-Key"]] += 1
    hang_up(handler)


def silence(handler: Handler) -> None:
    """Answer nothing for three seconds."""
    time.sleep(3)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Begin an answer that comes a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def flood(handler: Handler) -> None:
    """Answer with far more bytes than cloud-serve ever does."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(bytes(1 << 16))
