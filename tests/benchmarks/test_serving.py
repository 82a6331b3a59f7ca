"""The load generator: what it sends, what it counts, and that it checks every answer."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from failing_server import FailingServer, Failure, Handler, hang_up, refusal, silence, status

from benchmarks import serving, serving_load
from benchmarks.common import BenchmarkError
from benchmarks.serving import describe_outcomes
from benchmarks.serving_load import DAMAGED_EVERY, Sample, Target, closed_load, open_load, run
from benchmarks.serving_report import FP32, SERVICES

RIGHT = Sample(b"data", 574)


def target(server: FailingServer) -> Target:
    return Target("the server", server.url, 0, Path())


def test_requests_are_sent_when_they_are_due() -> None:
    """However slow the answers are. Refused requests are counted separately."""

    def slow(handler: Handler) -> None:
        time.sleep(0.4)
        handler.answer(200, {"class_index": 574})

    with FailingServer() as server:
        server.chances = [slow, refusal(429, "queue_full")]
        server.always = slow
        outcomes = run(open_load(target(server), [RIGHT], 60, 0.8))
    row = describe_outcomes(outcomes, 0.8)
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
        (status(500, {"code": "internal"}), "which is not an expected refusal"),
        (status(429, {"error": "without a code"}), "which is not an expected refusal"),
        (refusal(400, "damaged_feature_file"), "which is not an expected refusal"),
        (hang_up, "no readable answer"),
        (status(200, b"garbage"), "no readable answer"),
        (silence, "gave no answer in 0.2 seconds"),
    ],
)
def test_what_is_wrong_stops_the_benchmark(
    failure: Failure | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_load, "ANSWER_TIMEOUT", 0.2 if failure is silence else 20.0)
    with FailingServer() as server:
        server.always = failure
        with pytest.raises(BenchmarkError, match=message):
            run(open_load(target(server), [Sample(b"data", 3)], 50, 0.3))


def test_a_damaged_file_may_find_no_room_either() -> None:
    with FailingServer() as server:
        server.always = refusal(429, "queue_full")
        outcomes = run(open_load(target(server), [Sample(b"damaged", None)], 50, 0.3))
    assert {one.code for one in outcomes} == {"429 queue_full"}


@pytest.mark.slow
def test_smoke(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--smoke", "--json", "--bundle", str(bundle)]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in SERVICES:
        assert [row["load"] for row in result[name]["loads"]] == list(serving.LOADS)
        assert all(row["sent"] == sum(row["answers"].values()) > 0 for row in result[name]["loads"])
    ours = result[FP32]
    assert ours["capacity"] > 0
    assert ours["capacity_of_graph"]["median"] > 0
    soak = ours["soak"]
    assert soak["answers"].get("400 damaged_feature_file", 0) == soak["sent"] // DAMAGED_EVERY
    assert len(soak["memory"]["samples"]) >= 3
