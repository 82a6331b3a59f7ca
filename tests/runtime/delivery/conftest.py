"""A server that fails as it is told, a spool, and an environment without proxies."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from deliveries import Environment
from failing_server import FailingServer

from runtime.delivery import sender
from runtime.delivery.spool import Spool


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with FailingServer() as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    """The sender waits hundredths of a second after failures."""
    with (
        mock.patch.object(sender, "_FIRST_WAIT", 0.01),
        mock.patch.object(sender, "_LONGEST_WAIT", 0.05),
    ):
        yield


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets environment variables; there are no other proxy settings."""

    def use(**variables: str) -> None:
        for name in os.environ:
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    use()
    return use
