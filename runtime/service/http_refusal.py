"""Errors as HTTP responses.

Always holds: a refusal's body has `code` and `error`; statuses and codes are those of refusals.py.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
    DrainingError,
    EdgeCloudError,
    QueueFullError,
    StartingError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedEncodingError,
)
from ..refusals import INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, code_of, http_status
from .core import Service
from .http_request import HttpContext

log = logging.getLogger(__name__)


def refusal(service: Service, error: EdgeCloudError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, content and headers of a refusal."""
    headers: dict[str, str] = {}
    content: dict[str, Any] = {"code": code_of(type(error)), "error": str(error)}
    if isinstance(error, UnknownModelError):
        content["known"] = service.bundles.describe()
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.seconds)
    if isinstance(error, StartingError):
        headers["Retry-After"] = "1"
    if isinstance(error, DrainingError):
        headers |= {"Retry-After": "1", "Connection": "close"}
    if isinstance(error, UnsupportedEncodingError):
        headers["Accept-Encoding"] = "identity"
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return http_status(error), content, headers


def error_response(service: Service, context: HttpContext, error: BaseException) -> JSONResponse:
    """The response to a request that failed with any error; notes its code in the context.

    A CancelledError comes from a server that has drained for as long as it may.
    """
    headers: Mapping[str, str] | None = None
    if isinstance(error, asyncio.CancelledError):
        error = DrainingError("the service stopped before its answer was ready: send it again")
    if isinstance(error, EdgeCloudError):
        status, content, headers = refusal(service, error)
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
        code = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(status, INTERNAL)
        text = f"{context.method} {context.path[:200]}: {error.detail}; see /docs"
        content = {"code": code, "error": text}
    else:
        log.error("request %s failed", context.id, exc_info=error)
        text = f"the service failed: see its log for request {context.id}"
        status, content = 500, {"code": INTERNAL, "error": text}
    context.code = content["code"]
    return JSONResponse(content, status, headers)
