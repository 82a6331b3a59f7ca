"""The service in this process, with real bundles: paths, answers, refusals, several bundles, reloading, metrics, the log."""

import asyncio
import base64
import json
import logging
import shutil
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder, errors, refusals
from runtime.codec import feature_file
from runtime.service import app as server
from runtime.service import oip
from runtime.service.app import Service, Settings, create_app
from runtime.service.models import Models

TOKEN = "0123456789abcdef-first"
GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture(scope="module")
def models(bundle: Path) -> Models:
    service = Service(Settings(bundles=(bundle,), threads=1))
    service.load()
    return service.served


@pytest.fixture(scope="module")
def random_feature_bytes(random_bundle: Path) -> bytes:
    return EdgeEncoder(random_bundle, threads=1).encode(GOLF_BALL)


@asynccontextmanager
async def running(
    settings: Settings, models: Models | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """The application between its start and its stop. Of `models` those are taken that the settings name."""
    app = create_app(settings)
    service: Service = app.state.service
    if models:
        service.models = models
        service.load()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", timeout=60
        ) as client,
    ):
        yield client, service


@pytest.fixture
def serve(bundle: Path, models: Models) -> Callable[..., None]:
    """Runs a test's body against a service of the default bundle."""

    def serve(
        work: Callable[[httpx.AsyncClient, Service], Awaitable[None]], **settings: Any
    ) -> None:
        async def body() -> None:
            given = {"bundles": (bundle,), "threads": 1, "deadline_ms": 60_000.0, **settings}
            async with (
                asyncio.timeout(120),
                running(Settings(**given), models) as (client, service),
            ):
                await work(client, service)

        asyncio.run(body())

    return serve


def hold(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """Makes graph calls wait; gives what says that one has begun, and what lets them go on."""
    entered, gate = threading.Event(), threading.Event()
    run = CloudDecoder.logits_of_symbols

    def held(self: CloudDecoder, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        entered.set()
        assert gate.wait(60)
        return run(self, symbols)

    monkeypatch.setattr(CloudDecoder, "logits_of_symbols", held)
    return entered, gate


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


def assert_refused(
    response: httpx.Response, status: int, code: str, text: str = ""
) -> dict[str, Any]:
    content: dict[str, Any] = response.json()
    assert (response.status_code, content["code"]) == (status, code), content
    assert text in content["error"]
    return content


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


def test_requests_at_once_share_graph_calls_and_none_gets_anothers_answer(
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
        assert service.buffered == 0

    serve(work)


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
def test_requests_that_are_not_built_as_they_should(
    serve: Callable[..., None], path: str, content: bytes, status: int, code: str
) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert_refused(await client.post(path, content=content), status, code)

    serve(work, max_files=8)


def test_a_body_that_is_larger_than_any_feature_file(
    serve: Callable[..., None], models: Models
) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1 << 16
            yield bytes(1 << 16)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        limit = models.max_file_bytes
        assert limit == 8 * (1 << 20) + 128
        response = await client.post(
            "/v1/classify", content=b"", headers={"Content-Length": str(limit + 1)}
        )
        assert_refused(response, 413, "body_too_large", f"{limit} are taken")
        response = await client.post("/v1/classify", content=b"", headers={"Content-Length": "x"})
        assert_refused(response, 400, "malformed_request")
        response = await client.post("/v1/classify", content=endless())
        assert_refused(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"
        assert limit < taken < limit + (4 << 20)
        assert service.buffered == 0

    serve(work)


def test_bodies_of_all_requests_together_are_bounded(serve: Callable[..., None]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        response = await client.post("/v1/classify", content=bytes(2000))
        assert_refused(response, 429, "queue_full", "2000 bytes")
        assert response.headers["retry-after"] == "1"
        assert service.buffered == 0

    serve(work, max_buffer_bytes=1000)


def test_a_body_that_does_not_come(serve: Callable[..., None]) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\xfc"
        await asyncio.sleep(60)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.post("/v1/classify", content=slow())
        assert_refused(response, 408, "slow_body", "1 bytes of the body came")

    serve(work, body_seconds=0.05)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP"])
def test_a_compressed_body(serve: Callable[..., None], feature_bytes: bytes, coding: str) -> None:
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


FORM, URLENCODED = "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"


def test_a_form_is_told_to_send_the_file_itself(
    serve: Callable[..., None], feature_bytes: bytes
) -> None:
    """As `curl -F file=@FILE` and `curl -d @FILE` send it; `curl --data-binary @FILE` names the latter's type, too."""
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


def test_tokens(serve: Callable[..., None], feature_bytes: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n\nanother-token-of-one-line\n")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        async def status(
            token: str | None, path: str = "/v1/classify", content: bytes | None = feature_bytes
        ) -> int:
            headers = {} if token is None else {"Authorization": token.encode("latin-1")}
            response = await client.request(
                "POST" if content else "GET", path, content=content, headers=headers
            )
            if response.status_code == 401:
                assert_refused(response, 401, "unauthorized", "Bearer TOKEN")
                assert response.headers["www-authenticate"] == "Bearer"
            return response.status_code

        assert (
            await status(f"Bearer {TOKEN}")
            == await status("bearer another-token-of-one-line")
            == 200
        )
        for wrong in (
            None,
            "",
            TOKEN,
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            "Bearer ",
            f"Bearer {TOKEN[:-1]}",
            "Bearer \xe9",
        ):
            assert await status(wrong) == 401, wrong
        for path in ("/metrics", "/v2", "/v2/models", "/v2/models/ours_n4", "/nowhere"):
            assert await status(None, path, None) == 401, path
        for path in ("/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"):
            assert await status(None, path, None) == 200, path
        file.write_text("a-third-token-instead\n")
        assert await service.reload()
        assert await status(f"Bearer {TOKEN}") == 401
        assert await status("Bearer a-third-token-instead") == 200
        file.write_text("weak\n")
        assert not await service.reload()
        assert await status("Bearer a-third-token-instead") == 200

    serve(work, token_file=file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no token"),
        (b"\n \n", "holds no token"),
        (b"short", "line 1, has 5 characters"),
        (f"{TOKEN}\nshort".encode(), "line 2, has 5 characters"),
        (f"{TOKEN} with blanks".encode(), "line 1, has more than"),
        (f"{TOKEN}\twith a tab".encode(), "line 1, has more than"),
        ("Schlüssel-Schlüssel-Schlüssel".encode(), "line 1, has more than"),
        (
            f"\n# the devices in Bern\n{TOKEN}\n".encode(),
            "line 2, begins with #: there are no comments",
        ),
        (b"#-------------------\n", "line 1, begins with #"),
        (TOKEN.encode("utf-16"), "is not ASCII text"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_good_tokens(
    bundle: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(errors.TokenFileError, match=reason) as refused:
        Service(Settings(bundles=(bundle,), token_file=tmp_path / "tokens")).load()
    assert TOKEN not in str(refused.value)


def test_tokens_as_editors_write_them(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(
        f"\ufeff{TOKEN}  \r\n\r\nanother-token-of-one-line\r\n".encode()
    )
    (tmp_path / "plain").write_text(f"{TOKEN}\nanother-token-of-one-line")
    assert server._read_tokens(tmp_path / "tokens") == server._read_tokens(tmp_path / "plain")


def test_a_full_queue_refuses_before_it_reads(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, gate = hold(service, monkeypatch)
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
        gate.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3

    serve(work, max_queue=3)


def test_a_deadline_that_passes_in_the_queue(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        service.batcher.max_delay = 60
        entered, gate = hold(service, monkeypatch)
        first = asyncio.ensure_future(client.post("/v1/classify", content=feature_bytes))
        await wait_for(entered)
        assert_refused(
            await client.post("/v1/classify", content=feature_bytes),
            504,
            "deadline",
            "no turn came",
        )
        gate.set()
        assert (await first).status_code == 200

    serve(work, deadline_ms=300, max_wait_ms=0)


def test_a_graph_that_fails_fails_its_batch_and_the_service_goes_on(
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


def test_a_fault_of_the_service_itself_is_told_as_such(
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


def test_a_client_that_goes_costs_no_graph_call(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, gate = hold(service, monkeypatch)
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
            raise AssertionError("nobody is there to be told")

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
        gate.set()
        await first
        assert service.metrics.registry.get_sample_value("edgecloud_batch_images_sum") == 1
        assert (
            service.metrics.registry.get_sample_value(
                "edgecloud_refusals_total", {"code": "client_gone"}
            )
            == 1
        )

    serve(work)


def test_draining_refuses_what_comes_and_answers_what_was_admitted(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, gate = hold(service, monkeypatch)
        first = asyncio.ensure_future(client.post("/v1/classify", content=feature_bytes))
        await wait_for(entered)
        assert (await client.get("/v2/health/ready")).status_code == 200
        service.drain()
        response = await client.post("/v1/classify", content=feature_bytes)
        assert_refused(response, 503, "draining")
        assert response.headers["retry-after"] == "1"
        for path in ("/v2/health/ready", "/v2/models/ours_n4/ready"):
            response = await client.get(path)
            assert (response.status_code, response.json()["ready"]) == (503, False)
        assert (await client.get("/v2/health/live")).status_code == 200
        assert not await service.drained()  # for the call takes longer than the bound
        gate.set()
        assert (await first).json()["classes"][0]["label"] == "golf ball"
        assert await service.drained()

    serve(work, drain_seconds=0.1)


async def incomplete() -> AsyncIterator[bytes]:
    yield b"\xfc"
    await asyncio.sleep(60)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify/batch", "/v2/models/ours_n4/infer"])
def test_draining_refuses_a_body_that_has_not_wholly_come(
    serve: Callable[..., None],
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server, "_DISCARD_SECONDS", 0.1)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        posted = asyncio.ensure_future(client.post(path, content=incomplete()))
        while not service.buffered:
            await asyncio.sleep(0.01)
        service.drain()
        response = await posted
        assert_refused(response, 503, "draining", "before the request was whole")
        assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")
        assert service.buffered == 0
        service.drain()  # a second time, when nothing is read

    serve(work)
    assert "Traceback" not in caplog.text


def test_a_server_that_cancels_what_is_left_has_it_answered(serve: Callable[..., None]) -> None:
    """Even while a refused body is still read."""

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        posted = asyncio.ensure_future(client.post("/v1/classify", content=incomplete()))
        while not service.buffered:
            await asyncio.sleep(0.01)
        service.drain()
        await asyncio.sleep(0.05)
        posted.cancel()  # httpx runs the application within
        assert_refused(await posted, 503, "draining")

    serve(work)


def test_before_its_bundles_are_loaded(bundle: Path, feature_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)

    async def work() -> None:
        app = create_app(
            Settings(
                bundles=(bundle,), threads=1, deadline_ms=60_000, token_file=tmp_path / "tokens"
            ),
            load=False,
        )
        service: Service = app.state.service
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            asyncio.timeout(60),
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
            ) as client,
        ):
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            response = await client.get("/v2/health/ready")
            assert (response.status_code, response.json()) == (503, {"ready": False})
            for path in ("/v2/models", "/v2/models/ours_n4/ready", "/metrics", "/v2", "/nowhere"):
                response = await client.get(path)
                assert_refused(response, 503, "starting")
                assert response.headers["retry-after"] == "1"
            assert_refused(
                await client.post("/v1/classify", content=feature_bytes), 503, "starting"
            )
            reloaded = asyncio.ensure_future(
                service.reload()
            )  # comes after what it would read again
            await service.open()
            assert await reloaded
            assert (await client.get("/v2/health/ready")).status_code == 200
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200
            assert service.batcher.seconds_per_image > 0
            del client.headers["Authorization"]
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 401
            service.drain()
            assert not await service.reload()

    asyncio.run(work())


def copy_bundle(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_several_bundles_and_variants(
    bundle: Path,
    random_bundle: Path,
    feature_bytes: bytes,
    random_feature_bytes: bytes,
    tmp_path: Path,
) -> None:
    """The fingerprint chooses; a variant is asked by its name."""
    variant = copy_bundle(bundle, tmp_path / "variant")

    async def work() -> None:
        settings = Settings(bundles=(bundle, random_bundle, variant), threads=1, deadline_ms=60_000)
        async with running(settings) as (client, _):
            for data, name in ((feature_bytes, "ours_n4"), (random_feature_bytes, "random")):
                assert (await client.post("/v1/classify", content=data)).json()["model"] == name
            listed = (await client.get("/v2/models")).json()["models"]
            assert [(model["name"], model["serves"]) for model in listed] == [
                ("ours_n4", True),
                ("random", True),
                ("variant", False),
            ]
            request = {
                "inputs": [
                    {
                        "name": "feature_file",
                        "datatype": "BYTES",
                        "shape": [1],
                        "data": [base64.b64encode(feature_bytes).decode()],
                    }
                ]
            }
            answer = (await client.post("/v2/models/variant/infer", json=request)).json()
            assert answer["model_name"] == "variant"
            assert answer["outputs"][0]["data"] == ["golf ball"]
            assert_refused(
                await client.post("/v2/models/random/infer", json=request), 400, "wrong_bundle"
            )
            assert [
                output["shape"]
                for output in (await client.get("/v2/models/random")).json()["outputs"]
            ][-1] == [-1, 10]

    asyncio.run(work())


def test_reloading_adds_and_drops_without_a_dropped_request(
    bundle: Path,
    random_bundle: Path,
    feature_bytes: bytes,
    random_feature_bytes: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "ours_n4").symlink_to(bundle)

    async def work() -> None:
        async with (
            asyncio.timeout(120),
            running(Settings(bundles=(folder,), threads=1, deadline_ms=60_000)) as (
                client,
                service,
            ),
        ):
            kept = service.served.named("ours_n4")
            assert_refused(
                await client.post("/v1/classify", content=random_feature_bytes),
                404,
                "unknown_model",
            )
            copy_bundle(random_bundle, folder / "random")
            assert await service.reload()
            assert service.served.named("ours_n4") is kept
            assert (await client.post("/v1/classify", content=random_feature_bytes)).json()[
                "model"
            ] == "random"
            # One that is under way in a bundle that is dropped is answered by it.
            entered, gate = hold(service, monkeypatch)
            first = asyncio.ensure_future(client.post("/v1/classify", content=random_feature_bytes))
            await wait_for(entered)
            second = asyncio.ensure_future(
                client.post("/v1/classify", content=random_feature_bytes)
            )
            while service.batcher.admitted < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            shutil.rmtree(folder / "random")
            assert await service.reload()
            assert list(service.served.by_name) == ["ours_n4"]
            gate.set()
            assert [(await response).json()["model"] for response in (first, second)] == [
                "random",
                "random",
            ]
            assert_refused(
                await client.post("/v1/classify", content=random_feature_bytes),
                404,
                "unknown_model",
            )
            # A broken bundle changes nothing.
            copy_bundle(random_bundle, folder / "broken")
            (folder / "broken" / "cloud.onnx").write_bytes(b"x")
            assert not await service.reload()
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200

    asyncio.run(work())


def test_bundles_that_cannot_be_served_together(bundle: Path, tmp_path: Path) -> None:
    other = copy_bundle(bundle, tmp_path / bundle.name)
    with pytest.raises(errors.ServedBundlesError, match="both called ours_n4"):
        Service(Settings(bundles=(bundle, other))).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.BundleNotFoundError, match="nor in the folders in it"):
        Service(Settings(bundles=(tmp_path / "empty",))).load()
    with pytest.raises(errors.BundleNotFoundError):
        Service(Settings(bundles=(tmp_path / "nowhere",))).load()


def test_two_bundles_of_one_short_fingerprint(
    models: Models, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair in 2^32, which feature files cannot tell apart."""
    service = Service(Settings(bundles=(random_bundle,), threads=1))
    service.load()
    ours, other = models.named("ours_n4"), service.served.named("random")
    prefix = ours.decoder.bundle.fingerprint[:4]
    object.__setattr__(other.decoder.bundle.manifest, "fingerprint", prefix + bytes(28))
    with pytest.raises(errors.ServedBundlesError, match="cannot tell them apart"):
        Models([ours, other])


def test_the_lifespan_loads_what_was_not(bundle: Path, feature_bytes: bytes) -> None:
    async def work() -> None:
        async with running(Settings(bundles=(bundle,), threads=1, deadline_ms=60_000)) as (
            client,
            _,
        ):
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200

    thread = threading.Thread(
        target=lambda: asyncio.run(work())
    )  # as in a replica: not the main thread
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


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

    with caplog.at_level(logging.INFO, server.requests_log.name):
        serve(work)
    lines = [record.request for record in caplog.records if record.name == server.requests_log.name]  # type: ignore[attr-defined]
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


def test_what_it_says_of_itself(serve: Callable[..., None]) -> None:
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


def test_every_refusal_has_a_code_of_its_own_which_the_manual_lists() -> None:
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
    assert refusals.status_of(errors.TablesError("x")) == 500
