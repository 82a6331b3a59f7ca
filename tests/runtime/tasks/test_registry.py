"""A second task: one class and one line of registration, for a graph with another output."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import cloud_decode
from runtime.engine import tune
from runtime.engine.registry import SAFE
from runtime.errors import InconsistentBundleError
from runtime.tasks import registry


class Quantity(NamedTuple):
    """What a regression answers."""

    label: str
    value: float


class Regression:
    """A user's task: the graph's output `values` has one quantity per label."""

    OUTPUT = "values"

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)

    def check(self, rows: NDArray[Any]) -> None:
        if rows.shape[1] != len(self.labels):
            raise InconsistentBundleError(f"{len(self.labels)} labels for {rows.shape[1]} values")

    def answers(self, row: NDArray[Any], top_k: int) -> list[Any]:
        return [Quantity(*pair) for pair in zip(self.labels, row.tolist(), strict=True)][:top_k]

    @staticmethod
    def line(answer: Mapping[str, Any]) -> str:
        return f"{answer['label']} {answer['value']:.3f}"

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        far = float(np.abs(found - expected).max())
        return far, not far <= 0.01


@pytest.fixture
def regression_bundle(random_bundle: Path, copy_of: Callable[[Path], Path]) -> Path:
    """`random_bundle`, whose cloud graph names its output `values`."""
    folder = copy_of(random_bundle)
    model = onnx.load(folder / "cloud.onnx")
    names = [output.name for output in model.graph.output]
    for node in model.graph.node:
        node.output[:] = ["values" if name == "logits" else name for name in node.output]
    model.graph.output[names.index("logits")].name = "values"
    data = model.SerializeToString()
    (folder / "cloud.onnx").unlink()
    (folder / "cloud.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["cloud.onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_task_is_one_class_and_one_line_of_registration(
    regression_bundle: Path,
    random_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InconsistentBundleError, match="without any of the outputs logits"):
        CloudDecoder(regression_bundle)
    monkeypatch.setattr(registry, "TASKS", [*registry.TASKS, Regression])
    monkeypatch.setattr(tune, "ROUNDS", 2)
    monkeypatch.setattr(tune, "candidates", lambda bundle, end: [SAFE])
    data = EdgeEncoder(random_bundle, 1).encode(golf_ball)
    (tmp_path / "f.bin").write_bytes(data)
    expected = CloudDecoder(random_bundle, 1).logits([data])[0]
    first, second = CloudDecoder(regression_bundle, 1).classify(data, 2)
    assert first == ("thing 0", expected[0])
    assert second == ("thing 1", expected[1])
    arguments = ["--bundle", str(regression_bundle), str(tmp_path / "f.bin"), "--top-k", "1"]
    assert cloud_decode.main([*arguments, "--tune"]) == 0
    assert cloud_decode.main(arguments) == 0
    assert f"  thing 0 {expected[0]:.3f}\n" in capsys.readouterr().out
