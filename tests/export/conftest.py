"""What several tests of export share."""

import shutil
from pathlib import Path

import pytest

from export import stages
from training.checkpoint import load_model
from training.models import FeatureCompressionModel


@pytest.fixture
def ready_graphs(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves an export the seconds of torch.onnx: its graphs are always those of `random_bundle`."""

    def copy_graph(name: str) -> None:
        monkeypatch.setattr(
            stages, f"export_{name}", lambda _, path: shutil.copy(random_bundle / path.name, path)
        )

    copy_graph("edge")
    copy_graph("cloud")


@pytest.fixture(scope="session")
def model(random_checkpoint: Path) -> FeatureCompressionModel:
    """The model of `random_bundle`."""
    return load_model(random_checkpoint, "ours_n0")[0]
