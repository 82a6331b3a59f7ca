"""The parity check sees graphs that do not give what torch gives."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.images import synthetic_images
from export.parity import ParityError, check_parity
from export.tables import make_tables
from training.checkpoint import load_model
from training.models import FeatureCompressionModel, build_random_model


def test_the_check_sees_other_weights(random_bundle: Path) -> None:
    other = build_random_model("ours_n0", 10, seed=1)
    with pytest.raises(ParityError, match="of the symbols equal torch's"):
        check_parity(
            other,
            make_tables(other),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            synthetic_images(3),
            "synthetic images",
        )


def test_the_check_sees_another_tail(random_checkpoint: Path, random_bundle: Path) -> None:
    other = load_model(random_checkpoint, "ours_n0")[0]
    with torch.no_grad():
        other.tail.fc.bias[3] += 0.01
    with pytest.raises(ParityError, match="a logit differs"):
        check_parity(
            other,
            make_tables(other),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            synthetic_images(1),
            "synthetic images",
        )


def test_the_check_wants_symbols_that_are_not_zero(
    model: FeatureCompressionModel, random_bundle: Path
) -> None:
    grey = np.full((1, 224, 224, 3), 124, np.uint8)
    with pytest.raises(ParityError, match="not zero"):
        check_parity(
            model,
            make_tables(model),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            grey,
            "one grey image",
        )


def test_the_check_sees_another_embedding(
    model: FeatureCompressionModel, random_bundle: Path, tmp_path: Path
) -> None:
    """Even if the logits are those of torch."""
    graph = onnx.load(random_bundle / "cloud.onnx")
    (pooling,) = (node for node in graph.graph.node if node.output[0] == "embedding")
    pooling.output[0] = "pooled"
    for node in graph.graph.node:
        node.input[:] = ["pooled" if name == "embedding" else name for name in node.input]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["pooled"], ["embedding"]))
    onnx.save(graph, tmp_path / "cloud.onnx")
    with pytest.raises(ParityError, match=r"^an embedding differs by [0-9.]+, over 0.001$"):
        check_parity(
            model,
            make_tables(model),
            random_bundle / "edge.onnx",
            tmp_path / "cloud.onnx",
            synthetic_images(1),
            "synthetic images",
        )
