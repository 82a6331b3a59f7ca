"""Full queues, deadlines, failures, and clients that disconnect, over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from service_app import assert_refused, hold, wait_for

from runtime import CloudDecoder
from runtime.service import oip
from runtime.service.core import Service


def test_a_full_queue_refuses_before_reading_the_body(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, release = hold(monkeypatch)
        waiting = [
            asyncio.ensure_future(client.post("/v1/classify", content=feature_bytes))
            for _ in range(3)
        ]
        await wait_for(entered)
        while service.batcher.admitted < 3:
            await asyncio.sleep(0.01)
        response = await client.post("/v1/classify", content=feature_bytes)
        assert_refused(response, 429, "queue_full", "3 images are waiting")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        batch = await client.post("/v1/classify/batch", content=oip.join([feature_bytes] * 2))
        assert_refused(batch, 429, "queue_full")
        release.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3

    serve(work, max_queue=3)


def test_a_request_past_its_deadline_in_the_queue_is_refused(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        service.batcher.max_delay = 60
        entered, release = hold(monkeypatch)
        first = asyncio.ensure_future(client.post("/v1/classify", content=feature_bytes))
        await wait_for(entered)
        assert_refused(
            await client.post("/v1/classify", content=feature_bytes),
            504,
            "deadline",
            "no graph call was free",
        )
        release.set()
        assert (await first).status_code == 200

    serve(work, deadline_ms=300, max_wait_ms=0)


def test_a_failed_graph_call_fails_its_batch_and_the_service_resumes(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CloudDecoder, "logits_of_symbols", lambda *_: 1 / 0)
            assert_refused(
                await client.post("/v1/classify", content=feature_bytes),
                500,
                "graph_failed",
                "ZeroDivisionError",
            )
        assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200

    serve(work)


def test_an_unexpected_error_is_answered_as_internal_and_logged(
    serve: Callable[..., None],
    feature_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        monkeypatch.setattr(CloudDecoder, "predictions", lambda *_: 1 / 0)
        response = await client.post(
            "/v1/classify", content=feature_bytes, headers={"X-Request-ID": "find-me"}
        )
        assert_refused(response, 500, "internal", "find-me")
        assert "ZeroDivisionError" in caplog.text

    serve(work)


def test_a_client_that_disconnects_costs_no_graph_call(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, release = hold(monkeypatch)
        first = asyncio.ensure_future(client.post("/v1/classify", content=feature_bytes))
        await wait_for(entered)
        gone = asyncio.Event()
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if not sent:
                sent.append(None)
                return {"type": "http.request", "body": feature_bytes, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("the client has disconnected")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/classify",
            "query_string": b"",
            "headers": [],
            "root_path": "",
        }
        app: Any = client._transport.app  # type: ignore[attr-defined]
        left = asyncio.ensure_future(app(scope, receive, send))
        while service.batcher.admitted < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        gone.set()
        await left
        assert service.batcher.admitted == 1
        release.set()
        await first
        assert service.metrics.registry.get_sample_value("edgecloud_batch_images_sum") == 1
        assert (
            service.metrics.registry.get_sample_value(
                "edgecloud_refusals_total", {"code": "client_gone"}
            )
            == 1
        )

    serve(work)
