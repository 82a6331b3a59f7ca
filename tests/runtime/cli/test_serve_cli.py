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

from runtime.cli import cloud_serve as serve_cli
from runtime.service.oip import join

LIMIT = 120.0  # seconds; machines are slow at times


class Serving:
    """A cloud-serve process, once it listens."""

    def __init__(self, tmp_path: Path, *arguments: str, unread: bool = False):
        self.log_path = tmp_path / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "runtime.cli.cloud_serve",
                    "--port",
                    "0",
                    "--threads",
                    "1",
                    "--deadline-ms",
                    "60000",
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if unread else log,
            )
        assert self.process.stdout
        self.line = self.process.stdout.readline().decode()
        assert self.line.startswith("listening on http://"), self.log_path.read_text()
        self.address = self.line.split("//")[1].strip()

    def request(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
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


def test_a_service_from_its_start_to_its_end(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
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
    assert [tensor["name"] for tensor in metadata["outputs"]] == [
        "label",
        "probability",
        "class_index",
        "logits",
    ]
    tensor = triton.InferInput(metadata["inputs"][0]["name"], [2], "BYTES")
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes], object))
    everything = client.infer("ours_n4", [tensor], request_id="q1", parameters={"top_k": 3})
    assert everything.get_response()["id"] == "q1"
    assert everything.as_numpy("label").tolist()[0][0] == b"golf ball"
    assert everything.as_numpy("label").shape == (2, 3)
    assert everything.as_numpy("logits").shape == (2, 10)
    assert everything.as_numpy("logits").dtype == np.float32
    assert everything.as_numpy("class_index").tolist()[1][0] == int(
        everything.as_numpy("logits")[1].argmax()
    )
    outputs = [
        triton.InferRequestedOutput("probability", binary_data=False),
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("class_index", binary_data=True),
    ]
    some = client.infer("ours_n4", [tensor], outputs=outputs)
    assert np.allclose(
        some.as_numpy("probability"), everything.as_numpy("probability")[:, :1], atol=1e-5
    )
    assert some.as_numpy("label").tolist() == [["golf ball"], ["golf ball"]]
    assert some.as_numpy("class_index").shape == (2, 1)
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes[:-1]], object))
    with pytest.raises(InferenceServerException, match="send it again") as refused:
        client.infer("ours_n4", [tensor])
    assert refused.value.status() == "400"
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes], object))
    output = triton.InferRequestedOutput("label")
    output.set_shared_memory("region", 64)
    shared = triton.InferInput("feature_file", [1], "BYTES")
    shared.set_shared_memory("region", len(feature_bytes))
    for ask, text in (
        (lambda: client.infer("ours_n4", [shared]), "send tensors within the request"),
        (
            lambda: client.infer("ours_n4", [tensor], outputs=[output]),
            "send tensors within the request",
        ),
        (lambda: client.get_system_shared_memory_status(), "send tensors within the request"),
        (
            lambda: client.register_system_shared_memory("region", "/key", 64),
            "send tensors within the request",
        ),
        (
            lambda: client.infer("ours_n4", [tensor], request_compression_algorithm="gzip"),
            "compressed",
        ),
        (lambda: client.get_model_metadata("ours_n4", "1"), "Not Found"),
    ):
        with pytest.raises(InferenceServerException, match=text):
            ask()
    assert "versions" not in metadata
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
    assert {(status, answer["classes"][0]["label"]) for status, answer in answers} == {
        (200, "golf ball")
    }
    assert {answer["model"] for _, answer in answers} == {"first", "second"}
    # A list that cannot be served changes nothing, and is told.
    shutil.rmtree(folder / "second")
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded" in serving.log_path.read_text())
    assert names() == ["second"]
    assert serving.stop() == 0


def test_sigterm_answers_what_was_admitted(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve("--bundle", str(bundle), "--drain-ms", "100000")
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


def test_draining_ends_in_time_and_says_so_to_whom_it_leaves(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve("--bundle", str(bundle), "--drain-ms", "50", "--max-batch", "2")
    found: list[tuple[int, dict[str, Any]]] = []
    # Far more than can be done in two seconds, which uvicorn leaves a connection.
    body = join([feature_bytes] * 64)
    threads = [
        threading.Thread(
            target=lambda: found.append(serving.request("POST", "/v1/classify/batch", body))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: "edgecloud_queue_images 128.0" in _metrics(serving))
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


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(
    serve: Callable[..., Serving], bundle: Path
) -> None:
    serving = serve("--bundle", str(bundle), unread=True)
    connection = http.client.HTTPConnection(serving.address, timeout=LIMIT)
    for _ in range(800):  # several times what a pipe holds
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    connection.close()
    assert serving.stop() == 0


def test_sigterm_refuses_bodies_that_have_not_wholly_come(
    serve: Callable[..., Serving], bundle: Path
) -> None:
    serving = serve("--bundle", str(bundle))
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
    path = "/v2/health/live"  # answered behind all of these
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
        "--bundle",
        str(bundle),
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
    until(lambda: "edgecloud_queue_images 128.0" in _metrics(serving))
    serving.process.send_signal(signal.SIGTERM)
    until(lambda: serving.request("GET", "/v2/health/ready")[0] == 503)
    serving.process.send_signal(signal.SIGHUP)
    assert serving.stop() == 0
    for thread in threads:
        thread.join(LIMIT)
    assert [(status, answer["code"]) for status, answer in found] == [(503, "draining")] * 2
    assert "Traceback" not in serving.log_path.read_text()


class Loading:
    """A cloud-serve process that waits for its tokens, from a pipe, before it loads anything."""

    def __init__(self, folder: Path, bundle: Path, *prefix: str):
        self.tokens = folder / "tokens"
        os.mkfifo(self.tokens)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable,
            "-m",
            "runtime.cli.cloud_serve",
            "--bundle",
            str(bundle),
            "--port",
            str(self.port),
            "--threads",
            "1",
        ]
        self.process = subprocess.Popen(
            [*prefix, *self.command, "--token-file", str(self.tokens), "--log", "failures"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def health(self, what: str) -> int:
        """Its status; 0 where nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request("GET", f"/v2/health/{what}")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def own_id(self, prefixed: bool) -> int:
        """Of the service, which is a child of what it was started by."""
        if not prefixed:
            return self.process.pid
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())


@pytest.fixture
def loading(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., Loading]]:
    started: list[Loading] = []

    def start(*prefix: str) -> Loading:
        started.append(Loading(tmp_path, bundle, *prefix))
        return started[-1]

    yield start
    for loading in started:
        if loading.process.poll() is None:
            os.kill(loading.own_id(loading.process.args[0] == "unshare"), signal.SIGKILL)  # type: ignore[index]
        loading.process.communicate(timeout=LIMIT)


def _unshare() -> list[str]:
    prefix = ["unshare", "--pid", "--fork"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a process may not have a numbering of processes of its own here")
    return prefix


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [False, True], ids=["process", "first process"])
def test_a_signal_while_it_loads_ends_it_at_once(
    loading: Callable[..., Loading], number: signal.Signals, first: bool
) -> None:
    """Also as the first process of a container, which no signal without a handler reaches."""
    service = loading(*(_unshare() if first else []))
    until(lambda: service.health("live") == 200)
    assert service.health("ready") == 503
    os.kill(service.own_id(first), signal.SIGHUP)
    assert service.health("live") == 200
    os.kill(service.own_id(first), number)
    out, error = service.process.communicate(timeout=LIMIT)
    assert service.process.returncode == 0
    assert (out, error.decode()) == (
        b"",
        f"cloud-serve: stopped by {number.name} before it served\n",
    )


def test_sighup_while_it_loads_reads_again_once_it_has_loaded(
    loading: Callable[..., Loading],
) -> None:
    service = loading()
    until(lambda: service.health("live") == 200)
    service.process.send_signal(signal.SIGHUP)
    service.tokens.write_text("a-token-of-the-start\n")
    until(lambda: service.health("ready") == 200)
    service.tokens.write_text("a-token-that-came-later\n")  # opens once it is read

    def answers(token: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=LIMIT)
        connection.request("GET", "/v2", headers={"Authorization": f"Bearer {token}"})
        status = connection.getresponse().status
        connection.close()
        return status

    until(lambda: answers("a-token-that-came-later") == 200)
    assert answers("a-token-of-the-start") == 401
    service.process.send_signal(signal.SIGTERM)
    out, _ = service.process.communicate(timeout=LIMIT)
    assert (service.process.returncode, out.decode()) == (
        0,
        f"listening on http://127.0.0.1:{service.port}\n",
    )


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="handled signals are read in /proc"
)
def test_signals_are_handled_before_anything_is_imported_that_takes_time(
    loading: Callable[..., Loading],
) -> None:
    service = loading()

    def handles(number: signal.Signals) -> bool:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    end = time.monotonic() + LIMIT
    while not handles(signal.SIGHUP):
        assert time.monotonic() < end
    assert service.health("live") == 0
    until(
        lambda: service.process.send_signal(signal.SIGHUP) is None and service.health("live") == 200
    )
    service.process.send_signal(signal.SIGTERM)
    service.process.communicate(timeout=LIMIT)
    assert service.process.returncode == 0


def test_a_second_start_on_one_port_fails_at_once(loading: Callable[..., Loading]) -> None:
    """Though the first has not loaded yet."""
    service = loading()
    until(lambda: service.health("live") == 200)
    second = subprocess.run(
        [*service.command, "--bundle", "/nowhere"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith(
        f"cloud-serve: cannot listen on 127.0.0.1 port {service.port}, Address already in use: choose"
    )
    assert second.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("streams", "status"),
    [("<&- >&- 2>&-", 0), (">/dev/full 2>/dev/full", 1), (">&-", 0), ("2>/dev/full", 0)],
)
def test_streams_that_are_closed_or_full_do_not_stop_it(
    bundle: Path, feature_bytes: bytes, streams: str, status: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "runtime.cli.cloud_serve",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
        "--deadline-ms",
        "60000",
    ]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command],
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
        assert process.wait(LIMIT) == status  # 1: what was to be printed was lost
    finally:
        process.kill()
        process.wait()


def test_many_idle_connections_under_a_low_limit_of_open_files(
    tmp_path: Path, bundle: Path, feature_bytes: bytes
) -> None:
    log_path = tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "runtime.cli.cloud_serve",
        "--bundle",
        str(bundle),
        "--port",
        "0",
        "--deadline-ms",
        "60000",
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *command],
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
        process.send_signal(signal.SIGHUP)  # bundles can be read as well
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
    assert {line["logger"] for line in told} == {"runtime.service.http"}


def test_it_warns_where_others_can_reach_it_without_a_token(
    serve: Callable[..., Serving], bundle: Path, tmp_path: Path
) -> None:
    serving = serve("--bundle", str(bundle), "--host", "0.0.0.0")
    assert (
        "listening on 0.0.0.0 without a token, anybody who reaches it may use it"
        in serving.log_path.read_text()
    )
    assert serving.stop() == 0
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    serving = serve(
        "--bundle", str(bundle), "--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens")
    )
    assert serving.log_path.read_text() == ""
    serving.address = serving.address.replace("0.0.0.0", "127.0.0.1")
    assert serving.request("GET", "/v2")[0] == 401
    assert serving.stop() == 0


def test_what_cannot_be_started(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve_cli.main(["--bundle", str(bundle), "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --host or --port" in capsys.readouterr().err
    assert serve_cli.main(["--bundle", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert "no bundle in" in capsys.readouterr().err
    assert (
        serve_cli.main(
            ["--bundle", str(bundle), "--token-file", str(tmp_path / "none"), "--port", "0"]
        )
        == 1
    )
    assert "none" in capsys.readouterr().err
    assert (
        serve_cli.main(["--bundle", str(bundle), "--host", "no.such.host.invalid", "--port", "0"])
        == 1
    )
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
    assert not any(
        serve_cli._is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")
    )
