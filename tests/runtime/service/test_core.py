"""The core of the service without any protocol: bytes and limits in, answers or refusals out."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from service_app import hold, wait_for

from runtime import CloudDecoder, errors
from runtime.service.bundles import ServedBundles
from runtime.service.core import Classified, Service
from runtime.service.request import RequestContext, requests_log
from runtime.service.settings import Settings

TOKEN = "0123456789abcdef"


@pytest.fixture
def run(bundle: Path, loaded: ServedBundles) -> Callable[..., None]:
    """Runs the body of a test with a core that serves the default bundle."""

    def run(work: Callable[[Service], Awaitable[None]], **settings: Any) -> None:
        async def body() -> None:
            given = {"bundles": (bundle,), "threads": 1, "deadline_ms": 60_000.0, **settings}
            service = Service(Settings(**given))
            service._bundles = loaded  # so that they are not loaded again
            async with asyncio.timeout(120):
                service.load()
                await service.open()
                await work(service)
                await service.stop()

        asyncio.run(body())

    return run


def request() -> RequestContext:
    return RequestContext(method="Classify", path="edgecloud.Service")


async def receive_for_ever(service: Service) -> None:
    async with service.receiving(request()):
        await asyncio.sleep(60)


def test_the_core_imports_no_protocol() -> None:
    """prometheus_client itself imports http.server, so http.server is not checked."""
    code = (
        "import sys, runtime.service.core\n"
        "packages = {name.split('.')[0] for name in sys.modules}\n"
        "assert not packages & {'starlette', 'uvicorn', 'h11', 'anyio', 'grpc'}, packages\n"
        "ours = {name for name in sys.modules if name.startswith('runtime.service.')}\n"
        "names = {name.removeprefix('runtime.service.') for name in ours}\n"
        "fronts = ('app', 'http', 'oip', 'openapi')\n"
        "assert not [name for name in names if name.startswith(fronts)], names\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_answers_and_refusals_keep_their_order(
    run: Callable[..., None], feature_bytes: bytes, decoder: CloudDecoder
) -> None:
    async def work(service: Service) -> None:
        context = request()
        first, second, third = await service.classify([feature_bytes, b"x", feature_bytes], context)
        assert isinstance(second, errors.NotAFeatureFileError)
        for outcome in (first, third):
            assert isinstance(outcome, Classified)
            assert outcome.bundle.name == "ours_n4"
            assert decoder.predictions(outcome.logits)[0].label == "golf ball"
            assert set(outcome.seconds) == {"coder", "queue", "graph"}
        assert (context.model, context.images) == ("ours_n4", 2)

    run(work)


def test_a_finished_request_is_counted_and_logged(
    run: Callable[..., None], feature_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(service: Service) -> None:
        context = request()
        context.endpoint, context.status = "Classify", 200
        async with service.receiving(context):
            context.received = len(feature_bytes)
            service.hold(context, len(feature_bytes))
        assert service.held_bytes == len(feature_bytes)
        await service.classify([feature_bytes], context)
        with caplog.at_level(logging.INFO, requests_log.name):
            service.finish(context)
        assert service.held_bytes == 0
        value = service.metrics.registry.get_sample_value
        assert value("edgecloud_requests_total", {"path": "Classify", "status": "200"}) == 1
        assert value("edgecloud_received_bytes_total") == len(feature_bytes)
        assert value("edgecloud_stage_seconds_count", {"stage": "graph"}) == 1
        line = caplog.records[-1].request  # type: ignore[attr-defined]
        assert (line["method"], line["model"], line["images"]) == ("Classify", "ours_n4", 1)

    run(work)


def test_before_its_bundles_are_loaded_every_request_is_refused(
    bundle: Path, feature_bytes: bytes
) -> None:
    async def work() -> None:
        service = Service(Settings(bundles=(bundle,), threads=1))
        assert (service.ready, service.loaded) == (False, False)
        with pytest.raises(errors.StartingError):
            service.authorize(None)
        with pytest.raises(errors.StartingError):
            await service.classify([feature_bytes], request())
        await service.open()
        assert service.ready
        service.authorize(None)
        await service.stop()

    asyncio.run(work())


def test_only_known_tokens_are_accepted(run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)

    async def work(service: Service) -> None:
        service.authorize(TOKEN)
        for wrong in (None, "", TOKEN[:-1], TOKEN.upper()):
            with pytest.raises(errors.UnauthorizedError):
                service.authorize(wrong)

    run(work, token_file=tmp_path / "tokens")


def test_a_bundle_that_the_files_must_be_of(
    run: Callable[..., None], feature_bytes: bytes, random_feature_bytes: bytes
) -> None:
    async def work(service: Service) -> None:
        bundle = service.bundles.named("ours_n4")
        good, other = await service.classify(
            [feature_bytes, random_feature_bytes], request(), bundle
        )
        assert isinstance(good, Classified)
        assert isinstance(other, errors.WrongBundleError)

    run(work)


def test_limits_are_errors_of_their_own(run: Callable[..., None], feature_bytes: bytes) -> None:
    async def work(service: Service) -> None:
        assert service.max_files == 3
        with pytest.raises(errors.QueueFullError):
            await service.classify([feature_bytes] * 4, request())
        context = request()
        with pytest.raises(errors.QueueFullError, match="1001 bytes"):
            service.hold(context, 1001)
        service.finish(context)
        with pytest.raises(errors.SlowBodyError):
            await receive_for_ever(service)
        assert service.max_bytes(several=False) == service.bundles.max_file_bytes
        assert service.max_bytes(several=True) > service.max_bytes(several=False)

    run(work, max_queue=3, max_buffer_bytes=1000, body_seconds=0.01)


def test_cancelling_gives_up_the_places_in_the_queue(
    run: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service) -> None:
        entered, release = hold(monkeypatch)
        first = asyncio.ensure_future(service.classify([feature_bytes], request()))
        await wait_for(entered)
        second = asyncio.ensure_future(service.classify([feature_bytes] * 3, request()))
        while service.batcher.admitted < 4:
            await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert service.batcher.admitted == 1
        release.set()
        await first

    run(work)


def test_draining_answers_what_was_admitted_and_refuses_the_rest(
    run: Callable[..., None], feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service) -> None:
        entered, release = hold(monkeypatch)
        admitted = asyncio.ensure_future(service.classify([feature_bytes], request()))
        await wait_for(entered)
        receiving = asyncio.ensure_future(receive_for_ever(service))
        await asyncio.sleep(0)
        service.drain()
        with pytest.raises(errors.DrainingError):
            await receiving
        with pytest.raises(errors.DrainingError):
            service.require_capacity()
        assert not service.ready
        release.set()
        assert await service.drained()
        (outcome,) = await admitted
        assert isinstance(outcome, Classified)

    run(work)
