"""Answers over HTTP: right classes, shared graph calls, and batches in order."""

import asyncio
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.service import oip
from runtime.service.core import Service


def test_the_demo_gives_the_right_class(
    serve: Callable[..., None], feature_bytes: bytes, decoder: CloudDecoder
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.post("/v1/classify?top_k=3", content=feature_bytes)
        assert response.status_code == 200
        answer = response.json()
        assert answer["model"] == "ours_n4"
        assert answer["fingerprint"] == decoder.bundle.fingerprint.hex()[:8]
        assert answer["bytes"] == len(feature_bytes)
        assert set(answer["milliseconds"]) == {"coder", "queue", "graph"}
        expected = decoder.classify(feature_bytes, 3)
        assert [entry["label"] for entry in answer["classes"]] == [
            prediction.label for prediction in expected
        ]
        assert answer["classes"][0]["label"] == "golf ball"
        assert answer["classes"][0]["probability"] == pytest.approx(
            expected[0].probability, abs=1e-5
        )
        assert (
            len((await client.post("/v1/classify", content=feature_bytes)).json()["classes"]) == 5
        )
        assert (
            len(
                (await client.post("/v1/classify?top_k=999", content=feature_bytes)).json()[
                    "classes"
                ]
            )
            == 10
        )

    serve(work)


def test_simultaneous_requests_share_graph_calls_and_get_their_own_answers(
    serve: Callable[..., None],
    encoder: EdgeEncoder,
    decoder: CloudDecoder,
    golf_ball: NDArray[np.uint8],
) -> None:
    files = [
        encoder.encode(
            np.roll(golf_ball, 40 * index, axis=1)[: 96 + 64 * (index % 2), :96], as_is=True
        )
        for index in range(10)
    ]
    expected = [decoder.classify(data, 10) for data in files]

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        responses = await asyncio.gather(
            *(client.post("/v1/classify?top_k=10", content=data) for data in files)
        )
        for response, predictions in zip(responses, expected, strict=True):
            found = {entry["label"]: entry["probability"] for entry in response.json()["classes"]}
            assert found == pytest.approx(
                {prediction.label: prediction.probability for prediction in predictions}, abs=1e-4
            )
        calls = service.metrics.registry.get_sample_value("edgecloud_batch_images_count")
        assert calls is not None
        assert 2 <= calls < 10

    serve(work, max_wait_ms=50)


def test_a_batch_keeps_its_order(
    serve: Callable[..., None],
    encoder: EdgeEncoder,
    golf_ball: NDArray[np.uint8],
    feature_bytes: bytes,
) -> None:
    small = encoder.encode(golf_ball[:64, :64], as_is=True)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        answers = (
            await client.post(
                "/v1/classify/batch?top_k=1", content=oip.join([small, feature_bytes, small])
            )
        ).json()["answers"]
        assert [answer["bytes"] for answer in answers] == [
            len(small),
            len(feature_bytes),
            len(small),
        ]
        assert [len(answer["classes"]) for answer in answers] == [1, 1, 1]
        assert answers[1]["classes"][0]["label"] == "golf ball"

    serve(work)
