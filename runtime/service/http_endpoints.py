"""The endpoints of the HTTP front: one function per path, and the table of routes.

A new endpoint is a function and a line of ROUTES here, and its description in openapi_paths.py.

Always holds: an endpoint refuses a request by raising, and the middleware makes the response; every
route is described in the OpenAPI document.
"""

from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import EdgeCloudError, MalformedRequestError
from . import oip
from .core import Classified
from .http_page import edge_tables, edge_weights, try_file, try_page
from .http_refusal import refusal
from .http_request import (
    context_of,
    explaining_forms,
    parse_body,
    read_body,
    service_of,
    top_k,
    unless_gone,
)
from .metrics import CONTENT_TYPE
from .openapi import document, page
from .request import milliseconds


async def classify(request: Request) -> Response:
    """POST /v1/classify: one feature file."""
    service, count = service_of(request), top_k(request)
    data = await read_body(request, several=False)
    (outcome,) = await unless_gone(request.receive, service.classify([data], context_of(request)))
    if isinstance(outcome, EdgeCloudError):
        with explaining_forms(request, data):
            raise outcome
    return JSONResponse(_result(outcome, count, len(data)))


async def classify_batch(request: Request) -> Response:
    """POST /v1/classify/batch: several files, each answered or refused by itself."""
    service, count = service_of(request), top_k(request)
    body = await read_body(request, several=True)
    with explaining_forms(request, body):
        files = await parse_body(
            request, body, lambda: oip.elements(memoryview(body), service.max_files)
        )
    if not files:
        raise MalformedRequestError(
            "the request holds no feature file: "
            "send each after its length, a 32-bit little-endian number"
        )
    outcomes = await unless_gone(request.receive, service.classify(files, context_of(request)))
    answers = []
    for data, outcome in zip(files, outcomes, strict=True):
        if isinstance(outcome, EdgeCloudError):
            status, content, _ = refusal(service, outcome)
            service.count_refusal(outcome)
            answers.append({"status": status, **content})
        else:
            answers.append({"status": 200, **_result(outcome, count, len(data))})
    return JSONResponse({"answers": answers})


def _result(outcome: Classified, count: int, size: int) -> dict[str, Any]:
    """The answer to one feature file of `size` bytes, with its `count` most probable classes."""
    bundle = outcome.bundle
    predictions = bundle.decoder.predictions(outcome.logits, count)
    return {
        "model": bundle.name,
        "fingerprint": bundle.fingerprint,
        "bytes": size,
        bundle.decoder.task.ANSWERS: [prediction._asdict() for prediction in predictions],
        "milliseconds": milliseconds(outcome.seconds),
    }


async def infer(request: Request) -> Response:
    """POST /v2/models/NAME/infer: feature files in the Open Inference Protocol."""
    service = service_of(request)
    bundle = service.bundles.named(request.path_params["name"])
    task = bundle.decoder.task
    body = await read_body(request, several=True)
    header = request.headers.get(oip.HEADER_LENGTH)
    with explaining_forms(request):
        asked = await parse_body(
            request, body, lambda: oip.parse(body, header, service.max_files, task)
        )
    outcomes = await unless_gone(
        request.receive, service.classify(asked.files, context_of(request), bundle)
    )
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, EdgeCloudError):
            raise outcome
        rows.append(outcome.logits)
    content, json_bytes = oip.render(asked, bundle.name, task, np.stack(rows))
    if json_bytes is None:
        return Response(content, media_type="application/json")
    return Response(
        content, media_type="application/octet-stream", headers={oip.HEADER_LENGTH: str(json_bytes)}
    )


async def list_models(request: Request) -> Response:
    """GET /v2/models: all bundles that are served."""
    return JSONResponse({"models": service_of(request).bundles.describe()})


async def model_metadata(request: Request) -> Response:
    """GET /v2/models/NAME: its inputs and outputs."""
    bundle = service_of(request).bundles.named(request.path_params["name"])
    return JSONResponse(
        oip.metadata(bundle.name, bundle.decoder.task, str(bundle.decoder.engine.choice))
    )


async def model_ready(request: Request) -> Response:
    """GET /v2/models/NAME/ready: whether it accepts feature files."""
    service = service_of(request)
    bundle = service.bundles.named(request.path_params["name"])
    return JSONResponse(
        {"name": bundle.name, "ready": service.ready}, 200 if service.ready else 503
    )


async def server_metadata(_: Request) -> Response:
    """GET /v2: the server."""
    return JSONResponse(
        {"name": "edgecloud-features", "version": __version__, "extensions": oip.EXTENSIONS}
    )


async def live(_: Request) -> Response:
    """GET /v2/health/live: the event loop runs."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """GET /v2/health/ready: whether feature files are accepted."""
    service = service_of(request)
    return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def openapi(_: Request) -> Response:
    """GET /openapi.json: the OpenAPI document."""
    return JSONResponse(document())


async def docs(_: Request) -> Response:
    """GET /docs: a page that fetches nothing."""
    return HTMLResponse(page())


ROUTES = [
    Route("/v1/classify", classify, methods=["POST"]),
    Route("/v1/classify/batch", classify_batch, methods=["POST"]),
    Route("/v2", server_metadata),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    Route("/v2/models", list_models),
    Route("/v2/models/{name}", model_metadata),
    Route("/v2/models/{name}/ready", model_ready),
    Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    Route("/metrics", metrics),
    Route("/openapi.json", openapi),
    Route("/docs", docs),
    Route("/try", try_page),
    Route("/try/edge.tables", edge_tables),
    Route("/try/edge.weights", edge_weights),
    Route("/try/{file}", try_file),
]
# Endpoint -> the path that labels its metrics.
PATHS: dict[Any, str] = {route.endpoint: route.path for route in ROUTES}
