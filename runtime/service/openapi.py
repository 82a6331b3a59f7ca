"""What the service says of itself: its OpenAPI document, and a page made from it.

Always holds: the page is HTML alone, and fetches nothing; codes and statuses are those of refusals.py.
"""

from html import escape
from typing import Any

from .. import __version__
from ..refusals import STATUS, code_of
from .oip import EXTENSIONS, HEADER_LENGTH, INPUT, OUTPUTS

_FILE_REFUSALS = (400, 404, 413)
_SERVICE_REFUSALS = (401, 408, 413, 415, 429, 431, 500, 503, 504)
_OPEN: list[dict[str, list[str]]] = [{}]


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _INTEGER, _NUMBER, _BOOLEAN = (
    {"type": kind} for kind in ("string", "integer", "number", "boolean")
)
_RESULT = {
    "model": {**_STRING, "description": "name of the bundle that answered"},
    "fingerprint": {**_STRING, "description": "of that bundle, as the feature file carries it"},
    "bytes": {**_INTEGER, "description": "of the feature file"},
    "classes": {**_array(_ref("Class")), "description": "best first"},
    "milliseconds": {
        "type": "object",
        "additionalProperties": _NUMBER,
        "description": "coder, queue, graph",
    },
}
_SCHEMAS: dict[str, Any] = {
    "Class": _object(
        {
            "label": _STRING,
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
            "class_index": _INTEGER,
        }
    ),
    "Result": _object(_RESULT),
    "Model": _object(
        {
            "name": _STRING,
            "fingerprint": _STRING,
            "model": _STRING,
            "weights": _STRING,
            "classes": _INTEGER,
            "engine": _STRING,
            "serves": {
                **_BOOLEAN,
                "description": "false for a variant, which is asked by name alone",
            },
        }
    ),
    "Refusal": _object(
        {
            "code": {**_STRING, "description": "does not change; see the codes"},
            "error": {**_STRING, "description": "value and remedy"},
        },
        {"known": {**_array(_ref("Model")), "description": "with unknown_model: what is served"}},
    ),
    "Answer": {
        "oneOf": [
            _object({"status": {"const": 200}, **_RESULT}),
            _object(
                {"status": {"type": "integer", "minimum": 400}, "code": _STRING, "error": _STRING},
                {"known": _array(_ref("Model"))},
            ),
        ]
    },
    "Tensor": _object(
        {"name": _STRING, "datatype": _STRING, "shape": _array(_INTEGER)},
        {"parameters": {"type": "object"}, "data": {"type": "array"}},
    ),
    "Metadata": _object(
        {
            "name": _STRING,
            "platform": _STRING,
            "inputs": _array(_ref("Tensor")),
            "outputs": _array(_ref("Tensor")),
        }
    ),
    "InferRequest": _object(
        {
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": _object(
                    {
                        "name": {"const": INPUT},
                        "datatype": {"const": "BYTES"},
                        "shape": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 2,
                            "items": {"type": "integer", "minimum": 1},
                        },
                    },
                    {
                        "data": _or_null(
                            {**_array(_STRING), "description": "feature files in base64"}
                        ),
                        "parameters": _or_null(
                            _object(
                                {},
                                {"binary_data_size": _or_null({"type": "integer", "minimum": 0})},
                            )
                        ),
                    },
                ),
            }
        },
        {
            "id": _or_null({**_STRING, "maxLength": 256}),
            "parameters": _or_null(
                _object(
                    {},
                    {
                        "top_k": _or_null({"type": "integer", "minimum": 1}),
                        "binary_data_output": _or_null(_BOOLEAN),
                    },
                )
            ),
            "outputs": _or_null(
                _array(
                    _object(
                        {"name": {"enum": list(OUTPUTS)}},
                        {"parameters": _or_null(_object({}, {"binary_data": _or_null(_BOOLEAN)}))},
                    )
                )
            ),
        },
    ),
    "InferResponse": _object(
        {"model_name": _STRING, "outputs": _array(_ref("Tensor"))}, {"id": _STRING}
    ),
}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _refusals(*statuses: int) -> dict[str, Any]:
    found = {}
    for status in sorted(set(statuses)):
        codes = [code_of(kind) for kind, value in STATUS.items() if value == status]
        found[str(status)] = _json(
            _ref("Refusal"), ", ".join([*codes, *(["internal"] if status == 500 else [])])
        )
        if status in (429, 503):
            found[str(status)]["headers"] = {
                "Retry-After": {"schema": _INTEGER, "description": "seconds"}
            }
    return found


def _get(
    summary: str,
    schema: dict[str, Any],
    open_to_all: bool = False,
    named: bool = False,
    more: dict[str, Any] | None = None,
) -> Any:
    responses = {
        "200": _json(schema, "the answer"),
        **_refusals(431, *([] if open_to_all else [401, 503]), *([404] if named else [])),
        **(more or {}),
    }
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if open_to_all:
        operation["security"] = _OPEN
    if named:
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": _STRING}
        ]
    return {"get": operation}


def _post(
    summary: str,
    description: str,
    body: dict[str, Any],
    response: dict[str, Any],
    parameters: list[dict[str, Any]],
    *refused: int,
) -> Any:
    return {
        "post": {
            "summary": summary,
            "description": description,
            "parameters": parameters,
            "requestBody": {"required": True, "content": body},
            "responses": {"200": response, **_refusals(*_SERVICE_REFUSALS, *refused)},
        }
    }


def document() -> dict[str, Any]:
    """The OpenAPI document of all paths."""
    top_k = {
        "name": "top_k",
        "in": "query",
        "description": "classes of an answer",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": _STRING}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    ready = _object({"ready": _BOOLEAN}, {"name": _STRING})
    not_ready = "the service loads its bundles, or is about to stop"
    text = {"description": "the text", "content": {"text/plain": {"schema": _STRING}}}
    html = {"description": "the page", "content": {"text/html": {"schema": _STRING}}}
    infer_answer = _json(
        _ref("InferResponse"),
        f"the JSON, and behind it the tensors that were asked in binary ({HEADER_LENGTH} tells them apart)",
    )
    infer_answer["content"] |= binary
    paths: dict[str, Any] = {
        "/v1/classify": _post(
            "Classify one feature file.",
            "The body is the feature file. Its fingerprint chooses the model.",
            binary,
            _json(_ref("Result"), "its classes"),
            [top_k],
            *_FILE_REFUSALS,
        ),
        "/v1/classify/batch": _post(
            "Classify several feature files.",
            "The body is, for each feature file, its length in bytes (32 bits, little-endian) and the file. "
            "Answers keep their order, and each is a result or a refusal by itself.",
            binary,
            _json(_object({"answers": _array(_ref("Answer"))}), "an answer for each"),
            [top_k],
            400,
        ),
        "/v2": _get(
            "The server, in the Open Inference Protocol.",
            _object(
                {"name": _STRING, "version": _STRING, "extensions": _array({"enum": EXTENSIONS})}
            ),
        ),
        "/v2/health/live": _get("Whether the service runs.", _object({"live": _BOOLEAN}), True),
        "/v2/health/ready": _get(
            "Whether feature files are taken.", ready, True, more={"503": _json(ready, not_ready)}
        ),
        "/v2/models": _get(
            "All models that are served.", _object({"models": _array(_ref("Model"))})
        ),
        "/v2/models/{name}": _get("A model's inputs and outputs.", _ref("Metadata"), named=True),
        "/v2/models/{name}/ready": _get(
            "Whether a model takes feature files.",
            ready,
            named=True,
            more={"503": _json({"anyOf": [ready, _ref("Refusal")]}, not_ready)},
        ),
        "/v2/models/{name}/infer": _post(
            "Classify feature files, in the Open Inference Protocol.",
            f"One input, {INPUT}, of datatype BYTES and shape [N]: feature files, in base64 as JSON data, "
            "or by the binary extension as they are. An optional member that is null is as if it were absent. "
            f"Outputs {', '.join(OUTPUTS)}. One feature file that is refused refuses the request.",
            {"application/json": {"schema": _ref("InferRequest")}, **binary},
            infer_answer,
            [
                name,
                {
                    "name": HEADER_LENGTH,
                    "in": "header",
                    "description": "bytes of the JSON, where tensors follow it",
                    "schema": {"type": "integer", "minimum": 0},
                },
            ],
            *_FILE_REFUSALS,
        ),
        "/metrics": {
            "get": {
                "summary": "Metrics, for Prometheus.",
                "responses": {"200": text, **_refusals(401, 431, 503)},
            },
        },
        "/openapi.json": _get("This document.", {"type": "object"}, True),
        "/docs": {
            "get": {
                "summary": "A page for people.",
                "security": _OPEN,
                "responses": {"200": html, **_refusals(431)},
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cloud-serve",
            "version": __version__,
            "description": "Feature files in, classes out. A token, where the service has one, goes into the Authorization header.",
        },
        "paths": paths,
        "security": [{}, {"token": []}],
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def page() -> str:
    """The document as HTML."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>cloud-serve</title>",
        "<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        "code{background:#eee;padding:0 .2em}td,th{text-align:left;padding:.1em 1em .1em 0;vertical-align:top}</style>",
        f"<h1>cloud-serve {escape(__version__)}</h1><p>Feature files in, classes out. <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}"
            )
            parts.append(f" {escape(operation.get('description', ''))}</p>")
            if parameters := operation.get("parameters"):
                rows = (
                    f"<tr><td><code>{escape(p['name'])}</code><td>{p['in']}<td>{escape(p.get('description', ''))}"
                    for p in parameters
                )
                parts.append(f"<table>{''.join(rows)}</table>")
            rows = (
                f"<tr><td>{status}<td>{escape(response['description'])}"
                for status, response in operation["responses"].items()
            )
            parts.append(f"<table>{''.join(rows)}</table>")
    parts.append(
        "<h2>Codes</h2><p>A refusal is JSON: <code>code</code>, and <code>error</code>, which says what to do.</p><table>"
    )
    parts += [
        f"<tr><td>{status}<td><code>{code_of(kind)}</code><td>{escape(kind.__doc__ or '')}"
        for kind, status in STATUS.items()
    ]
    return "".join([*parts, "</table></html>\n"])
