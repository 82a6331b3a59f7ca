"""The service of the default bundle, in this process and behind a socket."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import LIMIT, PATIENCE
from served import served
from service_app import running

from runtime import EdgeEncoder
from runtime.service import http_server
from runtime.service.bundles import ServedBundles
from runtime.service.core import Service
from runtime.service.http_server import HttpServer
from runtime.service.settings import Settings

GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture(scope="session")
def loaded(bundle: Path) -> ServedBundles:
    """The default bundle, loaded with one thread."""
    service = Service(Settings(bundles=(bundle,), threads=1))
    service.load()
    return service.bundles


@pytest.fixture(scope="session")
def random_feature_bytes(random_bundle: Path) -> bytes:
    """A feature file of the random bundle."""
    return EdgeEncoder(random_bundle, threads=1).encode(GOLF_BALL)


@pytest.fixture
def serve(bundle: Path, loaded: ServedBundles) -> Callable[..., None]:
    """Runs the body of a test against a service of the default bundle."""

    def serve(
        work: Callable[[httpx.AsyncClient, Service], Awaitable[None]], **settings: Any
    ) -> None:
        async def body() -> None:
            given = {"bundles": (bundle,), "threads": 1, "deadline_ms": 60_000.0, **settings}
            async with (
                asyncio.timeout(120),
                running(Settings(**given), loaded) as (client, service),
            ):
                await work(client, service)

        asyncio.run(body())

    return serve


@pytest.fixture(scope="module")
def limited_server(bundle: Path) -> Iterator[tuple[HttpServer, tuple[str, int]]]:
    """A server with short time limits, in a thread of this process, and its address."""
    patch = pytest.MonkeyPatch()
    for name in ("HEAD_SECONDS", "WRITE_SECONDS"):
        patch.setattr(http_server, name, PATIENCE)
    patch.setattr(http_server, "IDLE_SECONDS", 1)
    settings = Settings(bundles=(bundle,), threads=1, deadline_ms=60_000, body_seconds=PATIENCE)
    with served(settings) as server:
        yield server
    patch.undo()


@pytest.fixture
def client(limited_server: tuple[HttpServer, tuple[str, int]]) -> Iterator[socket.socket]:
    """A connection to that server."""
    with socket.create_connection(limited_server[1], LIMIT) as client:
        yield client
