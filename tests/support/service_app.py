"""The service as an application in the test's process, and what several of its tests need."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder
from runtime.service.app import create_app
from runtime.service.bundles import ServedBundles
from runtime.service.core import Service
from runtime.service.settings import Settings

TOKEN = "0123456789abcdef-first"


@asynccontextmanager
async def running(
    settings: Settings, loaded: ServedBundles | None = None, allow_origins: Sequence[str] = ()
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """The application between its start and its stop, with a client.

    Bundles of the settings that are in `loaded` are not loaded again.
    """
    app = create_app(settings, allow_origins=allow_origins)
    service: Service = app.state.service
    if loaded:
        service._bundles = loaded
        service.load()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", timeout=60
        ) as client,
    ):
        yield client, service


def hold(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Makes graph calls wait.

    Returns an event that is set when one has begun, and an event that lets them go on.
    """
    entered, release = threading.Event(), threading.Event()
    run = CloudDecoder.logits_of_symbols

    def held(self: CloudDecoder, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        entered.set()
        assert release.wait(60)
        return run(self, symbols)

    monkeypatch.setattr(CloudDecoder, "logits_of_symbols", held)
    return entered, release


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


def assert_refused(
    response: httpx.Response, status: int, code: str, text: str = ""
) -> dict[str, Any]:
    """Returns the content of the refusal."""
    content: dict[str, Any] = response.json()
    assert (response.status_code, content["code"]) == (status, code), content
    assert text in content["error"]
    return content
