"""The service over HTTP before its bundles are loaded, while it drains, and in another thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from service_app import TOKEN, assert_refused, hold, running, wait_for

from runtime.service import http_middleware
from runtime.service.app import create_app
from runtime.service.core import Service
from runtime.service.settings import Settings


def test_draining_refuses_new_requests_and_answers_admitted_ones(
    serve: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        entered, release = hold(monkeypatch)
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
        assert not await service.drained()  # the call takes longer than drain_seconds
        release.set()
        assert (await first).json()["classes"][0]["label"] == "golf ball"
        assert await service.drained()

    serve(work, drain_seconds=0.1)


async def incomplete() -> AsyncIterator[bytes]:
    yield b"\xfc"
    await asyncio.sleep(60)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify/batch", "/v2/models/ours_n4/infer"])
def test_draining_refuses_an_incomplete_body(
    serve: Callable[..., None],
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http_middleware, "_DISCARD_SECONDS", 0.1)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        posted = asyncio.ensure_future(client.post(path, content=incomplete()))
        while not service.held_bytes:
            await asyncio.sleep(0.01)
        service.drain()
        response = await posted
        assert_refused(response, 503, "draining", "before the request was complete")
        assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")
        assert service.held_bytes == 0
        service.drain()  # a second time, when nothing is read

    serve(work)
    assert "Traceback" not in caplog.text


def test_requests_that_the_server_cancels_while_draining_are_answered(
    serve: Callable[..., None],
) -> None:
    """Also while a refused body is still read."""

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        posted = asyncio.ensure_future(client.post("/v1/classify", content=incomplete()))
        while not service.held_bytes:
            await asyncio.sleep(0.01)
        service.drain()
        await asyncio.sleep(0.05)
        posted.cancel()  # the application runs in the same task
        assert_refused(await posted, 503, "draining")

    serve(work)


def test_requests_before_the_bundles_are_loaded(
    bundle: Path, feature_bytes: bytes, tmp_path: Path
) -> None:
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
            reloaded = asyncio.ensure_future(service.reload())  # waits until they are loaded
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


def test_the_lifespan_loads_the_bundles_in_any_thread(bundle: Path, feature_bytes: bytes) -> None:
    async def work() -> None:
        async with running(Settings(bundles=(bundle,), threads=1, deadline_ms=60_000)) as (
            client,
            _,
        ):
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200

    # Not in the main thread, as in a replica on Ray.
    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
