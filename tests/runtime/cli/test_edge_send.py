"""edge-send: its output, its exit statuses, and what it does with faults."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from failing_server import FailingServer, refusal, status
from numpy.typing import NDArray
from sending import crops, is_delivered, results

from runtime import EdgeEncoder
from runtime.cli.edge_send import EXIT_SPOOLED, main
from runtime.delivery.spool import Spool, key_of


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


def test_json_has_the_outcome_of_each_image(
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
def test_a_wrong_token_file_is_refused(
    content: bytes | None, spool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert main(["--url", "http://localhost:1", "--token-file", str(tmp_path / "token")]) == 1
    assert "token" in capsys.readouterr().err
    assert not spool.exists()


def test_a_warning_if_others_could_read_the_token(
    spool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("a-secret-token")
    # There is nothing to send.
    assert main(["--url", "http://192.0.2.1", "--token-file", str(tmp_path / "token")]) == 0
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
def test_faults_of_new_images_do_not_stop_the_spool(
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
    assert err.count("no bundle in") <= 1, "what is wrong with all images is reported once"


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
def test_images_are_accepted_with_a_wrong_endpoint(
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
    code = (
        "import sys; sys.modules['httpx'] = None; from runtime.cli.edge_send import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
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


def test_each_waiting_file_has_a_reason(
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
