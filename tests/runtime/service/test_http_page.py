"""The page /try: its files and the bundle's, their headers, and pages of other origins."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from service_app import TOKEN, assert_refused, running

from runtime.cli import cloud_serve
from runtime.service import http_page
from runtime.service.bundles import ServedBundles
from runtime.service.core import Service
from runtime.service.settings import Settings

WEB = Path(__file__).resolve().parents[3] / "web"
HALVES = ("edge.tables", "edge.weights")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with other content, in the place of the one that `make web` makes."""
    folder = tmp_path / "page"
    (folder / "try").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    for name in http_page.FILES:
        (folder / "try" / name).write_text(f"content of {name}")
    (tmp_path / "secret").write_text("secret")
    (folder / "try" / "other.js").write_text("other")
    monkeypatch.setattr(http_page, "PAGE", folder)
    return folder


def test_the_page_and_its_files(serve: Callable[..., None], page: Path) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.get("/try")
        assert response.text == "<!doctype html>"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        for name, kind in http_page.FILES.items():
            response = await client.get(f"/try/{name}")
            assert response.text == f"content of {name}"
            assert response.headers["content-type"].split(";")[0] == kind
            policy = response.headers["content-security-policy"].split("; ")
            assert policy[:2] == ["default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'"]
            assert not re.search(r"\*|http|unsafe-inline|'unsafe-eval'", " ".join(policy))
            assert response.headers["x-content-type-options"] == "nosniff"
        for path in ("/try/other.js", "/try/", "/try/..%2Fsecret", "/try/%2e%2e", "/try/a/b"):
            assert_refused(await client.get(path), 404, "not_found")
        assert_refused(await client.post("/try"), 405, "method_not_allowed")

    serve(work)


def test_a_page_that_is_not_built(
    serve: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_page, "PAGE", tmp_path)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        for path in ("/try", "/try/try.js"):
            assert_refused(await client.get(path), 404, "page_not_built", "`make web`")

    serve(work)


def test_the_edge_half_of_the_served_bundle(serve: Callable[..., None], bundle: Path) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        for name in HALVES:
            response = await client.get(f"/try/{name}")
            assert response.content == (bundle / name).read_bytes()

    serve(work)


def test_no_bundle_with_an_edge_half(
    serve: Callable[..., None], random_bundle: Path, bundle: Path
) -> None:
    assert not (random_bundle / "edge.weights").exists()

    async def refused(client: httpx.AsyncClient, _: Service) -> None:
        for name in HALVES:
            assert_refused(await client.get(f"/try/{name}"), 404, "no_edge_half", "int8 graphs")

    async def second(client: httpx.AsyncClient, _: Service) -> None:
        response = await client.get("/try/edge.tables")
        assert response.content == (bundle / "edge.tables").read_bytes()

    serve(refused, bundles=(random_bundle,))
    serve(second, bundles=(random_bundle, bundle))


def test_only_the_bundle_needs_a_token(
    serve: Callable[..., None], page: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        for path in ("/try", *(f"/try/{name}" for name in http_page.FILES)):
            assert (await client.get(path)).status_code == 200
        for path in ("/try/other.js", *(f"/try/{name}" for name in HALVES)):
            assert_refused(await client.get(path), 401, "unauthorized")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for name in HALVES:
            assert (await client.get(f"/try/{name}", headers=headers)).status_code == 200

    serve(work, token_file=tmp_path / "tokens")


def test_the_list_of_files_is_what_the_page_has() -> None:
    scripts = {path.name for path in (WEB / "src").glob("*.js")}
    own = {path.name for path in (WEB / "try").iterdir()} - {"index.html"}
    assert set(http_page.FILES) == {*scripts, *own, "edgecloud.wasm"}
    for path in (WEB / "try").iterdir():
        assert not re.search(r"https?://(?!host/)|@import|url\(", path.read_text()), path


def test_pages_of_allowed_origins(
    bundle: Path, loaded: ServedBundles, feature_bytes: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    ours, other = "https://page.example", "https://other.example"
    settings = Settings(
        bundles=(bundle,), threads=1, deadline_ms=60_000, token_file=tmp_path / "tokens"
    )

    async def work(allow_origins: tuple[str, ...], origin: str, allowed: str | None) -> None:
        headers = {"Origin": origin}
        ask = {"Access-Control-Request-Method": "POST"}
        ask["Access-Control-Request-Headers"] = "authorization"
        async with running(settings, loaded, allow_origins) as (client, _):
            question = await client.options("/v1/classify", headers=headers | ask)
            refused = await client.post("/v1/classify", content=feature_bytes, headers=headers)
            assert_refused(refused, 401, "unauthorized")
            headers["Authorization"] = f"Bearer {TOKEN}"
            answer = await client.post("/v1/classify", content=feature_bytes, headers=headers)
        assert answer.status_code == 200
        assert (question.status_code == 200) == (allowed is not None)
        for response in (question, refused, answer):
            assert response.headers.get("access-control-allow-origin") == allowed

    asyncio.run(work((ours,), ours, ours))
    asyncio.run(work((ours,), other, None))
    asyncio.run(work(("*",), other, "*"))
    asyncio.run(work((), ours, None))


def test_origins_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    parse = cloud_serve._parser().parse_args
    assert parse([]).allow_origin is None
    origins = ["https://Page.example:8443", "*", "https://page.example:443", "http://a:443"]
    given = parse([word for origin in origins for word in ("--allow-origin", origin)])
    assert given.allow_origin == [
        "https://page.example:8443",
        "*",
        "https://page.example",
        "http://a:443",
    ]
    for wrong in ("page.example", "https://page.example/", "null", "ftp://page.example", ""):
        with pytest.raises(SystemExit) as exit:
            parse(["--allow-origin", wrong])
        assert exit.value.code == 2
        assert f"{wrong!r} is no origin: give it without a path" in capsys.readouterr().err
