"""A second task: one class and one line of registration, for a graph with another output."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import cloud_decode
from runtime.engine import tune
from runtime.engine.registry import SAFE
from runtime.errors import InconsistentBundleError, UnsupportedBundleError
from runtime.tasks import registry
from runtime.tasks.base import Field


class Quantity(NamedTuple):
    """What a regression answers."""

    label: str
    value: float


class Regression:
    """A user's task: the graph's output `values` has one quantity per label."""

    NAME = "regression"
    OUTPUT = "values"
    ANSWERS = "quantities"
    ANSWER = "Quantity"
    FIELDS = (Field("label", str), Field("value", float))

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
    def brief(answer: Mapping[str, Any]) -> str:
        return f"{answer['label']} is {answer['value']:.3f}"

    @staticmethod
    def deviation(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
        far = float(np.abs(found - expected).max())
        return far, not far <= 0.01


@pytest.fixture
def regression_bundle(random_bundle: Path, copy_of: Callable[[Path], Path]) -> Path:
    """`random_bundle`, whose manifest says `regression`, and whose cloud graph gives `values`."""
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
    manifest["task"] = "regression"
    manifest["files"]["cloud.onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def register() -> Iterator[Callable[[], None]]:
    """The line of registration, undone after the test."""
    before = list(registry.TASKS)
    yield lambda: registry.TASKS.append(Regression)
    registry.TASKS[:] = before


def test_a_task_is_one_class_and_one_line_of_registration(
    regression_bundle: Path,
    random_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    register: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UnsupportedBundleError, match="'regression', and the tasks here are class"):
        CloudDecoder(regression_bundle)
    register()
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


def test_a_graph_without_the_output_of_its_task_is_refused(
    regression_bundle: Path, register: Callable[[], None]
) -> None:
    register()
    manifest = json.loads((regression_bundle / "manifest.json").read_text())
    (regression_bundle / "manifest.json").unlink()
    (regression_bundle / "manifest.json").write_text(
        json.dumps(manifest | {"task": "classification"})
    )
    with pytest.raises(InconsistentBundleError, match="a cloud graph without an output logits"):
        CloudDecoder(regression_bundle)


def test_parquet_has_the_columns_of_the_task(
    regression_bundle: Path,
    random_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    register: Callable[[], None],
) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the parquet extra")
    from runtime.bulk import parquet

    register()
    encoder, decoder = EdgeEncoder(random_bundle, 1), CloudDecoder(regression_bundle, 1)
    data, target = encoder.encode(golf_ball), tmp_path / "answers.parquet"
    with parquet.pack_writer(tmp_path / "pack.parquet", encoder.bundle) as write:
        write("good", data, 224, 224)
        write("bad", data[:-1], 224, 224)
    assert parquet.classify_pack(tmp_path / "pack.parquet", target, decoder) == (1, 1)
    good, bad = pq.read_table(target).to_pylist()
    value = pytest.approx(float(decoder.logits([data])[0, 0]), rel=1e-6)
    assert good == {"key": "good", "label": "thing 0", "value": value, "error": None}
    assert (bad["label"], bad["value"]) == (None, None)
    assert parquet.is_classified(target, decoder.bundle, 2)
    assert not parquet.is_classified(target, encoder.bundle, 2)


def test_the_service_and_edge_send_know_the_answers_of_the_task(
    regression_bundle: Path,
    random_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
    register: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    httpx = pytest.importorskip("httpx", reason="httpx comes with the send extra")
    pytest.importorskip("uvicorn", reason="uvicorn comes with the serve extra")
    from served import served

    from runtime.cli import edge_send
    from runtime.service.settings import Settings

    register()
    data = EdgeEncoder(random_bundle, 1).encode(golf_ball)
    values = CloudDecoder(regression_bundle, 1).logits([data])[0].tolist()
    Image.fromarray(golf_ball).save(tmp_path / "ball.png")
    with served(Settings(bundles=(regression_bundle,), threads=1)) as (_, (host, port)):
        url = f"http://{host}:{port}"
        answer = httpx.post(f"{url}/v1/classify?top_k=1", content=data).json()
        document = httpx.get(f"{url}/openapi.json").json()
        model = f"{url}/v2/models/{regression_bundle.name}"
        outputs = httpx.get(model).json()["outputs"]
        tensor = {"name": "feature_file", "datatype": "BYTES", "shape": [1]}
        request = {"inputs": [tensor | {"data": [base64.b64encode(data).decode()]}]}
        tensors = httpx.post(f"{model}/infer", json=request).json()["outputs"]
        arguments = ["--url", url, "--bundle", str(random_bundle), "--spool", str(tmp_path / "s")]
        assert edge_send.main([*arguments, str(tmp_path / "ball.png")]) == 0
    assert answer["quantities"] == [{"label": "thing 0", "value": pytest.approx(values[0])}]
    assert "classes" not in answer
    schemas = document["components"]["schemas"]
    assert schemas["Quantity"]["properties"] == {
        "label": {"type": "string"},
        "value": {"type": "number"},
    }
    assert {"classes", "quantities"} <= set(schemas["Result"]["properties"])
    assert [output["name"] for output in outputs] == ["label", "value", "values"]
    assert {tensor["name"]: tensor["data"] for tensor in tensors} == {
        "label": ["thing 0"],
        "value": pytest.approx(values[:1]),
        "values": pytest.approx(values),
    }
    assert f"bytes, thing 0 is {values[0]:.3f}\n" in capsys.readouterr().out
