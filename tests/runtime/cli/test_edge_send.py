"""The command: its words and exit codes, and that it loses nothing however often it is killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_server import FailingServer, answer_and_hang_up, hang_up, refusal, status
from numpy.typing import NDArray
from PIL import Image

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli.edge_send import EXIT_SPOOLED, main
from runtime.delivery.spool import Spool, key_of


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with FailingServer() as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECLOUD_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))
    return tmp_path / "spool"


def crops(picture: NDArray[np.uint8], folder: Path, count: int) -> list[Path]:
    """Different real pictures: places of one."""
    folder.mkdir()
    paths = []
    for index in range(count):
        top, left = 7 * (index // 20), 7 * (index % 20)
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(picture[top : top + 240, left : left + 240]).save(paths[-1])
    return paths


def results(spool: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spool / "results.jsonl").read_text().splitlines()]


def test_a_folder_is_encoded_delivered_and_recorded(
    server: FailingServer,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    encoder: EdgeEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = crops(golf_ball, tmp_path / "images", 6)
    assert main([str(tmp_path / "images"), "--url", server.url]) == 0
    out, err = capsys.readouterr()
    sizes = [len(encoder.encode(path)) for path in paths]
    assert sorted(out.splitlines()) == sorted(
        [f"{path}: {size} bytes, golf ball 99.0 %" for path, size in zip(paths, sizes, strict=True)]
        + ["6 delivered, 0 refused, 0 failed, 0 spooled"]
    )
    assert err == ""
    assert {post["body"] for post in server.posts} == {encoder.encode(path) for path in paths}
    # Again: the results are there, and nothing is posted.
    assert main([str(tmp_path / "images"), "--url", server.url]) == 0
    assert len(server.posts) == 6
    assert {result["image"] for result in results(spool)} == {str(path) for path in paths}


def test_json_says_what_became_of_each(
    server: FailingServer,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    encoder: EdgeEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, refused = crops(golf_ball, tmp_path / "images", 2)
    (tmp_path / "bad.png").write_bytes(b"no image")
    server.poison[encoder.encode(refused)] = refusal(400, "damaged_feature_file")
    assert (
        main([str(good), str(refused), str(tmp_path / "bad.png"), "--url", server.url, "--json"])
        == 1
    )
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    said = {line["image"]: line for line in lines}
    assert said[str(good)]["status"] == "delivered"
    assert said[str(good)]["key"] == key_of(encoder.encode(good))
    assert said[str(good)]["classes"][0]["label"] == "golf ball"
    assert said[str(refused)]["status"] == "refused"
    assert said[str(refused)]["code"] == "damaged_feature_file"
    assert said[str(tmp_path / "bad.png")]["status"] == "failed"
    assert "bad.png" in said[str(tmp_path / "bad.png")]["error"]
    assert last == {"delivered": 1, "refused": 1, "failed": 1, "spooled": 0, "error": None}
    server.poison.clear()
    assert main(["--url", server.url, "--retry-refused", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["delivered"] == 1


def test_what_is_spooled_is_delivered_without_images(
    server: FailingServer,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    server.always = refusal(503, "draining")
    assert main([str(path), "--url", server.url, "--attempts", "1"]) == EXIT_SPOOLED
    out, err = capsys.readouterr()
    assert out == "0 delivered, 0 refused, 0 failed, 1 spooled\n"
    assert f"edge-send: {path}: spooled: HTTP 503, draining: it is draining" in err
    server.always = status(401)
    assert main(["--url", server.url]) == 1, "no later run will mend that"
    assert "--token-file" in capsys.readouterr().err
    server.always = None
    assert main(["--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 delivered, 0 refused, 0 failed, 0 spooled"
    assert main(["--url", server.url]) == 0
    assert capsys.readouterr().out == "0 delivered, 0 refused, 0 failed, 0 spooled\n"


def test_a_token_is_sent(
    server: FailingServer, spool: Path, golf_ball: NDArray[np.uint8], tmp_path: Path
) -> None:
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    (tmp_path / "token").write_text("a-secret-token\n")
    assert main([str(path), "--url", server.url, "--token-file", str(tmp_path / "token")]) == 0
    assert server.posts[0]["headers"]["Authorization"] == "Bearer a-secret-token"


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xc3\xa9", b"x" * 5000, None])
def test_a_token_file_that_is_none(
    content: bytes | None, spool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert main(["--url", "http://localhost:1", "--token-file", str(tmp_path / "token")]) == 1
    assert "token" in capsys.readouterr().err
    assert not spool.exists()


def test_a_token_that_others_could_read_is_warned_of(
    spool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("a-secret-token")
    assert (
        main(["--url", "http://192.0.2.1", "--token-file", str(tmp_path / "token")]) == 0
    )  # nothing is there to send
    assert "http without TLS shows the token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--url"),
        (
            ["--url", "http://host", "--attempts", "0"],
            "argument --attempts: '0' is not a whole number from 1",
        ),
        (["--url", "http://host", "--timeout", "nan"], "argument --timeout: 'nan' is not a number"),
        (["--url", "http://host", "-", "-"], "standard input is named twice"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "host:80"],
        ["--url", "http://host", "--bundle", "nowhere", "a.png"],
        ["--url", "http://host", "."],
    ],
)
def test_what_cannot_work_fails_at_once(
    arguments: list[str],
    spool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("edge-send: ")


@pytest.fixture
def pending(spool: Path) -> Path:
    """A spool in which a file of an earlier run waits."""
    with Spool(spool) as opened:
        opened.accept("earlier", b"earlier")
    return spool


def is_delivered(spool: Path) -> bool:
    return [(result["image"], result["status"]) for result in results(spool)] == [
        ("earlier", "delivered")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "edge-send: no image in empty"),
        (["nothing/*.jpg"], "edge-send: no image in nothing/*.jpg"),
        (["missing/"], "missing/: failed: no such file"),
        (["broken.png"], "broken.png: failed: broken.png is not an image"),
        (["a.png", "b.png", "--bundle", "missing"], "edge-send: no bundle in missing"),
        (["a.png", "--bundle", "empty"], "edge-send: "),
        (["-"], "edge-send: standard input is closed"),
    ],
    ids=[
        "empty folder",
        "pattern",
        "missing folder",
        "no image",
        "no bundle",
        "bundle without a manifest",
        "closed input",
    ],
)
def test_faults_of_new_images_do_not_strand_the_spool(
    arguments: list[str],
    message: str,
    server: FailingServer,
    pending: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main([*arguments, "--url", server.url]) == 1
    out, err = capsys.readouterr()
    assert is_delivered(pending)
    assert "1 delivered, 0 refused, " in out
    assert message in err
    assert err.count("no bundle in") <= 1, "what is wrong with all images is said once"


def test_faults_of_new_images_in_json(
    server: FailingServer,
    pending: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "runtime.edge", None)
    assert main(["a.png", "b.png", "--url", server.url, "--json"]) == 1
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert {line["image"]: line["status"] for line in lines} == {
        "earlier": "delivered",
        "a.png": "failed",
        "b.png": "failed",
    }
    assert last["error"].startswith("the encoder is not completely installed (")
    assert {**last, "error": None} == {
        "delivered": 1,
        "refused": 0,
        "failed": 2,
        "spooled": 0,
        "error": None,
    }


def test_a_fault_in_one_argument_stops_no_other(
    server: FailingServer,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(path), "--url", server.url]) == 1
    assert "1 delivered, 0 refused, 0 failed, 0 spooled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--url", "nonsense"], {}, "'nonsense' is not a URL"),
        (
            ["--url", "http://host", "--token-file", "missing"],
            {},
            "the token file cannot be read",
        ),
        (["--url", "http://host", "--ca-file", "missing"], {}, "missing holds no certificates"),
        (
            ["--url", "http://host"],
            {"ALL_PROXY": "socks4://me:secret@host"},
            "ALL_PROXY is 'socks4://host'",
        ),
    ],
)
def test_images_are_accepted_whatever_is_wrong_with_the_way(
    options: list[str],
    environment: dict[str, str],
    message: str,
    spool: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    assert main([str(path), *options, "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert err.startswith(f"edge-send: {message}")
    *_, last = map(json.loads, out.splitlines())
    assert last["spooled"] == 1
    assert last["error"].startswith(message)
    assert "secret" not in out + err
    with Spool(spool) as opened:
        assert len(opened.pending()) == 1
    assert main([str(path), *options]) == 1
    assert capsys.readouterr().err == err, "one line, without --json as well"


def test_images_are_accepted_without_httpx(
    spool: Path, golf_ball: NDArray[np.uint8], tmp_path: Path
) -> None:
    (path,) = crops(golf_ball, tmp_path / "images", 1)
    code = "import sys; sys.modules['httpx'] = None; from runtime.cli.edge_send import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, path, "--url", "http://host"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "0 delivered, 0 refused, 0 failed, 1 spooled\n"
    assert "pip install 'edgecloud-features[send]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_waits_is_never_without_a_reason(
    server: FailingServer,
    pending: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.always = refusal(500, "graph_failed")
    assert main(["--url", server.url, "--attempts", "1"]) == EXIT_SPOOLED
    out, err = capsys.readouterr()
    assert out == "0 delivered, 0 refused, 0 failed, 1 spooled\n"
    reason = "HTTP 500, graph_failed: it is graph_failed"
    assert err.splitlines() == [
        f"edge-send: earlier: spooled: {reason}",
        f"edge-send: 1 in the spool wait for the next run: {reason}",
    ]
    assert main(["--url", server.url, "--attempts", "1", "--json"]) == EXIT_SPOOLED
    line, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["image"], line["status"], line["error"]) == ("earlier", "spooled", reason)
    assert last["error"] == f"1 in the spool wait for the next run: {reason}"


def test_json_has_a_last_line_where_there_is_no_spool(
    pending: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pending / "results.jsonl").write_bytes(b"no result\n\n")
    assert main(["--url", "http://host", "--json"]) == 1
    last = json.loads(capsys.readouterr().out)
    assert last["spooled"] is None
    assert "is no result" in last["error"]


def test_a_spool_in_use(
    server: FailingServer, spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Spool(spool):
        assert main(["--url", server.url]) == 1
    assert "in use by another edge-send" in capsys.readouterr().err


@contextmanager
def edge_send(arguments: list[str], stdin: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """The command, which ends by SIGKILL unless it has ended."""
    command = [sys.executable, "-m", "runtime.cli.edge_send", *arguments]
    # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with running:
        try:
            yield running
        finally:
            running.kill()


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
        err
        == "edge-send: interrupted; what was accepted is in the spool, and the next run delivers it\n"
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
            == "edge-send: stopped by SIGTERM; what was accepted is in the spool, and the next run delivers it\n"
        )
    assert running.returncode == 143


def full_pipe() -> tuple[int, int]:
    """The ends of a pipe that takes no more."""
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
    code = "import sys; from runtime.cli import edge_send, reporter; reporter._PATIENCE = 0.3; sys.exit(edge_send.main(sys.argv[1:]))"
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
    command = f"set -o pipefail; {sys.executable} -m runtime.cli.edge_send --url {server.url} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120
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
    """Each turn is killed some posts, and some milliseconds, after it began to work; the last is not."""
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
    ]  # type: ignore[list-item]
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
    # What was accepted is delivered with no image named; then the command as it was.
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
