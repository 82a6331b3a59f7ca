"""Deliveries to a real server that fails: nothing is lost, and each file has one result."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

import pytest
from deliveries import TRANSIENT, images, outcomes_and_error, results, statuses
from failing_server import CLASSES, FailingServer, hang_up, refusal

from runtime.delivery import sender
from runtime.delivery.results import Results
from runtime.delivery.sender import Encoded, Endpoint, deliver
from runtime.delivery.spool import Spool, key_of
from runtime.errors import CertificateFileError, ServerAwayError, ServerUrlError, SpoolDiskError


def test_each_image_is_posted_once_under_its_key(server: FailingServer, spool: Spool) -> None:
    outcomes = list(deliver(spool, Endpoint(server.url, token="a-token", top_k=1), images(20)))
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


def test_no_wait_of_the_callers_thread_is_long(
    server: FailingServer, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that comes just before a wait is handled after it."""
    waits = []

    class Watched(SimpleQueue[object]):
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            waits.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(sender, "SimpleQueue", Watched)
    assert statuses(deliver(spool, Endpoint(server.url), images(3))) == {"delivered": 3}
    assert len(waits) >= 4
    assert all(wait is not None and wait <= 1 for wait in waits)


def test_a_server_that_is_away_and_then_the_spool_oldest_first(spool: Spool) -> None:
    with FailingServer() as server:
        port = server.server_address[1]
    outcomes, error = outcomes_and_error(
        deliver(spool, Endpoint(server.url, attempts=2), images(5))
    )
    assert isinstance(error, ServerAwayError)
    assert f"no result from {server.url}/v1/classify" in str(error)
    assert [outcome.status for outcome in outcomes] == ["spooled"] * 5
    assert f"no connection to localhost:{port}: Connection refused" in (outcomes[0].error or "")
    with FailingServer(port) as server:
        later = list(deliver(spool, Endpoint(server.url, in_flight=1), images(2, start=5)))
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
    for outcome in deliver(spool, Endpoint(server.url, attempts=2), slowly()):
        outcomes.append(outcome)
        if len(outcomes) == 6:
            done.set()
    assert statuses(outcomes) == {"delivered": 6}


def test_a_file_that_breaks_the_server_does_not_hold_up_others(
    server: FailingServer, spool: Spool
) -> None:
    bad = images(1)[0]
    server.poison[bad.data] = hang_up
    outcomes = list(deliver(spool, Endpoint(server.url, attempts=3), images(40)))
    assert statuses(outcomes) == {"delivered": 39, "spooled": 1}
    assert outcomes[-1].image == bad.image
    assert Counter(post["body"] for post in server.posts)[bad.data] == 3
    assert [spool.read(entry)[1] for entry in spool.pending()] == [bad.data]


def test_a_file_of_an_earlier_run_that_is_left_says_why(
    server: FailingServer, spool: Spool
) -> None:
    spool.accept("old", b"old")
    server.always = refusal(500, "graph_failed")
    outcomes = list(deliver(spool, Endpoint(server.url, attempts=3)))
    assert [(outcome.image, outcome.status, outcome.error) for outcome in outcomes] == [
        ("old", "spooled", "HTTP 500, graph_failed: it is graph_failed")
    ]


@pytest.mark.parametrize(
    "endpoint",
    [Endpoint("nonsense"), Endpoint("http://host", ca_file="/missing")],
    ids=["url", "ca_file"],
)
def test_a_wrong_endpoint_is_raised_after_the_images_are_accepted(
    endpoint: Endpoint, spool: Spool
) -> None:
    outcomes, error = outcomes_and_error(
        deliver(spool, endpoint, [Encoded("bad", error="no image"), *images(2)])
    )
    assert isinstance(error, ServerUrlError | CertificateFileError)
    assert [(outcome.image, outcome.status) for outcome in outcomes] == [
        ("bad", "failed"),
        ("image 0", "spooled"),
        ("image 1", "spooled"),
    ]
    assert outcomes[-1].error == str(error)
    assert len(spool.pending()) == 2


def test_the_spool_is_delivered_when_the_images_fail(server: FailingServer, spool: Spool) -> None:
    def broken() -> Iterator[Encoded]:
        yield from images(1)
        raise KeyError("the camera is gone")

    spool.accept("old", b"old")
    with pytest.raises(KeyError, match="the camera is gone"):
        list(deliver(spool, Endpoint(server.url), broken()))
    assert {result["image"]: result["status"] for result in results(spool)} == {
        "old": "delivered",
        "image 0": "delivered",
    }


def test_images_that_never_come_delay_neither_the_spool_nor_the_end(
    server: FailingServer, spool: Spool
) -> None:
    never = threading.Event()

    def camera() -> Iterator[Encoded]:
        never.wait(60)
        yield from ()

    spool.accept("old", b"old")
    delivery = deliver(spool, Endpoint(server.url), camera())
    assert next(delivery).image == "old"
    delivery.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "delivery"]
    never.set()


def test_a_slow_reader_of_the_outcomes_delays_no_delivery(
    server: FailingServer, spool: Spool
) -> None:
    delivery = deliver(spool, Endpoint(server.url), images(20))
    next(delivery)
    deadline = time.monotonic() + 60
    while spool.pending() or len(results(spool)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert statuses(list(delivery)) == {"delivered": 19}


def test_backoff_grows_and_is_jittered(server: FailingServer, spool: Spool) -> None:
    server.script = [hang_up] * 5
    with (
        mock.patch.object(sender, "_FIRST_WAIT", 0.1),
        mock.patch.object(sender, "_LONGEST_WAIT", 0.4),
    ):
        list(deliver(spool, Endpoint(server.url), images(1)))
    gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(server.posts)]
    for gap, most in zip(gaps, (0.1, 0.2, 0.4, 0.4, 0.4), strict=True):
        assert gap >= 0.5 * most
    assert len({round(gap, 3) for gap in gaps[2:]}) > 1


def test_a_full_spool_waits_for_a_server_that_answers(
    server: FailingServer, tmp_path: Path
) -> None:
    with Spool(tmp_path, limit=4 * 4096) as spool:
        assert statuses(list(deliver(spool, Endpoint(server.url), images(50)))) == {"delivered": 50}


def test_a_full_spool_refuses_new_images_where_the_server_is_away(tmp_path: Path) -> None:
    with FailingServer() as server:
        pass
    with Spool(tmp_path, limit=4 * 4096) as spool:
        outcomes, error = outcomes_and_error(
            deliver(spool, Endpoint(server.url, attempts=2), images(6))
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
    outcomes = list(deliver(spool, Endpoint(server.url), same))
    assert sorted((outcome.image, outcome.status) for outcome in outcomes) == [
        (name, "delivered") for name in ("one", "three", "two")
    ]
    assert len(results(spool)) == len(server.posts) == 1


def test_an_image_that_fails_stops_no_other(server: FailingServer, spool: Spool) -> None:
    outcomes = list(
        deliver(spool, Endpoint(server.url), [Encoded("bad", error="no image"), *images(2)])
    )
    assert statuses(outcomes) == {"failed": 1, "delivered": 2}


def test_a_damaged_file_of_the_spool_is_set_aside(server: FailingServer, spool: Spool) -> None:
    entry = spool.accept("a", b"a" * 50)
    assert not isinstance(entry, dict)
    (spool.folder / "pending" / entry.name).write_bytes(b'{"image": "a"}\n' + b"b" * 50)
    outcomes = list(deliver(spool, Endpoint(server.url), images(2)))
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
    outcomes = list(deliver(spool, Endpoint(server.url), images(2)))
    assert statuses(outcomes) == {"delivered": 2, "spooled": 1}
    assert [outcome.key for outcome in outcomes if "cannot be read" in (outcome.error or "")] == [
        entry.key
    ]


def test_results_that_cannot_be_recorded_stop_the_run(server: FailingServer, spool: Spool) -> None:
    with (
        mock.patch.object(Results, "append", side_effect=OSError(28, "No space left on device")),
        pytest.raises(
            SpoolDiskError,
            match=r"results.jsonl cannot be written, .* stays in the spool: .*No space left",
        ),
    ):
        list(deliver(spool, Endpoint(server.url), images(10)))
    assert len(spool.pending()) == 10
    # A file that is delivered from the spool before its image comes again has two outcomes.
    outcomes = list(deliver(spool, Endpoint(server.url), images(10)))
    assert {(outcome.image, outcome.status) for outcome in outcomes} == {
        (image.image, "delivered") for image in images(10)
    }
    assert len(results(spool)) == 10
    assert max(Counter(post["body"] for post in server.posts).values()) <= 2


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
                    Endpoint(server.url, attempts=3, in_flight=3),
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
