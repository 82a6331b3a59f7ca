"""cloud-serve when nobody reads its log, its streams are closed or full, or open files are few."""

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serve_process import LIMIT, Serving, command, free_port, services, until


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    with services(tmp_path) as start:
        yield start


def test_a_log_that_nobody_reads_delays_neither_requests_nor_the_end(
    serve: Callable[..., Serving], bundle: Path
) -> None:
    serving = serve(bundle, unread=True)
    connection = http.client.HTTPConnection(serving.address, timeout=LIMIT)
    for _ in range(800):  # several times what a pipe holds
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    connection.close()
    assert serving.stop() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("streams", "status"),
    [("<&- >&- 2>&-", 0), (">/dev/full 2>/dev/full", 1), (">&-", 0), ("2>/dev/full", 0)],
)
def test_closed_or_full_streams_do_not_stop_it(
    bundle: Path, feature_bytes: bytes, streams: str, status: int
) -> None:
    port = free_port()
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command(bundle, port=port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def ask(method: str, path: str, body: bytes | None = None) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            try:
                connection.request(method, path, body)
                return connection.getresponse().status
            except OSError:
                return 0
            finally:
                connection.close()

        until(lambda: ask("GET", "/v2/health/ready") == 200)
        assert ask("POST", "/v1/classify", feature_bytes) == 200
        assert ask("POST", "/v1/classify", b"x") == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == status  # 1: a line for standard output was lost
    finally:
        process.kill()
        process.wait()


def test_many_idle_connections_under_a_low_limit_of_open_files(
    tmp_path: Path, bundle: Path, feature_bytes: bytes
) -> None:
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *command(bundle)],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    idle: list[socket.socket] = []
    try:
        assert process.stdout
        host, port = process.stdout.readline().decode().split("//")[1].split(":")
        start = time.monotonic()
        idle += [socket.create_connection((host, int(port)), LIMIT) for _ in range(100)]
        for method, path, body in (
            ("GET", "/v2/health/live", None),
            ("POST", "/v1/classify", feature_bytes),
        ) * 5:
            connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT)
            connection.request(method, path, body)
            assert connection.getresponse().status == 200
            connection.close()
        process.send_signal(signal.SIGHUP)  # there are files left to read bundles
        until(lambda: "reloaded" in log_path.read_text())
        took = time.monotonic() - start
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.communicate()
        for connection in idle:
            connection.close()
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    told = [line for line in lines if "path" not in line and "reloaded" not in line["message"]]
    assert 1 <= len(told) <= took + 1
    assert {line["logger"] for line in told} == {"runtime.service.http_connections"}
