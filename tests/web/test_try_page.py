"""The page /try in Chromium: web/test/page.test.js says what is tested."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from needed_tool import needed
from PIL import Image
from served import served
from service_app import TOKEN

from runtime import EdgeEncoder
from runtime.service.http_page import PAGE
from runtime.service.settings import Settings

GOLF_BALL = Path(__file__).resolve().parent.parent.parent / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture
def pictures(bundle: Path, tmp_path: Path) -> Path:
    """The demo's picture in two formats, and the feature file of the lossless one."""
    shutil.copy(GOLF_BALL, tmp_path / "picture.jpg")
    Image.open(GOLF_BALL).save(tmp_path / "picture.png")
    encoder = EdgeEncoder(bundle, threads=1, provider="native")
    (tmp_path / "picture.feat").write_bytes(encoder.encode(tmp_path / "picture.png"))
    return tmp_path


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files, and prints nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def _static_site(folder: Path) -> Iterator[str]:
    """Serves a folder on an origin of its own, which it gives."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_in_chromium(
    web_build: Path, node: str, bundle: Path, variable_bundle: Path, pictures: Path
) -> None:
    chromium = needed("chromium", "chromium")
    if not (web_build / "node_modules" / "playwright-core").is_dir():
        pytest.skip("no playwright-core: npm ci --prefix web")
    (pictures / "tokens").write_text(TOKEN)
    settings, rates = (
        Settings(bundles=(one,), threads=1, deadline_ms=60_000, token_file=pictures / "tokens")
        for one in (bundle, variable_bundle)
    )
    with (
        _static_site(pictures / "site") as site,
        served(settings, allow_origins=[site]) as (_, (host, port)),
        served(rates) as (_, (rates_host, rates_port)),
    ):
        service = f"http://{host}:{port}"
        shutil.copytree(PAGE, pictures / "site", dirs_exist_ok=True)
        index = pictures / "site" / "index.html"
        meta = '<meta name="edgecloud-service" content="{}" />'
        assert meta.format("./") in index.read_text()
        index.write_text(index.read_text().replace(meta.format("./"), meta.format(f"{service}/")))
        done = subprocess.run(
            [node, "--test", "--test-reporter=tap", web_build / "test" / "page.test.js"],
            env={
                **os.environ,
                "EDGECLOUD_URL": f"{service}/try",
                "EDGECLOUD_RATES": f"http://{rates_host}:{rates_port}/try",
                "EDGECLOUD_ELSEWHERE": f"{site}/index.html",
                "EDGECLOUD_TOKEN": TOKEN,
                "EDGECLOUD_PICTURES": str(pictures),
                "EDGECLOUD_CHROMIUM": chromium,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert int(found[1]) == 11
