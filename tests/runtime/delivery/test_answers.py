"""What each answer of a server, a proxy or a firewall does to a file and to the run."""

import email.utils
import socket
import threading
import time

import httpx
import pytest
from deliveries import TRANSIENT, Environment, images, outcomes_and_error, results, statuses
from failing_server import FailingServer, Failure, drip, refusal, silence, status

from runtime.delivery.answers import explain, retry_after
from runtime.delivery.sender import Encoded, Endpoint, deliver
from runtime.delivery.spool import Spool, key_of
from runtime.errors import ServerAwayError, ServerSetupError


@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_may_pass_is_tried_again(
    server: FailingServer, spool: Spool, failure: Failure
) -> None:
    server.script = [failure, failure]
    outcomes = list(deliver(spool, Endpoint(server.url, in_flight=1), images(3)))
    assert statuses(outcomes) == {"delivered": 3}
    assert len(server.posts) == 5
    assert len(results(spool)) == 3


@pytest.mark.parametrize("failure", [silence, drip])
def test_an_answer_that_does_not_end_is_left(
    server: FailingServer, spool: Spool, failure: Failure
) -> None:
    server.script = [failure]
    start = time.monotonic()
    outcomes = list(deliver(spool, Endpoint(server.url, timeout=0.3), images(1)))
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
    outcomes = list(deliver(spool, Endpoint(server.url), images(3)))
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
    assert statuses(list(deliver(spool, Endpoint(server.url), images(3)))) == {
        "delivered": 2,
        "refused": 1,
    }
    assert len(server.posts) == count, "results are recorded, nothing is posted"
    server.poison.clear()
    spool.requeue_refused()
    outcomes = list(deliver(spool, Endpoint(server.url)))
    assert [(outcome.image, outcome.status) for outcome in outcomes] == [(bad.image, "delivered")]


SETUP: dict[str, tuple[Failure, str]] = {
    "wrong token": (
        refusal(401, "unauthorized"),
        "HTTP 401, unauthorized: it is unauthorized: give the right token",
    ),
    "forbidden": (status(403), "HTTP 403: give the right token with --token-file"),
    "redirect": (
        status(307, Location="http://elsewhere/"),
        "HTTP 307 to 'http://elsewhere/', which is not followed",
    ),
    "another service": (
        status(404, b"<html>"),
        "HTTP 404: give the address of a cloud-serve with --url",
    ),
    "another path": (refusal(404, "not_found"), "HTTP 404, not_found"),
    "another method": (status(405), "HTTP 405"),
}


@pytest.mark.parametrize(("failure", "message"), SETUP.values(), ids=SETUP.keys())
def test_a_wrong_setup_stops_and_keeps_everything(
    server: FailingServer, spool: Spool, failure: Failure, message: str
) -> None:
    server.always = failure
    outcomes, error = outcomes_and_error(
        deliver(spool, Endpoint(server.url, token="secret"), images(30))
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
            b"<title>400 Bad Request</title>\n"
            b"<h1>The plain HTTP request was sent to HTTPS port</h1>nginx",
            Server="nginx/1.24.0",
        ),
        "HTTP 400: this port speaks TLS: write https:// in --url "
        "(nginx/1.24.0 says '400 Bad Request The plain HTTP request was sent to",
    ),
    "no client certificate": (
        status(
            400, b"<h1>400 Bad Request</h1>No required SSL certificate was sent", Server="nginx"
        ),
        "HTTP 400: the server asks for a client certificate, which edge-send does not have",
    ),
    "a limit of a proxy": (
        status(413, b"<h1>413 Request Entity Too Large</h1>", Server="nginx/1.24.0"),
        "HTTP 413: a proxy in front of cloud-serve refuses a body of this size: "
        "raise its limit (nginx: client_max_body_size) "
        "(nginx/1.24.0 says '413 Request Entity Too Large')",
    ),
    "a firewall": (status(403, b"Blocked\x1b[2J by policy 7"), "says 'Blocked?[2J by policy 7')"),
    "a gateway's JSON": (
        status(400, {"code": 400, "message": "bad"}),
        "this answer is not from cloud-serve",
    ),
    "a code of another service": (
        refusal(422, "unprocessable"),
        "this answer is not from cloud-serve",
    ),
    "a code of cloud-serve with another status": (
        refusal(422, "damaged_feature_file"),
        "this answer is not from cloud-serve",
    ),
    "a body that was lost on the way": (
        refusal(400, "empty_feature_file"),
        "the request was changed on the way",
    ),
    "a body that was compressed on the way": (
        refusal(415, "unsupported_encoding"),
        "the request was changed on the way",
    ),
    "a query that was changed on the way": (
        refusal(400, "malformed_request"),
        "the request was changed on the way",
    ),
}


@pytest.mark.parametrize(("failure", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_an_answer_of_another_server_refuses_no_file(
    server: FailingServer, spool: Spool, failure: Failure, message: str
) -> None:
    server.always = failure
    outcomes, error = outcomes_and_error(deliver(spool, Endpoint(server.url), images(30)))
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
    outcomes, error = outcomes_and_error(deliver(spool, Endpoint(server.url), images(30)))
    assert isinstance(error, ServerSetupError)
    assert "says 'blocked'" in str(error)
    assert statuses(outcomes) == {"delivered": 27, "spooled": 3}
    # The next run reports the files again, which it did not accept itself.
    outcomes, error = outcomes_and_error(deliver(spool, Endpoint(server.url)))
    assert sorted((outcome.image, outcome.status) for outcome in outcomes) == [
        (bad.image, "spooled") for bad in images(3)
    ]
    server.poison.clear()
    assert statuses(list(deliver(spool, Endpoint(server.url)))) == {"delivered": 3}


def test_a_file_without_bytes_is_refused(server: FailingServer, spool: Spool) -> None:
    server.always = refusal(400, "empty_feature_file")
    assert statuses(list(deliver(spool, Endpoint(server.url), [Encoded("none")]))) == {"refused": 1}


def test_the_token_does_not_follow_a_redirect(server: FailingServer, spool: Spool) -> None:
    with FailingServer() as other:
        server.always = status(308, Location=f"{other.url}/v1/classify")
        with pytest.raises(ServerSetupError):
            list(deliver(spool, Endpoint(server.url, token="secret"), images(1)))
        assert other.posts == []


def date_in(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(server: FailingServer, spool: Spool, form: str) -> None:
    # A date has whole seconds, so that up to one second of it is lost.
    server.script = [
        refusal(429, "queue_full", Retry_After="1" if form == "seconds" else date_in(2.5))
    ]
    assert statuses(list(deliver(spool, Endpoint(server.url, in_flight=2), images(10)))) == {
        "delivered": 10
    }
    first, *others = sorted(post["time"] for post in server.posts)
    # One more post may have been under way.
    began_later = [moment for moment in others if moment - first > 0.3]
    assert len(began_later) >= 9
    assert min(began_later) - first >= 0.99


def test_a_server_that_asks_for_an_hour_gets_it(server: FailingServer, spool: Spool) -> None:
    server.always = refusal(503, "draining", Retry_After="3600")
    start = time.monotonic()
    with pytest.raises(ServerAwayError, match="HTTP 503, draining"):
        list(deliver(spool, Endpoint(server.url), images(5)))
    assert time.monotonic() - start < 5
    assert len(spool.pending()) == 5


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "Wed, 99 Foo 2026", "²"])
def test_a_wrong_retry_after_is_ignored(text: str) -> None:
    assert retry_after(text) == 0.0


def test_a_server_of_another_protocol(spool: Spool) -> None:
    """One that greets, as SSH does, and one that accepts connections and says nothing."""
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
            # The file may be at fault, or the server: the file is left for another run.
            endpoint = Endpoint(
                f"http://127.0.0.1:{listener.getsockname()[1]}", attempts=2, timeout=0.3
            )
            assert statuses(list(deliver(spool, endpoint, images(1)))) == {"spooled": 1}
            listener.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()
    assert len(spool.pending()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ConnectTimeout(""), "no connection to cloud.example:80 within 2 seconds"),
        (httpx.ReadTimeout(""), "no answer within 4 seconds"),
        (
            httpx.RemoteProtocolError("illegal status line: bytearray(b'\\x15\\x03\\x01')"),
            "speaks TLS: write https:// in --url",
        ),
        (
            httpx.RemoteProtocolError("Server disconnected without"),
            "cloud.example:80 closed the connection without an answer; if it is a TLS port",
        ),
        (
            httpx.RemoteProtocolError("illegal header line"),
            "RemoteProtocolError: illegal header line",
        ),
    ],
)
def test_what_no_answer_means(error: Exception, message: str, environment: Environment) -> None:
    assert message in explain(error, Endpoint("http://cloud.example", timeout=4), None).message


def test_networks_that_are_not_there() -> None:
    for number, text in ((101, "Network is unreachable"), (113, "No route to host")):
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = ExceptionGroup(
            "", [OSError(number, "Connect call failed"), OSError(number, "Connect call failed")]
        )
        assert (
            explain(error, Endpoint("https://host"), None).message
            == f"no connection to host:443: {text}"
        )
