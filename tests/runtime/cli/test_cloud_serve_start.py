"""Signals and health checks while cloud-serve loads its bundles."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serve_process import LIMIT, Loading, until


@pytest.fixture
def loading(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., Loading]]:
    started: list[Loading] = []

    def start(*prefix: str) -> Loading:
        started.append(Loading(tmp_path, bundle, *prefix))
        return started[-1]

    yield start
    for loading in started:
        if loading.process.poll() is None:
            os.kill(loading.process_id(loading.process.args[0] == "unshare"), signal.SIGKILL)  # type: ignore[index]
        loading.process.communicate(timeout=LIMIT)


def _unshare() -> list[str]:
    prefix = ["unshare", "--pid", "--fork"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no PID namespace can be made here")
    return prefix


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [False, True], ids=["process", "first process"])
def test_a_signal_while_it_loads_ends_it_at_once(
    loading: Callable[..., Loading], number: signal.Signals, first: bool
) -> None:
    """Also as the first process of a container, which ignores signals without a handler."""
    service = loading(*(_unshare() if first else []))
    until(lambda: service.health("live") == 200)
    assert service.health("ready") == 503
    os.kill(service.process_id(first), signal.SIGHUP)
    assert service.health("live") == 200
    os.kill(service.process_id(first), number)
    out, error = service.process.communicate(timeout=LIMIT)
    assert service.process.returncode == 0
    assert (out, error.decode()) == (
        b"",
        f"cloud-serve: stopped by {number.name} before it served\n",
    )


def test_sighup_while_it_loads_reloads_when_it_has_loaded(
    loading: Callable[..., Loading],
) -> None:
    service = loading()
    until(lambda: service.health("live") == 200)
    service.process.send_signal(signal.SIGHUP)
    service.tokens.write_text("a-token-of-the-start\n")
    until(lambda: service.health("ready") == 200)
    service.tokens.write_text("a-token-that-came-later\n")  # blocks until it is read

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
    not Path("/proc/self/status").is_file(), reason="handled signals are read from /proc"
)
def test_signals_are_handled_before_slow_imports(
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
    """Even if the first has not loaded its bundles yet."""
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
        f"cloud-serve: cannot listen on 127.0.0.1 port {service.port}, "
        "Address already in use: choose"
    )
    assert second.stderr.count("\n") == 1
