"""A hook of mkdocs that collects the site's pages, and generates some of them from the code.

    commands.md   every command's options, from its parser
    http.md       every path of the service, from its OpenAPI document
    errors.md     every error class, from runtime/errors.py

The site has the same folders as the repository, so that a relative link leads to the same file on
GitHub and on the site. Every file that a page links to is part of the site.

Always holds: nothing is written into the repository, and no page makes a browser load anything
from elsewhere.
"""

import argparse
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import errors, refusals
from runtime.service.openapi import document

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

Row = tuple[str, ...]
PROJECT = Path(__file__).resolve().parent.parent
MODULES = (
    "export.cli",
    "training.train",
    "training.distil",
    "training.cuts",
    "training.backbone",
    "training.average",
    "training.shrink",
    "training.evaluate",
)
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
_FETCHES = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\shref=["']?(?:https?:)?//[^>]*>"""
)


def _cell(text: str) -> str:
    """Plain text for a cell of a table."""
    return escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("*", "&#42;")


def _table(head: Row, rows: Iterable[Row]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def parsers() -> list[argparse.ArgumentParser]:
    """Every command's parser: the installed commands, then the modules."""
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    modules = [target.split(":")[0] for target in scripts.values()]
    return [importlib.import_module(module)._parser() for module in (*modules, *MODULES)]


def _option(action: argparse.Action) -> str:
    """An argument as it is typed: `-o FILE`, `--json`, `IMAGE`."""
    if action.metavar is not None:
        value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    elif action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = action.dest.upper() if action.option_strings else action.dest
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{name}`" for name in action.option_strings) + (
        "" if action.nargs == 0 else f" `{value}`"
    )


def commands() -> str:
    """The page of all commands."""
    lines = [
        "# Commands",
        "",
        "The text of each command's `--help`. Results go to standard output, everything else to",
        "standard error.",
    ]
    for parser in parsers():
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=80)
        rows = [
            (_option(action), _cell((action.help or "") % {**vars(action), "prog": parser.prog}))
            for action in parser._actions
            if action.help != argparse.SUPPRESS
        ]
        lines += ["", f"## {parser.prog}", "", escape(parser.description or "", quote=False), ""]
        lines += ["```text", parser.format_usage().strip(), "```", ""]
        lines += _table(("option", "what"), rows)
        if parser.epilog:
            lines += ["", escape(parser.epilog, quote=False)]
    return "\n".join(lines) + "\n"


def _children(kind: type[errors.EdgeCloudError]) -> list[type[errors.EdgeCloudError]]:
    """The classes of runtime/errors.py directly under a class, in the order of the file."""
    named = [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.EdgeCloudError)
    ]
    return [one for one in named if kind in one.__bases__]


def _below(kind: type[errors.EdgeCloudError]) -> list[type[errors.EdgeCloudError]]:
    return [kind] + [one for child in _children(kind) for one in _below(child)]


def errors_page() -> str:
    """The page of all refusals."""
    lines = [
        "# Errors",
        "",
        "Every refusal is a class in `runtime.errors`, derived from `EdgeCloudError`. Its message",
        "names the value and a remedy. The service answers with a status and a code; classes",
        "without them are not caused by requests.",
        "",
    ]
    rows: list[Row] = []
    for family in _children(errors.EdgeCloudError):
        for kind in _below(family):
            status = next(
                (refusals.STATUS[one] for one in kind.__mro__ if one in refusals.STATUS), None
            )
            bases = "" if kind is family else f" A kind of `{kind.__bases__[0].__name__}`."
            http = f"{status} `{refusals.code_of(kind)}`" if status else ""
            rows.append((f"`{kind.__name__}`", _cell(inspect.getdoc(kind) or "") + bases, http))
    return "\n".join(lines + _table(("class", "what", "HTTP"), rows)) + "\n"


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "items" in schema:
        return f"array of {_schema(schema['items'])}"
    if "oneOf" in schema:
        return " or ".join(_schema(one) for one in schema["oneOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("properties"):
        return "object of " + ", ".join(f"`{name}`" for name in schema["properties"])
    return str(schema.get("type", "any"))


def http() -> str:
    """The page of the service's paths, statuses and codes."""
    described = document()
    lines = [
        "# HTTP",
        "",
        "Generated from the OpenAPI document that the service returns at `/openapi.json`. The",
        "manual is [Serving](SERVING.md).",
        "",
    ]
    lines += ["## Paths"]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"### {method.upper()} {path}", "", operation["summary"], ""]
            lines += [operation["description"], ""] if "description" in operation else []
            for parameter in operation.get("parameters", []):
                kind = _schema(parameter["schema"])
                lines += [f"Parameter `{parameter['name']}`, in the {parameter['in']}: {kind}.", ""]
            rows: list[Row] = []
            for status, answer in operation["responses"].items():
                body = ", ".join(
                    f"{kind}: {_schema(content['schema'])}"
                    for kind, content in answer.get("content", {}).items()
                )
                rows.append((status, _cell(answer["description"]), body))
            lines += _table(("status", "what", "body"), rows)
    lines += ["", "## Objects"]
    for name, schema in described["components"]["schemas"].items():
        lines += ["", f"### {name}", ""]
        if "properties" not in schema:
            lines += [_schema(schema)]
            continue
        rows = [
            (
                f"`{member}`",
                _schema(one),
                _cell(one.get("description", "")),
                "" if member in schema["required"] else "optional",
            )
            for member, one in schema["properties"].items()
        ]
        lines += _table(("member", "type", "what", ""), rows)
    return "\n".join(lines) + "\n"


GENERATED = {"docs/commands.md": commands, "docs/http.md": http, "docs/errors.md": errors_page}


def linked_files(roots: list[Path]) -> list[Path]:
    """These files, and all files of the repository that they link to, directly or through pages."""
    found = dict.fromkeys(roots)
    queue = list(found)
    while queue:
        page = queue.pop()
        if page.suffix != ".md":
            continue
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target.is_relative_to(PROJECT) and target.is_file() and target not in found:
                found[target] = None
                queue.append(target)
    return list(found)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """The site's files: all pages, the files that they link to, and the generated pages."""
    from mkdocs.structure.files import File
    from mkdocs.structure.files import Files as FileList

    site = FileList([file for file in files if file.src_dir != config.docs_dir])
    pages = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
    for path in linked_files([*pages, PROJECT / "docs" / "site.css"]):
        name = path.relative_to(PROJECT).as_posix()
        site.append(File(name, str(PROJECT), config.site_dir, config.use_directory_urls))
    for name, page in GENERATED.items():
        site.append(File.generated(config, name, content=page()))
    return site


def on_post_page(output: str, page: "Page", config: "MkDocsConfig") -> str:
    """Refuse a page that would make a browser load something from elsewhere."""
    from mkdocs.exceptions import PluginError

    if fetched := _FETCHES.search(output):
        raise PluginError(f"{page.file.src_uri} would load from elsewhere: {fetched[0]}")
    return output
