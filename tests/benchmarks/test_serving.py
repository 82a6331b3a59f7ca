"""The load generator: its figures are worth what it checks."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from failing_server import FailingServer, Failure, Handler, hang_up, refusal, silence, status

from benchmarks import serving
from benchmarks.serving import (
    BenchmarkError,
    Sample,
    Target,
    closed_load,
    describe_shots,
    open_load,
    run,
)

RIGHT = Sample(b"data", 574)


def target(server: FailingServer) -> Target:
    return Target("the server", server.url, 0, Path())


def test_requests_are_sent_when_their_time_has_come() -> None:
    """However slow the answers are; and what is refused is counted apart."""

    def slow(handler: Handler) -> None:
        time.sleep(0.4)
        handler.answer(200, {"class_index": 574})

    with FailingServer() as server:
        server.chances = [slow, refusal(429, "queue_full")]
        server.always = slow
        shots = run(open_load(target(server), [RIGHT], 60, 0.8))
    row = describe_shots(shots, 0.8)
    assert 25 < row["sent"] < 75
    assert row["sent"] == sum(row["answers"].values()) == len(server.posts)
    assert set(row["answers"]) == {"200", "429 queue_full"}
    assert row["right_ms"]["p50"] >= 400
    assert row["sent_late_ms"]["p50"] < 200
    assert row["goodput"] * 0.8 < row["answers"]["200"], "some came after the load's end"


def test_the_capacity_of_a_server_that_takes_its_time() -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.1)
        handler.answer(200, {"class_index": 574})

    with FailingServer() as server:
        server.always = slow
        assert run(closed_load(target(server), [RIGHT], 1.5, 2)) == pytest.approx(20, rel=0.5)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (None, "answers class 574, CloudDecoder gives 3"),
        (status(500, {"code": "internal"}), "which is no refusal that was due"),
        (status(429, {"error": "without a code"}), "which is no refusal that was due"),
        (refusal(400, "damaged_feature_file"), "which is no refusal that was due"),
        (hang_up, "no answer that can be read"),
        (status(200, b"garbage"), "no answer that can be read"),
        (silence, "gave no answer in 0.2 seconds"),
    ],
)
def test_what_is_wrong_stops_the_benchmark(
    failure: Failure | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HANG", 0.2 if failure is silence else 20.0)
    with FailingServer() as server:
        server.always = failure
        with pytest.raises(BenchmarkError, match=message):
            run(open_load(target(server), [Sample(b"data", 3)], 50, 0.3))


def test_a_damaged_file_may_find_no_room_either() -> None:
    with FailingServer() as server:
        server.always = refusal(429, "queue_full")
        shots = run(open_load(target(server), [Sample(b"damaged", None)], 50, 0.3))
    assert {shot.code for shot in shots} == {"429 queue_full"}


@pytest.mark.slow
def test_smoke(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--smoke", "--json", "--bundle", str(bundle)]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in serving.SERVICES:
        assert [row["load"] for row in result[name]["loads"]] == list(serving.LOADS)
        assert all(row["sent"] == sum(row["answers"].values()) > 0 for row in result[name]["loads"])
    ours = result["cloud-serve"]
    assert ours["capacity"] > 0
    assert ours["capacity_of_graph"]["median"] > 0
    soak = ours["soak"]
    assert (
        soak["answers"].get("400 damaged_feature_file", 0) == soak["sent"] // serving.DAMAGED_EVERY
    )
    assert len(soak["memory"]["samples"]) >= 3
