"""The HTTP API's description: its OpenAPI document, and a page made from it.

Always holds: the page is HTML alone, and fetches nothing.
"""

from collections.abc import Iterable, Iterator
from html import escape

from .. import __version__
from ..refusals import STATUS, code_of
from .openapi_paths import OPEN, paths
from .openapi_schemas import Schema, schemas

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "code{background:#eee;padding:0 .2em}"
    "td,th{text-align:left;padding:.1em 1em .1em 0;vertical-align:top}"
)


def document() -> Schema:
    """The OpenAPI document of all paths."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cloud-serve",
            "version": __version__,
            "description": "Feature files in, classes out. "
            "A token, where the service needs one, goes into the Authorization header.",
        },
        "paths": paths(),
        "security": [{}, {"token": []}],
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def open_paths() -> set[str]:
    """The paths that need no token."""
    return {
        path
        for path, operations in paths().items()
        if any(operation.get("security") == OPEN for operation in operations.values())
    }


def page() -> str:
    """The document as HTML."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>cloud-serve</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>cloud-serve {escape(__version__)}</h1><p>Feature files in, classes out. "
        "<a href=openapi.json>openapi.json</a></p>",
    ]
    for path, operations in paths().items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            text = f"{operation['summary']} {operation.get('description', '')}"
            parts.append(f"<p>{escape(text)}</p>")
            parts.append(_table(_parameter_cells(operation)))
            parts.append(_table(_response_cells(operation)))
    parts.append(
        "<h2>Codes</h2><p>A refusal is JSON: <code>code</code>, and <code>error</code>, "
        "which says what to do.</p>"
    )
    codes = (
        (str(status), f"<code>{code_of(kind)}</code>", escape(kind.__doc__ or ""))
        for kind, status in STATUS.items()
    )
    parts.append(_table(codes))
    return "".join([*parts, "</html>\n"])


def _parameter_cells(operation: Schema) -> Iterator[tuple[str, ...]]:
    for parameter in operation.get("parameters", ()):
        name, description = parameter["name"], parameter.get("description", "")
        yield f"<code>{escape(name)}</code>", parameter["in"], escape(description)


def _response_cells(operation: Schema) -> Iterator[tuple[str, ...]]:
    for status, response in operation["responses"].items():
        yield status, escape(response["description"])


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells, each of which is HTML, as a table; nothing if there are none."""
    lines = ["<tr>" + "".join(f"<td>{cell}" for cell in cells) for cells in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""
