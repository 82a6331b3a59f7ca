"""edge-send and cloud-serve are killed again and again, and nothing is lost."""

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_server import FailingServer, answer_and_hang_up, hang_up, refusal
from numpy.typing import NDArray
from sending import crops, edge_send, results

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli.edge_send import main
from runtime.delivery.spool import key_of


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing(
    server: FailingServer,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    encoder: EdgeEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property: Any,
) -> None:
    """Each run is killed after some posts and some milliseconds; the last one is not."""
    chance = random.Random(3)
    images = crops(golf_ball, tmp_path / "images", 400)
    names = {str(path) for path in images}
    keys = {key_of(encoder.encode(path)): path for path in images}
    assert len(keys) == len(images)
    server.chances = [None] * 6 + [
        refusal(429, "queue_full"),
        refusal(500, "graph_failed"),
        hang_up,
        answer_and_hang_up,
    ]
    arguments = [str(tmp_path / "images"), "--url", server.url, "--attempts", "50"]
    kills = torn = waiting_at_kill = 0
    for _ in range(30):
        before = len(server.posts)
        enough = before + chance.randrange(1, 15)
        with edge_send(arguments) as running:
            while len(server.posts) < enough and running.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
        kills += running.returncode == -signal.SIGKILL
        content = (
            (spool / "results.jsonl").read_bytes() if (spool / "results.jsonl").exists() else b""
        )
        torn += bool(content) and not content.endswith(b"\n")
        waiting_at_kill += len(list((spool / "pending").glob("*.spool")))
    # What was accepted is delivered without naming images; then the same command again.
    server.chances = []
    assert main(["--url", server.url]) == 0
    assert main(arguments) == 0
    recorded = results(spool)
    assert Counter(result["key"] for result in recorded) == Counter(list(keys))
    assert {result["image"] for result in recorded} == names
    assert all(result["status"] == "delivered" for result in recorded)
    assert set(server.answered) == set(keys)
    assert list((spool / "pending").iterdir()) == []
    assert kills >= 25
    assert waiting_at_kill > kills, "there was something to lose"
    twice = sum(count > 1 for count in server.answered.values())
    counted = {
        "kills": kills,
        "torn": torn,
        "pending at kills": waiting_at_kill,
        "posts": len(server.posts),
        "answered twice": twice,
    }
    record_property("counted", counted)
    with capsys.disabled():
        print(f"\n{counted}, {len(recorded)} results")


def result_count(spool: Path) -> int:
    return (
        (spool / "results.jsonl").read_bytes().count(b"\n")
        if (spool / "results.jsonl").exists()
        else 0
    )


@contextmanager
def cloud_serve(arguments: list[str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli.cloud_serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout
        assert process.stdout.readline().startswith(b"listening")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_cloud_serve_that_is_killed_and_comes_back(
    spool: Path,
    golf_ball: NDArray[np.uint8],
    encoder: EdgeEncoder,
    decoder: CloudDecoder,
    bundle: Path,
    tmp_path: Path,
) -> None:
    """The real service, with a token; the sender is killed once as well."""
    images = crops(golf_ball, tmp_path / "images", 24)
    (tmp_path / "token").write_text("0123456789abcdef-token\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        "--port",
        str(port),
        "--bundle",
        str(bundle),
        "--token-file",
        str(tmp_path / "token"),
    ]
    arguments = [str(tmp_path / "images"), "--url", f"http://127.0.0.1:{port}", "--in-flight", "2"]
    token = ["--token-file", str(tmp_path / "token")]
    with edge_send([*arguments, *token, "--attempts", "1000"]) as running:
        for enough in (6, 12):
            with cloud_serve(command):  # which ends by SIGKILL
                while result_count(spool) < enough:
                    assert running.poll() is None
                    time.sleep(0.01)
    with cloud_serve(command):
        assert main(arguments) == 1, "without the token"
        assert main([*arguments, *token]) == 0
    found = {result["image"]: result["classes"] for result in results(spool)}
    assert len(found) == result_count(spool) == len(images)
    for path in images:
        expected = decoder.classify(encoder.encode(path))
        assert [entry["label"] for entry in found[str(path)]][:1] == [expected[0].label]
        assert found[str(path)][0]["probability"] == pytest.approx(
            expected[0].probability, abs=1e-4
        )
