"""The default bundle, a folder of photos, and a server and a spool for edge-send."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from failing_server import FailingServer
from numpy.typing import NDArray
from PIL import Image

from runtime.delivery.spool import Spool


@pytest.fixture
def default_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))


@pytest.fixture
def photos(tmp_path: Path, golf_ball: NDArray[np.uint8]) -> Path:
    """A folder with five different images in three folders, hidden files, and a text file."""
    folder = tmp_path / "photos"
    for index, name in enumerate(
        ("b.jpg", "a.PNG", "sub/c.jpeg", "sub/deep er/d.webp", "z[1].jpg")
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(golf_ball, 37 * index, axis=1)).save(path)
    (folder / "sub" / "notes.txt").write_text("no image")
    (folder / "._b.jpg").write_bytes(b"what macOS leaves beside an image")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "e.jpg").write_bytes(b"thrown away")
    return folder


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with FailingServer() as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECLOUD_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))
    return tmp_path / "spool"


@pytest.fixture
def pending(spool: Path) -> Path:
    """A spool in which a file of an earlier run waits."""
    with Spool(spool) as opened:
        opened.accept("earlier", b"earlier")
    return spool


@pytest.fixture
def feat(tmp_path: Path, feature_bytes: bytes) -> Path:
    path = tmp_path / "feat.bin"
    path.write_bytes(feature_bytes)
    return path
