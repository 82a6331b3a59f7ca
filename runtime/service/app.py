"""The service over HTTP, as an ASGI application. docs/SERVING.md is the manual.

    app = create_app(Settings(bundles=("bundles/ours_n4",)))   # any ASGI server runs it

    request -> middleware -> endpoint -> core: capacity, body, coder, batcher, graph -> answer

| file | part |
|---|---|
| http_middleware.py | token, errors to responses, the end of each request |
| http_endpoints.py, http_page.py | a function for each path; those of the page /try |
| http_request.py, http_refusal.py | what is read from a request; errors as responses |
| openapi*.py, oip.py | the API's description; the Open Inference Protocol's messages |
| http_server.py, http_connections.py | uvicorn, and limits for connections |

Always holds: these files only translate; core.py decides what is served, limited and counted.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from ..errors import UnsupportedSharedMemoryError
from . import oip
from .core import Service
from .http_endpoints import ROUTES
from .http_middleware import RequestMiddleware
from .settings import Settings

__all__ = ["Service", "Settings", "create_app"]


def create_app(
    settings: Settings, load: bool = True, allow_origins: Sequence[str] = ()
) -> Starlette:
    """The service as an ASGI application. It starts and stops with its lifespan.

    `app.state.service` is its Service.

    Args:
        settings: of the service. What is wrong with them is raised when bundles are loaded.
        load: load the bundles when the lifespan begins, unless `app.state.service.load()` has.
            Without it, requests are refused as `starting` until `app.state.service.open()`.
        allow_origins: of pages elsewhere that may use the service, as `https://example.org`; `*`
            for all.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            if load:
                await service.open()
            yield
        finally:
            await service.stop()

    app = Starlette(
        routes=ROUTES,
        middleware=[*_across(allow_origins), Middleware(RequestMiddleware, service=service)],
        exception_handlers={HTTPException: _refuse_path},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _across(origins: Sequence[str]) -> list[Middleware]:
    """Lets browsers show our answers to pages of these origins.

    It is around all else: a browser's question whether it may ask carries no token, and a page must
    be able to read refusals.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    ]


async def _refuse_path(request: Request, error: Exception) -> Response:
    """For a path or method without an endpoint: raise what the middleware answers."""
    if request.url.path.startswith(("/v2/systemsharedmemory", "/v2/cudasharedmemory")):
        raise UnsupportedSharedMemoryError(oip.NO_SHARED_MEMORY)
    raise error
