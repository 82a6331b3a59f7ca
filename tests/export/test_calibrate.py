"""The margin by which the cloud graph's ranges are wider than those of the average image."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.int8.calibrate import widened
from export.int8.quantise import quantise
from export.int8.ranges import MARGIN, Ranges, take_ranges
from runtime.engine.onnxruntime import open_session

HASH = "a" * 64


def _graph(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    """A graph from values [1, 16, 8, 8] to 8 logits, the means of a map. RANDOM weights."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 0.25, (16, 16, 1, 1)), "v": rng.normal(0, 0.25, (8, 16, 1, 1))}
    end = [
        helper.make_node("GlobalAveragePool", ["map"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    graph = helper.make_graph(
        [*nodes, *end],
        "cloud",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["values"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], "first"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["map"], "last"),
    ]
    return _graph(tmp_path / "cloud.onnx", nodes)


def _images(highest: list[float]) -> list[NDArray[np.float32]]:
    """300 images, whose values go up to these numbers in turn."""
    rng = np.random.default_rng(1)
    return [
        rng.uniform(0, highest[index % len(highest)], (1, 16, 8, 8)).astype(np.float32)
        for index in range(300)
    ]


def _moved(cloud: Path, ranges: Ranges, images: list[NDArray[np.float32]]) -> float:
    """The mean square of a logit's change in int8, as a share of its image's variance."""
    out = cloud.with_name("int8.onnx")
    quantise(cloud, ranges, HASH, out)
    sessions = [open_session(path) for path in (cloud, out)]
    rows = [[one.run(None, {"values": image})[0] for one in sessions] for image in images]
    return float(np.mean([np.square(new - old).mean() / old.var() for old, new in rows]))


@pytest.mark.parametrize("highest", [[1.0], [0.7, 1.3]])
def test_the_margin_moves_the_logits_least(
    cloud: Path, highest: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where half of the images are brighter, it is wide enough for these."""
    images = _images(highest)
    narrow, _ = take_ranges(cloud, images, HASH, 1)
    ranges = widened(cloud, narrow, images[:40])
    margin = ranges.operators[0][2] / narrow.operators[0][2]
    assert margin > 1.29 or highest == [1.0]
    assert ranges.operators == narrow.times(margin).operators
    found = _moved(cloud, ranges, images[:40])
    assert found > 0
    said = capsys.readouterr().err
    assert f"ranges are {margin - 1:.0%} wider" in said
    assert float(said.split("logits by ")[1].split()[0]) == pytest.approx(found, rel=0.01)
    for other in (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4):
        assert found <= _moved(cloud, narrow.times(other), images[:40]) * (1 + 1e-6)


def test_logits_that_are_all_equal_have_no_variance_to_divide_by(cloud: Path) -> None:
    images = [np.zeros((1, 16, 8, 8), np.float32)] * 300
    narrow, _ = take_ranges(cloud, images, HASH, 1)
    assert widened(cloud, narrow, images[:2]).operators == narrow.operators


def test_where_nothing_is_quantised_there_is_nothing_to_choose(tmp_path: Path) -> None:
    """A convolution that is fed with scaled symbols stays in float32."""
    cloud = _graph(
        tmp_path / "cloud.onnx", [helper.make_node("Conv", ["values", "v"], ["map"], "only")]
    )
    images = _images([1.0])
    narrow, _ = take_ranges(cloud, images, HASH, 1)
    assert widened(cloud, narrow, images[:2]) == narrow.times(MARGIN)
