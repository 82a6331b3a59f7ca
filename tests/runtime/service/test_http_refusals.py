"""Requests and feature files that are refused over HTTP, each with its status and code."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from service_app import assert_refused

from runtime.codec import feature_file
from runtime.service import oip
from runtime.service.bundles import ServedBundles
from runtime.service.core import Service

FORM, URLENCODED = "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda data: b"", 400, "empty_feature_file"),
        (lambda data: b"x" + data, 400, "not_a_feature_file"),
        (lambda data: data[:1] + b"\x0f" + data[2:], 400, "unsupported_version"),
        (lambda data: data[:-1], 400, "truncated_feature_file"),
        (lambda data: data + b"\0", 400, "trailing_bytes"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], 400, "damaged_feature_file"),
        (
            lambda data: feature_file.build(data[2:6], 224, 224, bytes(10)),
            400,
            "damaged_feature_file",
        ),
        (
            lambda data: feature_file.build(data[2:6], 8 << 20, 8 << 20, bytes(10)),
            413,
            "too_many_symbols",
        ),
        (lambda data: feature_file.build(b"\1\2\3\4", 224, 224, bytes(10)), 404, "unknown_model"),
    ],
)
def test_each_refusal_of_a_feature_file_has_its_code(
    serve: Callable[..., None],
    feature_bytes: bytes,
    change: Callable[[bytes], bytes],
    status: int,
    code: str,
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        content = assert_refused(
            await client.post("/v1/classify", content=change(feature_bytes)), status, code
        )
        assert ("known" in content) == (code == "unknown_model")
        if code == "unknown_model":
            assert [model["name"] for model in content["known"]] == ["ours_n4"]
        batch = await client.post(
            "/v1/classify/batch",
            content=oip.join([feature_bytes, change(feature_bytes), feature_bytes]),
        )
        assert batch.status_code == 200
        answers = batch.json()["answers"]
        assert [answer["status"] for answer in answers] == [200, status, 200]
        assert answers[1]["code"] == code
        assert answers[0]["classes"][0]["label"] == answers[2]["classes"][0]["label"] == "golf ball"
        assert (
            service.metrics.registry.get_sample_value("edgecloud_refusals_total", {"code": code})
            == 2
        )
        assert service.batcher.admitted == 0
        assert service.held_bytes == 0

    serve(work)


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("/v1/classify?top_k=0", b"x", 400, "malformed_request"),
        ("/v1/classify?top_k=-1", b"x", 400, "malformed_request"),
        ("/v1/classify?top_k=%C2%B2", b"x", 400, "malformed_request"),
        ("/v1/classify/batch", b"", 400, "malformed_request"),
        ("/v1/classify/batch", struct.pack("<I", 5) + b"four", 400, "malformed_request"),
        ("/v1/classify/batch", b"\1\0", 400, "malformed_request"),
        ("/v1/classify/batch", oip.join([b"x"] * 9), 413, "too_many_files"),
        ("/v2/models/nobody/infer", b"{}", 404, "unknown_model"),
        ("/v2/models/ours_n4/infer", b"{}", 400, "malformed_request"),
        ("/v2/models/ours_n4/infer", b'{"inputs": "\\ud800"}', 400, "malformed_request"),
        ("/v2/models/%ED%A0%80/infer", b"{}", 404, "unknown_model"),
        ("/v2/models/ours_n4/versions/405c5bcd/infer", b"{}", 404, "not_found"),
        ("/v2/systemsharedmemory/region/r/register", b"{}", 400, "unsupported_shared_memory"),
        ("/v2/cudasharedmemory/unregister", b"{}", 400, "unsupported_shared_memory"),
        ("/v1/classify/", b"x", 404, "not_found"),
        ("/v2/models", b"x", 405, "method_not_allowed"),
    ],
)
def test_malformed_requests_are_refused(
    serve: Callable[..., None], path: str, content: bytes, status: int, code: str
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert_refused(await client.post(path, content=content), status, code)

    serve(work, max_files=8)


def test_a_body_larger_than_any_feature_file_is_refused(
    serve: Callable[..., None], loaded: ServedBundles
) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1 << 16
            yield bytes(1 << 16)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        limit = loaded.max_file_bytes
        assert limit == 8 * (1 << 20) + 128
        response = await client.post(
            "/v1/classify", content=b"", headers={"Content-Length": str(limit + 1)}
        )
        assert_refused(response, 413, "body_too_large", f"at most {limit} are accepted")
        response = await client.post("/v1/classify", content=b"", headers={"Content-Length": "x"})
        assert_refused(response, 400, "malformed_request")
        response = await client.post("/v1/classify", content=endless())
        assert_refused(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"
        assert limit < taken < limit + (4 << 20)
        assert service.held_bytes == 0

    serve(work)


def test_bodies_of_all_requests_together_have_a_limit(serve: Callable[..., None]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        response = await client.post("/v1/classify", content=bytes(2000))
        assert_refused(response, 429, "queue_full", "2000 bytes")
        assert response.headers["retry-after"] == "1"
        assert service.held_bytes == 0

    serve(work, max_buffer_bytes=1000)


def test_a_body_that_does_not_arrive_in_time_is_refused(serve: Callable[..., None]) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\xfc"
        await asyncio.sleep(60)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.post("/v1/classify", content=slow())
        assert_refused(response, 408, "slow_body", "only 1 bytes of the body arrived")

    serve(work, body_seconds=0.05)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_refused(
    serve: Callable[..., None], feature_bytes: bytes, coding: str
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.post(
            "/v1/classify", content=feature_bytes, headers={"Content-Encoding": coding}
        )
        assert_refused(response, 415, "unsupported_encoding")
        assert response.headers["accept-encoding"] == "identity"
        headers = [("Content-Encoding", "identity"), ("Content-Encoding", coding)]
        assert (
            await client.post("/v1/classify", content=feature_bytes, headers=headers)
        ).status_code == 415
        assert (
            await client.post(
                "/v1/classify", content=feature_bytes, headers={"Content-Encoding": "Identity"}
            )
        ).status_code == 200

    serve(work)


def test_a_form_is_refused_with_the_advice_to_send_the_file_itself(
    serve: Callable[..., None], feature_bytes: bytes
) -> None:
    """Forms as `curl -F file=@FILE` and `curl -d @FILE` send them.

    `curl --data-binary @FILE` has the content type of the latter, and sends the whole file.
    """
    form = (
        b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n"
        + feature_bytes
        + b"\r\n--x--\r\n"
    )
    stripped = feature_bytes.translate(None, b"\0\r\n")
    assert len(stripped) < len(feature_bytes)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        async def post(path: str, content: bytes, kind: str) -> httpx.Response:
            return await client.post(path, content=content, headers={"Content-Type": kind})

        advice = "send the file as the raw body: curl --data-binary @FILE"
        assert_refused(await post("/v1/classify", form, FORM), 400, "not_a_feature_file", advice)
        assert_refused(
            await post("/v1/classify", stripped, URLENCODED), 400, "truncated_feature_file", advice
        )
        assert_refused(
            await post("/v1/classify/batch", form, FORM), 400, "malformed_request", advice
        )
        assert_refused(
            await post("/v1/classify/batch", oip.join([b"xy"]).translate(None, b"\0"), URLENCODED),
            400,
            "malformed_request",
            advice,
        )
        assert_refused(
            await post("/v2/models/ours_n4/infer", form, FORM), 400, "malformed_request", advice
        )
        damaged = await post("/v1/classify", feature_bytes[:-1], URLENCODED)
        assert "curl" not in assert_refused(damaged, 400, "truncated_feature_file")["error"]
        for kind in (FORM, URLENCODED, "", "image/jpeg"):
            assert (await post("/v1/classify", feature_bytes, kind)).status_code == 200, kind

    serve(work)
