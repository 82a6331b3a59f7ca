"""Hostile input: the service answers or refuses every request, never with 500.

Answers to good requests stay the same meanwhile.
"""

import http.client
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray
from served import served

from runtime import CloudDecoder, EdgeEncoder
from runtime.service.app import Settings
from runtime.service.openapi import document

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install '.[dev]'"
)

from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

BATCH = 64
PATHS = ("/v1/classify", "/v1/classify/batch", "/v2/models/ours_n4/infer")


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[tuple[str, int]]:
    """Host and port of the service."""
    with served(Settings(bundles=(bundle,), threads=2, deadline_ms=60_000)) as (_, address):
        yield address


@pytest.fixture(scope="module")
def files(golf_ball: NDArray[np.uint8], encoder: EdgeEncoder) -> list[bytes]:
    """Feature files of parts of the demo's picture."""
    return [
        encoder.encode(golf_ball[top : top + 224, left : left + 224])
        for top in range(0, 256, 128)
        for left in range(0, 416, 104)
    ]


OPERATIONS = [
    (path, method.upper()) for path, methods in document()["paths"].items() for method in methods
]


@pytest.fixture(scope="module")
def api(address: tuple[str, int]) -> Any:
    return schemathesis.openapi.from_url("http://{}:{}/openapi.json".format(*address))


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_openapi_document_allows(api: Any, path: str, method: str) -> None:
    """Answers are as the document describes, and none is a 500."""
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=api[path][method].as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(checks=checks)

    ask()


def post(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with flipped bits, truncated, extended, spliced, random, or with a right checksum."""
    changed = bytearray(data)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.randint(1, 8)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case 1:
            del changed[chance.randrange(len(changed)) :]
        case 2:
            changed += chance.randbytes(chance.randint(1, 64))
        case 3:
            at = chance.randrange(len(changed))
            changed[at : at + chance.randint(1, 32)] = chance.randbytes(chance.randint(0, 64))
        case 4:
            changed = bytearray(chance.randbytes(chance.randint(0, 2 * len(data))))
        case _:
            changed[chance.randrange(2, len(changed) - 4)] ^= 1 << chance.randrange(8)
            changed[-4:] = zlib.crc32(changed[:-4]).to_bytes(4, "little")
    return bytes(changed)


def framed(files: list[bytes]) -> bytes:
    """The body of a batch: each file after its length."""
    return b"".join(len(data).to_bytes(4, "little") + data for data in files)


@pytest.mark.parametrize("count", [150, pytest.param(600, marks=pytest.mark.slow)])
def test_random_and_mutated_bodies_cause_no_500(
    count: int, address: tuple[str, int], files: list[bytes]
) -> None:
    chance = random.Random(0)
    whole = {
        "/v1/classify": lambda: chance.choice(files),
        "/v1/classify/batch": lambda: framed(chance.choices(files, k=2)),
        "/v2/models/ours_n4/infer": lambda: json.dumps(
            {
                "inputs": [
                    {"name": "feature_file", "datatype": "BYTES", "shape": [1], "data": ["/AEB"]}
                ]
            }
        ).encode(),
    }
    found: Counter[int] = Counter()
    connection = http.client.HTTPConnection(*address, timeout=30)
    for number in range(count):
        path = PATHS[number % 3]
        status, content = post(connection, path, mutated(whole[path](), chance))
        assert status in (200, 400, 404, 413), (path, status, content)
        assert status == 200 or {"code", "error"} <= set(content)
        found[status] += 1
    assert found[400] > count / 2


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_bad_feature_files_change_no_good_answer(
    count: int, address: tuple[str, int], files: list[bytes], decoder: CloudDecoder
) -> None:
    best = [decoder.classify(data, 1)[0] for data in files]

    def batch(number: int) -> Counter[str]:
        """One good file at a random place among bad ones."""
        chance = random.Random(number)
        place, which = chance.randrange(BATCH), chance.randrange(len(files))
        sent = [mutated(chance.choice(files), chance) for _ in range(BATCH)]
        sent[place] = files[which]
        connection = http.client.HTTPConnection(*address, timeout=120)
        status, content = post(connection, "/v1/classify/batch?top_k=1", framed(sent))
        connection.close()
        assert status == 200, content
        found: Counter[str] = Counter()
        for index, (data, answer) in enumerate(zip(sent, content["answers"], strict=True)):
            if data == files[which]:
                assert answer["classes"][0]["class_index"] == best[which].class_index
                assert answer["classes"][0]["probability"] == pytest.approx(
                    best[which].probability, abs=1e-5
                )
                found["good"] += 1
            else:
                assert index != place
                assert answer["status"] in (400, 404, 413), answer
                found[answer["code"]] += 1
        return found

    batches = -(-count // (BATCH - 1))
    with ThreadPoolExecutor(2) as clients:  # two batches fill the service's queue
        found = sum(clients.map(batch, range(batches)), Counter[str]())
    assert found["good"] >= batches
    assert found.total() - found["good"] >= count - batches
    assert {
        "damaged_feature_file",
        "truncated_feature_file",
        "trailing_bytes",
        "not_a_feature_file",
        "unknown_model",
    } <= set(found)
