"""cloud-serve in a process of its own, as its users run it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds; machines are slow at times


def command(bundle: Path, *options: str, port: int = 0) -> list[str]:
    """The command line of a service with one thread and a long deadline."""
    defaults = ["--port", str(port), "--threads", "1", "--deadline-ms", "60000"]
    module = [sys.executable, "-m", "runtime.cli.cloud_serve"]
    return [*module, "--bundle", str(bundle), *defaults, *options]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true, for LIMIT at most."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Serving:
    """A cloud-serve process that listens. Its log is in a file, unless nobody is to read it."""

    def __init__(self, tmp_path: Path, bundle: Path, *options: str, unread: bool = False):
        self.log_path = tmp_path / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command(bundle, *options),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if unread else log,
            )
        assert self.process.stdout
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on http://"), self.log_path.read_text()
        self.address = line.split("//")[1].strip()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the response to one request."""
        connection = http.client.HTTPConnection(self.address, timeout=LIMIT)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def request(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the response to one request."""
        status, content = self.ask(method, path, body)
        return status, json.loads(content)

    def metrics(self) -> str:
        return self.ask("GET", "/metrics")[1].decode()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal. Returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@contextmanager
def services(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """A function that starts a Serving with a bundle and options; all end with the context."""
    started: list[Serving] = []

    def start(bundle: Path, *options: str, unread: bool = False) -> Serving:
        started.append(Serving(tmp_path, bundle, *options, unread=unread))
        return started[-1]

    try:
        yield start
    finally:
        for serving in started:
            serving.process.kill()
            serving.process.wait()
            for pipe in (serving.process.stdout, serving.process.stderr):
                if pipe:
                    pipe.close()


class Loading:
    """A cloud-serve process that waits for its tokens, from a pipe, before it loads bundles."""

    def __init__(self, folder: Path, bundle: Path, *prefix: str):
        self.tokens = folder / "tokens"
        os.mkfifo(self.tokens)
        self.port = free_port()
        self.command = command(bundle, port=self.port)
        self.process = subprocess.Popen(
            [*prefix, *self.command, "--token-file", str(self.tokens), "--log", "failures"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def health(self, what: str) -> int:
        """The status of a health check; 0 if nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request("GET", f"/v2/health/{what}")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def process_id(self, prefixed: bool) -> int:
        """The service's own process, which is a child of `process` if that is a prefix."""
        if not prefixed:
            return self.process.pid
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())
