"""cloud-serve as its users run it: a process, its options, its signals, and a standard client."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import serve_cli
from runtime.oip import join

LIMIT = 120.0  # seconds; machines are slow at times


class Serving:
    """A cloud-serve process, once it listens."""

    def __init__(self, tmp_path: Path, *arguments: str, unread: bool = False):
        self.log_path = tmp_path / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime.serve_cli", "--port", "0", "--threads", "1", "--deadline-ms", "60000", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if unread else log,
            )
        assert self.process.stdout
        self.line = self.process.stdout.readline().decode()
        assert self.line.startswith("listening on http://"), self.log_path.read_text()
        self.address = self.line.split("//")[1].strip()

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.address, timeout=LIMIT)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(*arguments: str, unread: bool = False) -> Serving:
        started.append(Serving(tmp_path, *arguments, unread=unread))
        return started[-1]

    yield start
    for serving in started:
        serving.process.kill()
        serving.process.wait()
        for pipe in (serving.process.stdout, serving.process.stderr):
            if pipe:
                pipe.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_service_from_its_start_to_its_end(serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes) -> None:
    serving = serve("--bundle", str(bundle))
    status, answer = serving.request("POST", "/v1/classify?top_k=1", feature_bytes)
    assert (status, answer["classes"][0]["label"]) == (200, "golf ball")
    assert serving.request("POST", "/v1/classify", b"x")[1]["code"] == "not_a_feature_file"
    assert serving.stop() == 0
    assert serving.process.stdout
    assert serving.process.stdout.read() == b""
    good, bad = serving.log()
    assert (good["status"], good["level"], good["model"]) == (200, "info", "ours_n4")
    assert (bad["status"], bad["level"], bad["code"]) == (400, "warning", "not_a_feature_file")
    with pytest.raises(ConnectionError):
        serving.request("GET", "/v2/health/live")


def test_tritons_client(serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes) -> None:
    triton = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    serving = serve("--bundle", str(bundle), "--log", "failures")
    client = triton.InferenceServerClient(serving.address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ours_n4")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("ours_n4")
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["label", "probability", "class_index", "logits"]
    tensor = triton.InferInput(metadata["inputs"][0]["name"], [2], "BYTES")
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes], object))
    everything = client.infer("ours_n4", [tensor], request_id="q1", parameters={"top_k": 3})
    assert everything.get_response()["id"] == "q1"
    assert everything.as_numpy("label").tolist()[0][0] == b"golf ball"
    assert everything.as_numpy("label").shape == (2, 3)
    assert everything.as_numpy("logits").shape == (2, 10)
    assert everything.as_numpy("logits").dtype == np.float32
    assert everything.as_numpy("class_index").tolist()[1][0] == int(everything.as_numpy("logits")[1].argmax())
    outputs = [
        triton.InferRequestedOutput("probability", binary_data=False),
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("class_index", binary_data=True),
    ]
    some = client.infer("ours_n4", [tensor], outputs=outputs)
    assert np.allclose(some.as_numpy("probability"), everything.as_numpy("probability")[:, :1], atol=1e-5)
    assert some.as_numpy("label").tolist() == [["golf ball"], ["golf ball"]]
    assert some.as_numpy("class_index").shape == (2, 1)
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes[:-1]], object))
    with pytest.raises(InferenceServerException, match="send it again") as refused:
        client.infer("ours_n4", [tensor])
    assert refused.value.status() == "400"
    client.close()
    assert serving.stop(signal.SIGINT) == 0
    assert serving.log() == []


@pytest.mark.slow
def test_bundles_come_and_go_under_load_and_no_request_is_dropped(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "first").symlink_to(bundle)
    os.rename(shutil.copytree(bundle, tmp_path / "copy"), tmp_path / "second")
    serving = serve("--bundle", str(folder))
    done = threading.Event()
    answers: list[tuple[int, dict[str, Any]]] = []

    def load() -> None:
        connection = http.client.HTTPConnection(serving.address, timeout=LIMIT)
        while not done.is_set():
            connection.request("POST", "/v1/classify?top_k=1", feature_bytes)
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())))

    def names() -> list[str]:
        return [model["name"] for model in serving.request("GET", "/v2/models")[1]["models"]]

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        os.rename(tmp_path / "second", folder / "second")
        serving.process.send_signal(signal.SIGHUP)
        until(lambda: names() == ["first", "second"])
        os.rename(folder / "second", tmp_path / "second")
        serving.process.send_signal(signal.SIGHUP)
        until(lambda: names() == ["first"])
    # The first goes, and its variant answers for the fingerprint.
    os.rename(tmp_path / "second", folder / "second")
    (folder / "first").unlink()
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: names() == ["second"])
    served = len(answers)
    until(lambda: len(answers) > served + 6)
    done.set()
    for thread in threads:
        thread.join(LIMIT)
    assert {(status, answer["classes"][0]["label"]) for status, answer in answers} == {(200, "golf ball")}
    assert {answer["model"] for _, answer in answers} == {"first", "second"}
    # A list that cannot be served changes nothing, and is told.
    shutil.rmtree(folder / "second")
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded" in serving.log_path.read_text())
    assert names() == ["second"]
    assert serving.stop() == 0


def test_sigterm_answers_what_was_admitted(serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes) -> None:
    serving = serve("--bundle", str(bundle), "--drain-ms", "100000")
    kept = http.client.HTTPConnection(serving.address, timeout=LIMIT)

    def ready() -> bool:
        kept.request("GET", "/v2/health/ready")
        answer: dict[str, bool] = json.loads(kept.getresponse().read())
        return answer["ready"]

    assert ready()
    found: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: found.append(serving.request("POST", "/v1/classify/batch", join([feature_bytes] * 5))))
    thread.start()
    until(lambda: "edgecloud_queue_images 5.0" in _metrics(serving))
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


def _metrics(serving: Serving) -> str:
    connection = http.client.HTTPConnection(serving.address, timeout=LIMIT)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_draining_ends_in_time_and_says_so_to_whom_it_leaves(serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes) -> None:
    serving = serve("--bundle", str(bundle), "--drain-ms", "50", "--max-batch", "2")
    found: list[tuple[int, dict[str, Any]]] = []
    # Far more than can be done in two seconds, which uvicorn leaves a connection.
    body = join([feature_bytes] * 64)
    threads = [threading.Thread(target=lambda: found.append(serving.request("POST", "/v1/classify/batch", body))) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: "edgecloud_queue_images 128.0" in _metrics(serving))
    silent = socket.create_connection((serving.address.split(":")[0], int(serving.address.split(":")[1])))
    start = time.monotonic()
    assert serving.stop() == 0
    assert time.monotonic() - start < LIMIT / 2
    for thread in threads:
        thread.join(LIMIT)
    silent.close()
    assert [(status, answer["code"]) for status, answer in found] == [(503, "draining")] * 2


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(serve: Callable[..., Serving], bundle: Path) -> None:
    serving = serve("--bundle", str(bundle), unread=True)
    connection = http.client.HTTPConnection(serving.address, timeout=LIMIT)
    for _ in range(800):  # several times what a pipe holds
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    connection.close()
    assert serving.stop() == 0


def test_it_warns_where_others_can_reach_it_without_a_token(serve: Callable[..., Serving], bundle: Path, tmp_path: Path) -> None:
    serving = serve("--bundle", str(bundle), "--host", "0.0.0.0")
    assert "listening on 0.0.0.0 without a token, anybody who reaches it may use it" in serving.log_path.read_text()
    assert serving.stop() == 0
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    serving = serve("--bundle", str(bundle), "--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens"))
    assert serving.log_path.read_text() == ""
    serving.address = serving.address.replace("0.0.0.0", "127.0.0.1")
    assert serving.request("GET", "/v2")[0] == 401
    assert serving.stop() == 0


def test_what_cannot_be_started(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve_cli.main(["--bundle", str(bundle), "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --host or --port" in capsys.readouterr().err
    assert serve_cli.main(["--bundle", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert "no bundle in" in capsys.readouterr().err
    assert serve_cli.main(["--bundle", str(bundle), "--token-file", str(tmp_path / "none"), "--port", "0"]) == 1
    assert "none" in capsys.readouterr().err
    assert serve_cli.main(["--bundle", str(bundle), "--host", "no.such.host.invalid", "--port", "0"]) == 1
    assert "no.such.host.invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-batch", "0"],
        ["--max-queue", "0"],
        ["--deadline-ms", "nan"],
        ["--max-wait-ms", "-1"],
        ["--port", "65536"],
        ["--threads", "0"],
        ["--log", "all"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        serve_cli.main(arguments)
    assert end.value.code == 2


def test_local_addresses() -> None:
    assert all(serve_cli._is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(serve_cli._is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))
