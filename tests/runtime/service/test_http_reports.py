"""What the service reports about itself: metrics, log lines, its API, and the manual's codes."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import errors, refusals
from runtime.service import oip
from runtime.service.core import Service
from runtime.service.request import requests_log


def test_metrics(serve: Callable[..., None], feature_bytes: bytes) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await client.post("/v1/classify/batch", content=oip.join([feature_bytes, b"x"]))
        await client.get("/nowhere/whatever")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        value = service.metrics.registry.get_sample_value
        assert (
            value("edgecloud_requests_total", {"path": "/v1/classify/batch", "status": "200"}) == 1
        )
        assert value("edgecloud_requests_total", {"path": "other", "status": "404"}) == 1
        assert value("edgecloud_images_total", {"model": "ours_n4"}) == 1
        assert value("edgecloud_received_bytes_total") == len(feature_bytes) + 1 + 8
        assert (value("edgecloud_sent_bytes_total") or 0) > 100
        assert value("edgecloud_queue_images") == 0
        for stage in ("read", "coder", "queue", "graph", "total"):
            assert value("edgecloud_stage_seconds_count", {"stage": stage}) == 1
        assert 'edgecloud_refusals_total{code="not_a_feature_file"} 1.0' in response.text

    serve(work)
    serve(work)  # a second service in this process counts for itself


def test_a_line_for_each_request_and_no_payload(
    serve: Callable[..., None], feature_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.post(
            "/v1/classify", content=feature_bytes, headers={"X-Request-ID": "device-7.1"}
        )
        assert response.headers["x-request-id"] == "device-7.1"
        odd = await client.post(
            "/v1/classify", content=b"secret payload", headers={"X-Request-ID": "a\tb" * 50}
        )
        assert len(odd.headers["x-request-id"]) == 16

    with caplog.at_level(logging.INFO, requests_log.name):
        serve(work)
    lines = [record.request for record in caplog.records if record.name == requests_log.name]  # type: ignore[attr-defined]
    good, bad = lines
    assert good.pop("milliseconds").keys() == {"read", "coder", "queue", "graph", "total"}
    sent = good.pop("sent")
    assert sent > 100
    assert good == {
        "id": "device-7.1",
        "method": "POST",
        "path": "/v1/classify",
        "status": 200,
        "model": "ours_n4",
        "images": 1,
        "received": len(feature_bytes),
    }
    assert (bad["status"], bad["code"]) == (400, "not_a_feature_file")
    assert "secret" not in json.dumps(lines)


def test_the_openapi_document_and_its_page_describe_every_route(serve: Callable[..., None]) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        document = (await client.get("/openapi.json")).json()
        app: Any = client._transport.app  # type: ignore[attr-defined]
        assert set(document["paths"]) == {route.path for route in app.routes}
        for route in app.routes:
            assert set(document["paths"][route.path]) == {
                method.lower() for method in route.methods
            } - {"head"}
        page = (await client.get("/docs")).text
        for path in document["paths"]:
            assert path in page
        for outside in ("http:", "https:", "src=", "@import", "<script"):
            assert outside not in page
        assert (await client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]

    serve(work)


def test_every_refusal_has_its_own_code_and_the_manual_lists_it() -> None:
    def below(kind: type[errors.EdgeCloudError]) -> Iterator[type[errors.EdgeCloudError]]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)

    of_files = {errors.FeatureFileNotFoundError, errors.FeatureFileTooLargeError}
    expected = {*below(errors.FeatureFileError), *below(errors.RequestError)} - of_files
    assert set(refusals.STATUS) == expected
    codes = {refusals.code_of(kind): status for kind, status in refusals.STATUS.items()}
    assert len(codes) == len(refusals.STATUS)
    manual = (Path(__file__).resolve().parents[3] / "docs" / "SERVING.md").read_text()
    for code, status in codes.items():
        assert f"| {status} | `{code}` |" in manual
    for code, status in (
        (refusals.NOT_FOUND, 404),
        (refusals.METHOD_NOT_ALLOWED, 405),
        (refusals.INTERNAL, 500),
    ):
        assert f"| {status} | `{code}` |" in manual
    assert refusals.http_status(errors.TablesError("x")) == 500
