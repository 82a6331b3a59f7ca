"""Delivery against a real server that fails in every way that one of them can."""

import email.utils
import itertools
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from failing_server import (
    CLASSES,
    FailingServer,
    Failure,
    answer_and_hang_up,
    drip,
    flood,
    hang_up,
    refusal,
    silence,
    status,
)

from runtime.delivery import sender
from runtime.delivery.answers import retry_after
from runtime.delivery.sender import Encoded, Outcome, Server, deliver
from runtime.delivery.spool import Spool, key_of
from runtime.errors import (
    CertificateFileError,
    SendError,
    ServerAwayError,
    ServerSetupError,
    ServerUrlError,
    SpoolDiskError,
)


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with FailingServer() as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    """Backoff in hundredths of a second."""
    with (
        mock.patch.object(sender, "_FIRST_WAIT", 0.01),
        mock.patch.object(sender, "_LONGEST_WAIT", 0.05),
    ):
        yield


def images(count: int, start: int = 0) -> list[Encoded]:
    return [
        Encoded(f"image {number}", b"feature file %d" % number)
        for number in range(start, start + count)
    ]


def statuses(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.status for outcome in outcomes)


def outcomes_and_error(delivery: Iterator[Outcome]) -> tuple[list[Outcome], SendError | None]:
    outcomes = []
    try:
        for outcome in delivery:
            outcomes.append(outcome)
    except SendError as error:
        return outcomes, error
    return outcomes, None


def results(spool: Spool) -> list[dict[str, object]]:
    return [json.loads(line) for line in spool.results_file.read_text().splitlines()]


def test_each_image_is_posted_once_under_its_key(server: FailingServer, spool: Spool) -> None:
    outcomes = list(deliver(spool, Server(server.url, token="a-token", top_k=1), images(20)))
    assert statuses(outcomes) == {"delivered": 20}
    assert {post["headers"]["Idempotency-Key"] for post in server.posts} == {
        key_of(image.data) for image in images(20)
    }
    assert {post["body"] for post in server.posts} == {image.data for image in images(20)}
    first = server.posts[0]
    assert first["path"] == "/v1/classify?top_k=1"
    assert first["headers"]["Authorization"] == "Bearer a-token"
    assert first["headers"]["Content-Type"] == "application/octet-stream"
    assert len({post["peer"] for post in server.posts}) <= 4, "connections are kept"
    assert (outcomes[0].result or {})["classes"] == CLASSES[:1]
    assert Counter(str(result["image"]) for result in results(spool)) == Counter(
        image.image for image in images(20)
    )
    assert spool.pending() == []


TRANSIENT: dict[str, Failure] = {
    "429": refusal(429, "queue_full", Retry_After="0"),
    "503": refusal(503, "draining"),
    "504": refusal(504, "deadline"),
    "408": refusal(408, "slow_body"),
    "500": refusal(500, "graph_failed"),
    "a proxy's 502": status(502, b"<html>Bad Gateway"),
    "hung up": hang_up,
    "hung up after the work": answer_and_hang_up,
    "a portal's page": status(200, b"<html>Welcome to our hotel"),
    "no JSON object": status(200, [1, 2]),
    "no classes": status(200, {"classes": []}),
    "no class": status(200, {"classes": [7]}),
    "a class without a probability": status(
        200, {"classes": [{"label": "x", "probability": "high", "class_index": 1}]}
    ),
    "not a probability": status(
        200, {"classes": [{"label": "x", "probability": float("nan"), "class_index": 1}]}
    ),
    "nested too deep": status(200, b"[" * 100_000),
    "half an answer": status(200, b'{"classes"'),
    "too much": flood,
}


@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_may_pass_is_tried_again(
    server: FailingServer, spool: Spool, failure: Failure
) -> None:
    server.script = [failure, failure]
    outcomes = list(deliver(spool, Server(server.url, in_flight=1), images(3)))
    assert statuses(outcomes) == {"delivered": 3}
    assert len(server.posts) == 5
    assert len(results(spool)) == 3


@pytest.mark.parametrize("failure", [silence, drip])
def test_an_answer_that_does_not_end_is_left(
    server: FailingServer, spool: Spool, failure: Failure
) -> None:
    server.script = [failure]
    start = time.monotonic()
    outcomes = list(deliver(spool, Server(server.url, timeout=0.3), images(1)))
    assert statuses(outcomes) == {"delivered": 1}
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    ("code", "name"),
    [(400, "damaged_feature_file"), (404, "unknown_model"), (413, "too_many_symbols")],
)
def test_a_refusal_is_recorded_and_never_posted_again(
    server: FailingServer, spool: Spool, code: int, name: str
) -> None:
    bad = images(1)[0]
    server.poison[bad.data] = refusal(code, name)
    outcomes = list(deliver(spool, Server(server.url), images(3)))
    assert statuses(outcomes) == {"delivered": 2, "refused": 1}
    (refused,) = [outcome for outcome in outcomes if outcome.status == "refused"]
    assert refused.image == bad.image
    assert refused.error == f"it is {name}"
    result = spool.result(key_of(bad.data)) or {}
    assert (result["status"], result["http"], result["code"]) == ("refused", code, name)
    assert [
        path.read_bytes().partition(b"\n")[2] for path in (spool.folder / "refused").iterdir()
    ] == [bad.data]
    count = len(server.posts)
    assert statuses(list(deliver(spool, Server(server.url), images(3)))) == {
        "delivered": 2,
        "refused": 1,
    }
    assert len(server.posts) == count, "results are recorded, nothing is posted"
    server.poison.clear()
    spool.requeue_refused()
    outcomes = list(deliver(spool, Server(server.url)))
    assert [(outcome.image, outcome.status) for outcome in outcomes] == [(bad.image, "delivered")]


SETUP: dict[str, tuple[Failure, str]] = {
    "wrong token": (
        refusal(401, "unauthorized"),
        "HTTP 401, unauthorized: it is unauthorized: name the right token's file",
    ),
    "forbidden": (status(403), "HTTP 403: name the right token's file with --token-file"),
    "redirect": (
        status(307, Location="http://elsewhere/"),
        "HTTP 307 to 'http://elsewhere/', which is not followed",
    ),
    "another service": (
        status(404, b"<html>"),
        "HTTP 404: name a cloud-serve's address with --url",
    ),
    "another path": (refusal(404, "not_found"), "HTTP 404, not_found"),
    "another method": (status(405), "HTTP 405"),
}


@pytest.mark.parametrize(("failure", "message"), SETUP.values(), ids=SETUP.keys())
def test_a_wrong_set_up_stops_and_keeps_everything(
    server: FailingServer, spool: Spool, failure: Failure, message: str
) -> None:
    server.always = failure
    outcomes, error = outcomes_and_error(
        deliver(spool, Server(server.url, token="secret"), images(30))
    )
    assert isinstance(error, ServerSetupError)
    assert message in str(error)
    assert statuses(outcomes) == {"spooled": 30}
    assert len(server.posts) <= 4, "no more than were under way"
    assert len(spool.pending()) == 30
    assert results(spool) == []


FOREIGN: dict[str, tuple[Failure, str]] = {
    "plain HTTP on a port of TLS": (
        status(
            400,
            b"<title>400 Bad Request</title>\n<h1>The plain HTTP request was sent to HTTPS port</h1>nginx",
            Server="nginx/1.24.0",
        ),
        "HTTP 400: that port speaks TLS: write https:// in --url (nginx/1.24.0 says '400 Bad Request The plain HTTP request was sent to",
    ),
    "no client's certificate": (
        status(
            400, b"<h1>400 Bad Request</h1>No required SSL certificate was sent", Server="nginx"
        ),
        "HTTP 400: the server asks for a client's certificate, and edge-send has none",
    ),
    "a limit of a proxy": (
        status(413, b"<h1>413 Request Entity Too Large</h1>", Server="nginx/1.24.0"),
        "HTTP 413: what stands before cloud-serve takes no body of this size: allow more there (nginx: client_max_body_size) "
        "(nginx/1.24.0 says '413 Request Entity Too Large')",
    ),
    "a firewall": (status(403, b"Blocked\x1b[2J by policy 7"), "says 'Blocked?[2J by policy 7')"),
    "a gateway's JSON": (
        status(400, {"code": 400, "message": "bad"}),
        "that is not cloud-serve's word",
    ),
    "a code of another service": (refusal(422, "unprocessable"), "that is not cloud-serve's word"),
    "one of ours with another status": (
        refusal(422, "damaged_feature_file"),
        "that is not cloud-serve's word",
    ),
    "a body that was lost on its way": (
        refusal(400, "empty_feature_file"),
        "the request was changed on its way",
    ),
    "a body that was compressed on its way": (
        refusal(415, "unsupported_encoding"),
        "the request was changed on its way",
    ),
    "a query that was changed on its way": (
        refusal(400, "malformed_request"),
        "the request was changed on its way",
    ),
}


@pytest.mark.parametrize(("failure", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_others_answer_condemns_no_file(
    server: FailingServer, spool: Spool, failure: Failure, message: str
) -> None:
    server.always = failure
    outcomes, error = outcomes_and_error(deliver(spool, Server(server.url), images(30)))
    assert isinstance(error, ServerSetupError)
    assert message in str(error)
    assert statuses(outcomes) == {"spooled": 30}
    assert len(server.posts) <= 4, "no more than were under way"
    assert len(spool.pending()) == 30
    assert results(spool) == []


def test_a_file_that_a_firewall_dislikes_does_not_hold_up_others(
    server: FailingServer, spool: Spool
) -> None:
    for bad in images(3):
        server.poison[bad.data] = status(403, b"blocked")
    outcomes, error = outcomes_and_error(deliver(spool, Server(server.url), images(30)))
    assert isinstance(error, ServerSetupError)
    assert "says 'blocked'" in str(error)
    assert statuses(outcomes) == {"delivered": 27, "spooled": 3}
    # The next run says so again, of files that it did not accept.
    outcomes, error = outcomes_and_error(deliver(spool, Server(server.url)))
    assert sorted((outcome.image, outcome.status) for outcome in outcomes) == [
        (bad.image, "spooled") for bad in images(3)
    ]
    server.poison.clear()
    assert statuses(list(deliver(spool, Server(server.url)))) == {"delivered": 3}


def test_a_file_without_bytes_is_refused(server: FailingServer, spool: Spool) -> None:
    server.always = refusal(400, "empty_feature_file")
    assert statuses(list(deliver(spool, Server(server.url), [Encoded("none")]))) == {"refused": 1}


def test_the_token_does_not_follow_a_redirect(server: FailingServer, spool: Spool) -> None:
    with FailingServer() as other:
        server.always = status(308, Location=f"{other.url}/v1/classify")
        with pytest.raises(ServerSetupError):
            list(deliver(spool, Server(server.url, token="secret"), images(1)))
        assert other.posts == []


def test_nobody_there_and_then_the_spool_is_delivered_oldest_first(spool: Spool) -> None:
    with FailingServer() as server:
        port = server.server_address[1]
    outcomes, error = outcomes_and_error(deliver(spool, Server(server.url, attempts=2), images(5)))
    assert isinstance(error, ServerAwayError)
    assert f"no result from {server.url}/v1/classify" in str(error)
    assert [outcome.status for outcome in outcomes] == ["spooled"] * 5
    assert f"no connection to localhost:{port}: Connection refused" in (outcomes[0].error or "")
    with FailingServer(port) as server:
        later = list(deliver(spool, Server(server.url, in_flight=1), images(2, start=5)))
        assert [post["body"] for post in server.posts] == [image.data for image in images(7)]
    assert [outcome.image for outcome in later] == [f"image {number}" for number in range(7)]
    assert len(results(spool)) == 7


def test_a_server_that_comes_back_while_images_come(spool: Spool) -> None:
    with FailingServer() as server:
        port = server.server_address[1]

    def slowly() -> Iterator[Encoded]:
        yield from images(3)
        time.sleep(0.5)  # many more attempts than two
        with FailingServer(port):
            yield from images(3, start=3)
            done.wait(10)

    done = threading.Event()
    outcomes = []
    for outcome in deliver(spool, Server(server.url, attempts=2), slowly()):
        outcomes.append(outcome)
        if len(outcomes) == 6:
            done.set()
    assert statuses(outcomes) == {"delivered": 6}


def test_a_file_that_the_server_cannot_bear_does_not_hold_up_others(
    server: FailingServer, spool: Spool
) -> None:
    bad = images(1)[0]
    server.poison[bad.data] = hang_up
    outcomes = list(deliver(spool, Server(server.url, attempts=3), images(40)))
    assert statuses(outcomes) == {"delivered": 39, "spooled": 1}
    assert outcomes[-1].image == bad.image
    assert Counter(post["body"] for post in server.posts)[bad.data] == 3
    assert [spool.read(entry)[1] for entry in spool.pending()] == [bad.data]


def test_a_file_of_an_earlier_run_that_is_left_says_why(
    server: FailingServer, spool: Spool
) -> None:
    spool.accept("old", b"old")
    server.always = refusal(500, "graph_failed")
    outcomes = list(deliver(spool, Server(server.url, attempts=3)))
    assert [(outcome.image, outcome.status, outcome.error) for outcome in outcomes] == [
        ("old", "spooled", "HTTP 500, graph_failed: it is graph_failed")
    ]


@pytest.mark.parametrize(
    "server",
    [Server("nonsense"), Server("http://host", ca_file="/missing")],
    ids=["url", "ca_file"],
)
def test_what_is_wrong_with_the_way_is_raised_after_the_images_are_accepted(
    server: Server, spool: Spool
) -> None:
    outcomes, error = outcomes_and_error(
        deliver(spool, server, [Encoded("bad", error="no image"), *images(2)])
    )
    assert isinstance(error, ServerUrlError | CertificateFileError)
    assert [(outcome.image, outcome.status) for outcome in outcomes] == [
        ("bad", "failed"),
        ("image 0", "spooled"),
        ("image 1", "spooled"),
    ]
    assert outcomes[-1].error == str(error)
    assert len(spool.pending()) == 2


def test_images_that_fail_to_come_leave_the_spool_delivered(
    server: FailingServer, spool: Spool
) -> None:
    def broken() -> Iterator[Encoded]:
        yield from images(1)
        raise KeyError("the camera is gone")

    spool.accept("old", b"old")
    with pytest.raises(KeyError, match="the camera is gone"):
        list(deliver(spool, Server(server.url), broken()))
    assert {result["image"]: result["status"] for result in results(spool)} == {
        "old": "delivered",
        "image 0": "delivered",
    }


def test_images_that_do_not_come_hold_up_neither_the_spool_nor_the_end(
    server: FailingServer, spool: Spool
) -> None:
    never = threading.Event()

    def camera() -> Iterator[Encoded]:
        never.wait(60)
        yield from ()

    spool.accept("old", b"old")
    delivery = deliver(spool, Server(server.url), camera())
    assert next(delivery).image == "old"
    delivery.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "delivery"]
    never.set()


def test_whoever_takes_the_outcomes_may_stop(server: FailingServer, spool: Spool) -> None:
    delivery = deliver(spool, Server(server.url), images(20))
    next(delivery)
    deadline = time.monotonic() + 60
    while spool.pending() or len(results(spool)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert statuses(list(delivery)) == {"delivered": 19}


def date_in(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(server: FailingServer, spool: Spool, form: str) -> None:
    # A date has whole seconds: it may be up to one nearer than it was made.
    server.script = [
        refusal(429, "queue_full", Retry_After="1" if form == "seconds" else date_in(2.5))
    ]
    assert statuses(list(deliver(spool, Server(server.url, in_flight=2), images(10)))) == {
        "delivered": 10
    }
    first, *others = sorted(post["time"] for post in server.posts)
    began_later = [
        moment for moment in others if moment - first > 0.3
    ]  # one more may have been under way
    assert len(began_later) >= 9
    assert min(began_later) - first >= 0.99


def test_a_server_that_asks_for_an_hour_gets_it(server: FailingServer, spool: Spool) -> None:
    server.always = refusal(503, "draining", Retry_After="3600")
    start = time.monotonic()
    with pytest.raises(ServerAwayError, match="HTTP 503, draining"):
        list(deliver(spool, Server(server.url), images(5)))
    assert time.monotonic() - start < 5
    assert len(spool.pending()) == 5


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "Wed, 99 Foo 2026", "²"])
def test_a_retry_after_that_is_none(text: str) -> None:
    assert retry_after(text) == 0.0


def test_backoff_grows_and_is_jittered(server: FailingServer, spool: Spool) -> None:
    server.script = [hang_up] * 5
    with (
        mock.patch.object(sender, "_FIRST_WAIT", 0.1),
        mock.patch.object(sender, "_LONGEST_WAIT", 0.4),
    ):
        list(deliver(spool, Server(server.url), images(1)))
    gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(server.posts)]
    for gap, most in zip(gaps, (0.1, 0.2, 0.4, 0.4, 0.4), strict=True):
        assert gap >= 0.5 * most
    assert len({round(gap, 3) for gap in gaps[2:]}) > 1


def test_a_full_spool_waits_for_a_server_that_answers(
    server: FailingServer, tmp_path: Path
) -> None:
    with Spool(tmp_path, limit=4 * 4096) as spool:
        assert statuses(list(deliver(spool, Server(server.url), images(50)))) == {"delivered": 50}


def test_a_full_spool_refuses_new_images_where_the_server_is_away(tmp_path: Path) -> None:
    with FailingServer() as server:
        pass
    with Spool(tmp_path, limit=4 * 4096) as spool:
        outcomes, error = outcomes_and_error(
            deliver(spool, Server(server.url, attempts=2), images(6))
        )
        assert isinstance(error, ServerAwayError)
        assert {outcome.image: outcome.status for outcome in outcomes} == {
            **{f"image {number}": "spooled" for number in range(4)},
            **{f"image {number}": "failed" for number in (4, 5)},
        }
        assert "the spool" in str(outcomes[0].error)
        assert [spool.read(entry)[0] for entry in spool.pending()] == [
            f"image {number}" for number in range(4)
        ]


def test_an_image_given_twice_has_one_result(server: FailingServer, spool: Spool) -> None:
    same = [Encoded("one", b"same"), Encoded("two", b"same"), Encoded("three", b"same")]
    outcomes = list(deliver(spool, Server(server.url), same))
    assert sorted((outcome.image, outcome.status) for outcome in outcomes) == [
        (name, "delivered") for name in ("one", "three", "two")
    ]
    assert len(results(spool)) == len(server.posts) == 1


def test_an_image_that_fails_stops_no_other(server: FailingServer, spool: Spool) -> None:
    outcomes = list(
        deliver(spool, Server(server.url), [Encoded("bad", error="no image"), *images(2)])
    )
    assert statuses(outcomes) == {"failed": 1, "delivered": 2}


def test_a_damaged_file_of_the_spool_is_set_aside(server: FailingServer, spool: Spool) -> None:
    entry = spool.accept("a", b"a" * 50)
    assert not isinstance(entry, dict)
    (spool.folder / "pending" / entry.name).write_bytes(b'{"image": "a"}\n' + b"b" * 50)
    outcomes = list(deliver(spool, Server(server.url), images(2)))
    assert statuses(outcomes) == {"refused": 1, "delivered": 2}
    assert [result["code"] for result in results(spool) if result["status"] == "refused"] == [
        "damaged_in_spool"
    ]
    assert b"b" * 50 not in [post["body"] for post in server.posts]


def test_a_file_of_the_spool_that_cannot_be_read_is_left(
    server: FailingServer, spool: Spool
) -> None:
    entry = spool.accept("a", b"a")
    assert not isinstance(entry, dict)
    (spool.folder / "pending" / entry.name).unlink()
    outcomes = list(deliver(spool, Server(server.url), images(2)))
    assert statuses(outcomes) == {"delivered": 2, "spooled": 1}
    assert [outcome.key for outcome in outcomes if "cannot be read" in (outcome.error or "")] == [
        entry.key
    ]


def test_results_that_cannot_be_recorded_stop_the_run(server: FailingServer, spool: Spool) -> None:
    with (
        mock.patch.object(Spool, "_record", side_effect=OSError(28, "No space left on device")),
        pytest.raises(
            SpoolDiskError,
            match=r"results.jsonl cannot be written, .* stays in the spool: .*No space left",
        ),
    ):
        list(deliver(spool, Server(server.url), images(10)))
    assert len(spool.pending()) == 10
    # Those that are delivered from the spool before they are named again are told twice.
    outcomes = list(deliver(spool, Server(server.url), images(10)))
    assert {(outcome.image, outcome.status) for outcome in outcomes} == {
        (image.image, "delivered") for image in images(10)
    }
    assert len(results(spool)) == 10
    assert max(Counter(post["body"] for post in server.posts).values()) <= 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cloud.example",
        "ftp://cloud.example",
        "http://",
        "http://host:99999",
        "https://me:secret@host",
        "http://host/?a=b",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(
        ServerUrlError, match=r"(name one like https://cloud.example:8000|leave it out)"
    ):
        Server(url).endpoint()


def test_a_path_before_the_service_is_kept() -> None:
    assert (
        str(Server("https://host:1234/prefix/").endpoint())
        == "https://host:1234/prefix/v1/classify?top_k=5"
    )


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("https://far", True),
        ("http://far", False),
        ("http://localhost:80", True),
        ("http://127.0.0.1", True),
    ],
)
def test_who_can_read_the_token(url: str, hidden: bool) -> None:
    assert Server(url).hides_token() == hidden


def test_a_server_of_another_protocol(spool: Spool) -> None:
    """One that greets, as SSH does, and one that takes connections and says nothing."""
    for greeting in (b"SSH-2.0-OpenSSH\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            kept = []

            def greet(
                listener: socket.socket = listener,
                greeting: bytes = greeting,
                kept: list[socket.socket] = kept,
            ) -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    kept.append(connection)
                    connection.sendall(greeting)

            threading.Thread(target=greet, daemon=True).start()
            # Whether the file or the server is at fault cannot be told: it is left for another run.
            server = Server(
                f"http://127.0.0.1:{listener.getsockname()[1]}", attempts=2, timeout=0.3
            )
            assert statuses(list(deliver(spool, server, images(1)))) == {"spooled": 1}
            listener.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()
    assert len(spool.pending()) == 1


def test_random_failures_lose_nothing_and_record_once(
    server: FailingServer, tmp_path: Path
) -> None:
    server.chances = [*TRANSIENT.values(), refusal(429, "queue_full")]
    everything = images(60)
    random.Random(2).shuffle(everything)
    for turn in range(20):
        with Spool(tmp_path) as spool:
            try:
                for _ in deliver(
                    spool,
                    Server(server.url, attempts=3, in_flight=3),
                    everything if turn == 0 else (),
                ):
                    pass
            except ServerAwayError:
                continue
            if not spool.pending():
                break
    with Spool(tmp_path) as spool:
        assert spool.pending() == []
        assert Counter(result["key"] for result in results(spool)) == Counter(
            key_of(image.data) for image in everything
        )
    assert set(server.answered) == {key_of(image.data) for image in everything}


def test_ssl_context_verifies_by_default() -> None:
    context = Server("https://host").trust()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
