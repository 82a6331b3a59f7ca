"""What the tests of deliveries share: images, outcomes, and failures that may pass."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from failing_server import Failure, answer_and_hang_up, flood, hang_up, refusal, status

from runtime.delivery.sender import Encoded, Endpoint, Outcome, deliver
from runtime.delivery.spool import Entry, Spool
from runtime.errors import SendError

# Failures after which the next post may succeed.
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


def images(count: int, start: int = 0) -> list[Encoded]:
    """Encoded images with contents of their own; the data need not be feature files."""
    return [
        Encoded(f"image {number}", b"feature file %d" % number)
        for number in range(start, start + count)
    ]


def statuses(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.status for outcome in outcomes)


def outcomes_and_error(delivery: Iterator[Outcome]) -> tuple[list[Outcome], SendError | None]:
    """All outcomes of a delivery, and what it raised after them."""
    outcomes = []
    try:
        for outcome in delivery:
            outcomes.append(outcome)
    except SendError as error:
        return outcomes, error
    return outcomes, None


def results(spool: Spool) -> list[dict[str, object]]:
    return [json.loads(line) for line in spool.results_file.read_text().splitlines()]


def fault(endpoint: Endpoint, folder: Path) -> str:
    """The error of a delivery of one image, which stays in the spool."""
    said, outcomes = "", []
    with Spool(folder / "spool") as spool:
        try:
            for outcome in deliver(spool, endpoint, [Encoded("image", b"data")]):
                outcomes.append(outcome)
        except SendError as error:
            said = f"{type(error).__name__}: {error}"
        assert len(spool.pending()) == 1
    assert {outcome.status for outcome in outcomes} == {"spooled"}
    said = said or str(outcomes[0].error)
    assert "secret" not in said
    return said


Environment = Callable[..., None]


def accept(spool: Spool, image: str, data: bytes) -> Entry:
    entry = spool.accept(image, data)
    assert isinstance(entry, Entry)
    return entry
