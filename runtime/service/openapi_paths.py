"""The paths of the OpenAPI document: what each endpoint accepts, answers and refuses.

Always holds: there is one operation for each route of http_endpoints.py. An operation whose
`security` is OPEN needs no token, and the middleware goes by that.
"""

from .oip import EXTENSIONS, HEADER_LENGTH, INPUT
from .openapi_schemas import (
    BOOLEAN,
    STRING,
    Schema,
    array_of,
    json_response,
    object_of,
    output_names,
    ref,
    refusal_responses,
)

OPEN: list[Schema] = [{}]  # the `security` of an operation that needs no token

_FILE_REFUSALS = (400, 404, 413)
_POST_REFUSALS = (401, 408, 413, 415, 429, 431, 500, 503, 504)
_BINARY: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_TOP_K: Schema = {
    "name": "top_k",
    "in": "query",
    "description": "number of classes in an answer",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
}
_NAME: Schema = {"name": "name", "in": "path", "required": True, "schema": STRING}
_READY = object_of({"ready": BOOLEAN}, {"name": STRING})
_NOT_READY = "the service is loading its bundles, or is about to stop"


def paths() -> Schema:
    """Path -> method -> operation."""
    return {
        **_classify_paths(),
        **_server_paths(),
        **_model_paths(),
        **_description_paths(),
        **_page_paths(),
    }


def _get(
    summary: str,
    schema: Schema,
    open_to_all: bool = False,
    named: bool = False,
    more: Schema | None = None,
) -> Schema:
    """A GET operation with a JSON answer; `named`: the path has a model's name in it."""
    responses = {
        "200": json_response(schema, "the answer"),
        **refusal_responses(431, *([] if open_to_all else [401, 503]), *([404] if named else [])),
        **(more or {}),
    }
    operation: Schema = {"summary": summary, "responses": responses}
    if open_to_all:
        operation["security"] = OPEN
    if named:
        operation["parameters"] = [_NAME]
    return {"get": operation}


def _post(
    summary: str,
    description: str,
    body: Schema,
    response: Schema,
    parameters: list[Schema],
    *refused: int,
) -> Schema:
    """A POST operation; `refused`: statuses besides those of every POST."""
    return {
        "post": {
            "summary": summary,
            "description": description,
            "parameters": parameters,
            "requestBody": {"required": True, "content": body},
            "responses": {"200": response, **refusal_responses(*_POST_REFUSALS, *refused)},
        }
    }


def _classify_paths() -> Schema:
    return {
        "/v1/classify": _post(
            "Classify one feature file.",
            "The body is the feature file. Its fingerprint chooses the model.",
            _BINARY,
            json_response(ref("Result"), "its classes"),
            [_TOP_K],
            *_FILE_REFUSALS,
        ),
        "/v1/classify/batch": _post(
            "Classify several feature files.",
            "The body is, for each feature file, its length in bytes (32 bits, little-endian) and "
            "the file. Answers keep their order, and each is a result or a refusal by itself.",
            _BINARY,
            json_response(object_of({"answers": array_of(ref("Answer"))}), "an answer for each"),
            [_TOP_K],
            400,
        ),
    }


def _server_paths() -> Schema:
    server = object_of(
        {"name": STRING, "version": STRING, "extensions": array_of({"enum": EXTENSIONS})}
    )
    return {
        "/v2": _get("The server, in the Open Inference Protocol.", server),
        "/v2/health/live": _get("Whether the service runs.", object_of({"live": BOOLEAN}), True),
        "/v2/health/ready": _get(
            "Whether feature files are accepted.",
            _READY,
            True,
            more={"503": json_response(_READY, _NOT_READY)},
        ),
    }


def _model_paths() -> Schema:
    answer = json_response(
        ref("InferResponse"),
        "the JSON, followed by the tensors that were requested in binary "
        f"({HEADER_LENGTH} says where the JSON ends)",
    )
    answer["content"] |= _BINARY
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "bytes of the JSON, where tensors follow it",
        "schema": {"type": "integer", "minimum": 0},
    }
    not_ready = {"anyOf": [_READY, ref("Refusal")]}
    return {
        "/v2/models": _get(
            "All models that are served.", object_of({"models": array_of(ref("Model"))})
        ),
        "/v2/models/{name}": _get("A model's inputs and outputs.", ref("Metadata"), named=True),
        "/v2/models/{name}/ready": _get(
            "Whether a model accepts feature files.",
            _READY,
            named=True,
            more={"503": json_response(not_ready, _NOT_READY)},
        ),
        "/v2/models/{name}/infer": _post(
            "Classify feature files, in the Open Inference Protocol.",
            f"One input, {INPUT}, of datatype BYTES and shape [N]: feature files, in base64 as "
            "JSON data, or as they are with the binary extension. An optional member that is null "
            f"counts as absent. Outputs {', '.join(output_names())}. If one feature file "
            "is refused, so is the request.",
            {"application/json": {"schema": ref("InferRequest")}, **_BINARY},
            answer,
            [_NAME, length],
            *_FILE_REFUSALS,
        ),
    }


def _description_paths() -> Schema:
    text = {"description": "the text", "content": {"text/plain": {"schema": STRING}}}
    html = {"description": "the page", "content": {"text/html": {"schema": STRING}}}
    return {
        "/metrics": {
            "get": {
                "summary": "Metrics, for Prometheus.",
                "responses": {"200": text, **refusal_responses(401, 431, 503)},
            },
        },
        "/openapi.json": _get("This document.", {"type": "object"}, True),
        "/docs": {
            "get": {
                "summary": "A page for people.",
                "security": OPEN,
                "responses": {"200": html, **refusal_responses(431)},
            }
        },
    }


def _page_paths() -> Schema:
    def of(summary: str, content: Schema, more: Schema, *refused: int) -> Schema:
        found = {"description": "the file", "content": content}
        responses = {"200": found, **refusal_responses(404, 431, 500, *refused)}
        return {"get": {"summary": summary, "responses": responses, **more}}

    text: Schema = {"schema": STRING}
    half = "of the first served bundle that has both edge.tables and edge.weights"
    file = {"name": "file", "in": "path", "required": True, "schema": STRING}
    kinds = {kind: text for kind in ("text/css", "text/javascript", "application/wasm")}
    return {
        "/try": of("A page that encodes pictures.", {"text/html": text}, {"security": OPEN}),
        "/try/edge.tables": of(f"edge.tables {half}.", _BINARY, {}, 401, 503),
        "/try/edge.weights": of(f"edge.weights {half}.", _BINARY, {}, 401, 503),
        "/try/{file}": of(
            "A file of the page; one that it has needs no token.",
            kinds,
            {"parameters": [file]},
            401,
            503,
        ),
    }
