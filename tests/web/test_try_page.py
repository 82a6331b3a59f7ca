"""The page /try in Chromium: web/test/page.test.js says what is tested."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from needed_tool import needed
from PIL import Image
from served import served
from service_app import TOKEN

from runtime import EdgeEncoder
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


@pytest.mark.slow
def test_in_chromium(web_build: Path, node: str, bundle: Path, pictures: Path) -> None:
    chromium = needed("chromium", "chromium")
    if not (web_build / "node_modules" / "playwright-core").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have playwright-core")
        pytest.skip("no playwright-core: npm ci --prefix web")
    (pictures / "tokens").write_text(TOKEN)
    settings = Settings(
        bundles=(bundle,), threads=1, deadline_ms=60_000, token_file=pictures / "tokens"
    )
    with served(settings) as (_, (host, port)):
        done = subprocess.run(
            [node, "--test", "--test-reporter=tap", web_build / "test" / "page.test.js"],
            env={
                **os.environ,
                "EDGECLOUD_URL": f"http://{host}:{port}/try",
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
    assert int(found[1]) == 9
