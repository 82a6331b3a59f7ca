"""The page /try, and what it needs of the bundle: pictures are encoded in the browser.

`make web` copies the page from web/ to PAGE, which git ignores. The page itself is the same for
everybody and needs no token. The bundle's files do, where the service has tokens.

Always holds: only the files that are named here are sent, each under a policy that lets a browser
load nothing from another host.
"""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import NoEdgeHalfError, PageNotBuiltError
from .http_request import service_of

PAGE = Path(__file__).resolve().parent / "page"
# Names in PAGE/try, and their media types.
FILES = {
    "edgecloud.wasm": "application/wasm",
    "errors.js": "text/javascript",
    "files.js": "text/javascript",
    "index.js": "text/javascript",
    "library.js": "text/javascript",
    "try.css": "text/css",
    "try.js": "text/javascript",
    "worker.js": "text/javascript",
}
_TABLES, _WEIGHTS = "edge.tables", "edge.weights"
_HEADERS = {
    # 'wasm-unsafe-eval' lets WebAssembly be compiled, and nothing else. The icon is a data URL.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_paths() -> set[str]:
    """The paths of the page, which need no token."""
    return {"/try", *(f"/try/{name}" for name in FILES)}


async def try_page(request: Request) -> Response:
    """GET /try: the page."""
    return await _send(request, PAGE / "index.html", "text/html")


async def try_file(request: Request) -> Response:
    """GET /try/FILE: a script, a style sheet or the WebAssembly module of the page."""
    name = request.path_params["file"]
    if name not in FILES:
        raise HTTPException(404)
    return await _send(request, PAGE / "try" / name, FILES[name])


async def edge_tables(request: Request) -> Response:
    """GET /try/edge.tables: what the page's encoder needs of the bundle, with edge.weights."""
    return await _send_half(request, _TABLES)


async def edge_weights(request: Request) -> Response:
    """GET /try/edge.weights: likewise."""
    return await _send_half(request, _WEIGHTS)


async def _send(request: Request, path: Path, media_type: str) -> Response:
    try:
        content = await service_of(request).in_coder(path.read_bytes)
    except OSError:
        raise PageNotBuiltError(
            "the page is not installed: run `make web` in the repository, which needs emscripten"
        ) from None
    return Response(content, media_type=media_type, headers=_HEADERS)


async def _send_half(request: Request, name: str) -> Response:
    """A file of the first served bundle that has an edge half for this page."""
    service = service_of(request)
    for bundle in service.bundles.by_name.values():
        folder = bundle.decoder.bundle.folder
        if all((folder / half).is_file() for half in (_TABLES, _WEIGHTS)):
            content = await service.in_coder((folder / name).read_bytes)
            return Response(content, media_type="application/octet-stream", headers=_HEADERS)
    raise NoEdgeHalfError(
        f"no served bundle has {_TABLES} and {_WEIGHTS}, which encode without onnxruntime: export "
        "ours_n0, ours_n4 or ours_n8 with int8 graphs, and serve that bundle"
    )
