"""edge-send in a process: signals, streams that nobody reads, and odd names."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from failing_server import FailingServer, hang_up
from numpy.typing import NDArray
from PIL import Image
from sending import crops, edge_send, is_delivered, results

from runtime.cli.edge_send import main
from runtime.delivery.spool import Spool


def test_standard_input_names_and_an_interrupt(
    server: FailingServer, spool: Path, golf_ball: NDArray[np.uint8], tmp_path: Path
) -> None:
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    odd = path.with_name(os.fsdecode(b"caf\xe9.png"))
    path.rename(odd)
    command = [sys.executable, "-m", "runtime.cli.edge_send", "--url", server.url]
    done = subprocess.run([*command, odd], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9.png: " in done.stdout
    done = subprocess.run(
        [*command, "-"],
        input=(tmp_path / "images").joinpath(odd).read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"-: ")
    server.always = hang_up
    Image.fromarray(golf_ball[100:300, 100:300]).save(path)
    with edge_send([str(path), "--url", server.url, "--attempts", "100"]) as running:
        while len(server.posts) < 3:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert (
        err == "edge-send: interrupted; what was accepted is in the spool, "
        "and the next run delivers it\n"
    )
    server.always = None
    assert main(["--url", server.url]) == 0
    assert len(results(spool)) == 2


def test_input_that_does_not_end_and_sigterm(server: FailingServer, pending: Path) -> None:
    with edge_send(["-", "--url", server.url], stdin=subprocess.PIPE) as running:
        while not is_delivered(pending):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        running.wait(60)  # its input stays open
        assert running.stderr
        assert (
            running.stderr.read()
            == "edge-send: stopped by SIGTERM; what was accepted is in the spool, "
            "and the next run delivers it\n"
        )
    assert running.returncode == 143


def full_pipe() -> tuple[int, int]:
    """The two ends of a pipe that is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("stuck", ["stdout", "both"])
def test_a_reader_that_does_not_read(stuck: str, server: FailingServer, spool: Path) -> None:
    with Spool(spool) as opened:
        for number in range(50):
            opened.accept(f"image {number}", b"%d" % number)
    reader, writer = full_pipe()
    code = (
        "import sys; from runtime.cli import edge_send, reporter; reporter._PATIENCE = 0.3; "
        "sys.exit(edge_send.main(sys.argv[1:]))"
    )
    stderr = writer if stuck == "both" else subprocess.PIPE
    try:
        command = [sys.executable, "-c", code, "--url", server.url]
        done = subprocess.run(
            command, stdout=writer, stderr=stderr, check=False, timeout=120, text=True
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 1
    assert len(results(spool)) == 50
    if stuck == "stdout":
        assert (
            done.stderr == "edge-send: 51 lines were lost, because nobody reads them; "
            "the results of the images are in results.jsonl\n"
        )


@pytest.mark.parametrize(
    ("redirection", "code"),
    [("> /dev/full", 1), (">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("| head -1", 0)],
)
def test_streams_that_take_nothing_stop_no_delivery(
    redirection: str, code: int, server: FailingServer, spool: Path
) -> None:
    with Spool(spool) as opened:
        for number in range(50):
            opened.accept(f"image {number}", b"%d" % number)
    command = f"{sys.executable} -m runtime.cli.edge_send --url {server.url} {redirection}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert len(results(spool)) == 50
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (redirection == "> /dev/full")


def test_names_that_the_terminal_lacks(server: FailingServer, spool: Path) -> None:
    with Spool(spool) as opened:
        opened.accept("größe.png", b"1")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "runtime.cli.edge_send", "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gr\\xf6\\xdfe.png: ")
