"""The site's generated pages are complete, and pages that load from elsewhere are refused."""

import runpy
from pathlib import Path

import pytest

from runtime import errors
from runtime.service.openapi import document

PROJECT = Path(__file__).resolve().parent.parent
GENERATE = runpy.run_path(str(PROJECT / "docs" / "generate.py"))


def test_every_option_of_every_command_is_on_the_page() -> None:
    page = GENERATE["commands"]()
    parsers = GENERATE["parsers"]()
    assert len(parsers) == 12
    for parser in parsers:
        (own,) = (part for part in page.split("\n## ") if part.startswith(f"{parser.prog}\n"))
        for action in parser._actions:
            assert all(f"`{name}`" in own for name in action.option_strings)
        if parser.epilog:
            assert parser.epilog in own


def test_every_refusal_is_on_the_page_once() -> None:
    page = GENERATE["errors_page"]()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind is not errors.EdgeCloudError:
            assert page.count(f"\n| `{name}` |") == 1
    row = (
        "| `TruncatedFeatureFileError` | A feature file that ends early. "
        "A kind of `DamagedFeatureFileError`. | 400 `truncated_feature_file` |"
    )
    assert row in page


def test_every_path_and_object_of_the_service_is_on_the_page() -> None:
    page = GENERATE["http"]()
    described = document()
    assert all(
        f"### {method.upper()} {path}\n" in page
        for path, one in described["paths"].items()
        for method in one
    )
    assert all(f"### {name}\n" in page for name in described["components"]["schemas"])


def test_linked_files_are_part_of_the_site() -> None:
    linked = GENERATE["linked_files"]([PROJECT / "README.md"])
    assert {
        PROJECT / "LICENSE",
        PROJECT / "docs" / "design.md",
        PROJECT / "benchmarks" / "results" / "latency.png",
    } & set(linked)
    assert all(path.is_relative_to(PROJECT) for path in linked)


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://example.com/a.js"></script>', True),
        ('<img alt="" src=//example.com/a.png>', True),
        ('<link rel="stylesheet" href="https://example.com/a.css">', True),
        ('<link rel="canonical" href="https://example.com/">', False),
        (
            '<a href="https://example.com/">there</a><img src="a.png"><script src="b.js"></script>',
            False,
        ),
    ],
)
def test_a_page_that_would_load_from_elsewhere_is_found(html: str, fetches: bool) -> None:
    assert bool(GENERATE["_FETCHES"].search(html)) == fetches
