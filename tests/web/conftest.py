"""What tests of the web package and the page share: both built by `make web`, once."""

from pathlib import Path

import pytest
from needed_tool import needed
from web_build import build_web


@pytest.fixture(scope="session")
def node() -> str:
    return needed("node", "nodejs")


@pytest.fixture(scope="session")
def web_build() -> Path:
    """The folder `web`, with what `make web` compiles."""
    return build_web()
