"""How SIGTERM ends cloud-serve: admitted requests are answered, others refused, and all in time."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_process import LIMIT, Serving, services, until

from runtime.service.oip import join


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    with services(tmp_path) as start:
        yield start


def test_sigterm_answers_admitted_requests(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve(bundle, "--drain-ms", "100000")
    kept = http.client.HTTPConnection(serving.address, timeout=LIMIT)

    def ready() -> bool:
        kept.request("GET", "/v2/health/ready")
        answer: dict[str, bool] = json.loads(kept.getresponse().read())
        return answer["ready"]

    assert ready()
    found: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(
        target=lambda: found.append(
            serving.request("POST", "/v1/classify/batch", join([feature_bytes] * 5))
        )
    )
    thread.start()
    until(lambda: "edgecloud_queue_images 5.0" in serving.metrics())
    serving.process.send_signal(signal.SIGTERM)
    until(lambda: not ready())
    kept.request("POST", "/v1/classify", feature_bytes)
    response = kept.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (503, "draining")
    assert serving.process.wait(LIMIT) == 0
    thread.join(LIMIT)
    ((status, answer),) = found
    assert status == 200
    assert [entry["classes"][0]["label"] for entry in answer["answers"]] == ["golf ball"] * 5


def test_draining_ends_in_time_and_refuses_what_is_left(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve(bundle, "--drain-ms", "50", "--max-batch", "2")
    found: list[tuple[int, dict[str, Any]]] = []
    # Far more than can be done in the two seconds in which uvicorn lets connections end.
    body = join([feature_bytes] * 64)
    threads = [
        threading.Thread(
            target=lambda: found.append(serving.request("POST", "/v1/classify/batch", body))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: "edgecloud_queue_images 128.0" in serving.metrics())
    silent = socket.create_connection(
        (serving.address.split(":")[0], int(serving.address.split(":")[1]))
    )
    start = time.monotonic()
    assert serving.stop() == 0
    assert time.monotonic() - start < LIMIT / 2
    for thread in threads:
        thread.join(LIMIT)
    silent.close()
    assert [(status, answer["code"]) for status, answer in found] == [(503, "draining")] * 2


def test_sigterm_refuses_incomplete_bodies(serve: Callable[..., Serving], bundle: Path) -> None:
    serving = serve(bundle)
    host, port = serving.address.split(":")

    def send(text: str) -> socket.socket:
        connection = socket.create_connection((host, int(port)), LIMIT)
        connection.sendall(text.replace("\n", "\r\n").encode())
        return connection

    bodies = [
        "Content-Length: 400\n\n",
        "Content-Length: 400\n\nxyz",
        "Transfer-Encoding: chunked\n\n3\nxyz\n",
        "Expect: 100-continue\nContent-Length: 9\n\n",
    ]
    paths = ["/v1/classify", "/v1/classify/batch", "/v2/models/ours_n4/infer"]
    unfinished = [
        send(f"POST {path} HTTP/1.1\nHost: test\n{body}") for path in paths for body in bodies
    ]
    without_head = [send(""), send("POST /v1/classify HTTP/1.1\nHo")]
    path = "/v2/health/live"  # answered after all of these were received
    assert serving.request("GET", path)[0] == 200
    assert serving.stop() == 0
    for connection in unfinished:
        answer = b"".join(
            iter(lambda connection=connection: connection.recv(1 << 16), b"")
        ).removeprefix(b"HTTP/1.1 100 \r\n\r\n")
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["code"] == "draining"
    assert [connection.recv(100) for connection in without_head] == [b"", b""]
    for connection in (*unfinished, *without_head):
        connection.close()
    codes = [line.get("code") for line in serving.log() if line.get("path") != path]
    assert codes == ["draining"] * len(unfinished), "and neither a traceback nor anything else"


def test_a_second_sigterm_ends_it_at_once(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve(
        bundle,
        "--drain-ms",
        "600000",
        "--deadline-ms",
        "600000",
        "--max-batch",
        "1",
    )
    found: list[tuple[int, dict[str, Any]]] = []
    body = join([feature_bytes] * 64)
    threads = [
        threading.Thread(
            target=lambda: found.append(serving.request("POST", "/v1/classify/batch", body))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: "edgecloud_queue_images 128.0" in serving.metrics())
    serving.process.send_signal(signal.SIGTERM)
    until(lambda: serving.request("GET", "/v2/health/ready")[0] == 503)
    serving.process.send_signal(signal.SIGHUP)
    assert serving.stop() == 0
    for thread in threads:
        thread.join(LIMIT)
    assert [(status, answer["code"]) for status, answer in found] == [(503, "draining")] * 2
    assert "Traceback" not in serving.log_path.read_text()
