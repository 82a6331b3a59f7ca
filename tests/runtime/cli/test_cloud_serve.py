"""cloud-serve from its start to its end, bundles that change under load, and failures to start."""

import http.client
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_process import LIMIT, Serving, services, until

from runtime.cli import cloud_serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    with services(tmp_path) as start:
        yield start


def test_a_service_from_its_start_to_its_end(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes
) -> None:
    serving = serve(bundle)
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


@pytest.mark.slow
def test_bundles_change_under_load_and_no_request_is_dropped(
    serve: Callable[..., Serving], bundle: Path, feature_bytes: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "first").symlink_to(bundle)
    os.rename(shutil.copytree(bundle, tmp_path / "copy"), tmp_path / "second")
    serving = serve(folder)
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
    # Without the first, its variant answers for the fingerprint.
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
    # A list that cannot be served changes nothing, and is logged.
    shutil.rmtree(folder / "second")
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded" in serving.log_path.read_text())
    assert names() == ["second"]
    assert serving.stop() == 0


def test_it_warns_if_others_can_reach_it_without_a_token(
    serve: Callable[..., Serving], bundle: Path, tmp_path: Path
) -> None:
    serving = serve(bundle, "--host", "0.0.0.0")
    assert (
        "listening on 0.0.0.0 without a token, anybody who reaches it may use it"
        in serving.log_path.read_text()
    )
    assert serving.stop() == 0
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    serving = serve(bundle, "--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens"))
    assert serving.log_path.read_text() == ""
    serving.address = serving.address.replace("0.0.0.0", "127.0.0.1")
    assert serving.request("GET", "/v2")[0] == 401
    assert serving.stop() == 0


def test_failures_to_start(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert (
            cloud_serve.main(["--bundle", str(bundle), "--port", str(taken.getsockname()[1])]) == 1
        )
    assert "choose another --host or --port" in capsys.readouterr().err
    assert cloud_serve.main(["--bundle", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert "no bundle in" in capsys.readouterr().err
    assert (
        cloud_serve.main(
            ["--bundle", str(bundle), "--token-file", str(tmp_path / "none"), "--port", "0"]
        )
        == 1
    )
    assert "none" in capsys.readouterr().err
    assert (
        cloud_serve.main(["--bundle", str(bundle), "--host", "no.such.host.invalid", "--port", "0"])
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
        cloud_serve.main(arguments)
    assert end.value.code == 2


def test_local_addresses() -> None:
    assert all(
        cloud_serve._is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")
    )
    assert not any(
        cloud_serve._is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")
    )
