"""The exported graphs give what torch gives, at any batch and size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.graphs import (
    OPSET,
    CloudGraph,
    EdgeGraph,
    ExportError,
    export_cloud,
    export_edge,
    largest_latent,
)
from export.images import synthetic_images
from export.levels import own_coding
from export.link import Link
from export.parity import torch_outputs, torch_symbols
from export.tables import link_of
from runtime.engine.onnxruntime import open_session
from training.backbones import TailOutputs
from training.models import MODELS, FeatureCompressionModel, build_random_model


def hold_to_torch(model: FeatureCompressionModel, edge: Path, cloud: Path) -> None:
    """Compare both graphs with torch on several batches and odd latent sizes."""
    sessions = [open_session(path) for path in (edge, cloud)]
    link = link_of(own_coding(model)) if model.spec.variable_rate else Link()
    step = link.steps[-1]
    for shape in ((1, 224, 224, 3), (2, 72, 40, 3), (5, 24, 136, 3), (3, 16, 16, 3)):
        pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
        expected = torch_symbols(model, pixels, step)
        logits, embedding = torch_outputs(model, expected, step)
        symbols = link.symbols(sessions[0].run(None, {"pixels": pixels})[0], step)
        assert symbols.dtype == np.int16
        assert symbols.shape == expected.shape
        assert (symbols == expected).mean() > 0.999
        found = sessions[1].run(["logits", "embedding"], link.feed(expected, step))
        assert np.abs(found[0] - logits).max() < 1e-3
        width = model.tail.get_parameter(f"{model.spec.backbone.classifier}.weight").shape[1]
        assert embedding.shape == found[1].shape == (len(pixels), width)
        assert np.abs(found[1] - embedding).max() < 1e-3


def test_graphs_are_torchs_at_any_batch_and_size(
    model: FeatureCompressionModel, random_bundle: Path
) -> None:
    hold_to_torch(model, random_bundle / "edge.onnx", random_bundle / "cloud.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "ours_n0"])
def test_every_model_exports(name: str, tmp_path: Path) -> None:
    model = build_random_model(name, 10)
    export_edge(model, tmp_path / "edge.onnx")
    export_cloud(model, tmp_path / "cloud.onnx")
    hold_to_torch(model, tmp_path / "edge.onnx", tmp_path / "cloud.onnx")


def test_graphs_are_cut_at_integers_and_have_gelu_whole(random_bundle: Path) -> None:
    edge, cloud = (onnx.load(random_bundle / name) for name in ("edge.onnx", "cloud.onnx"))
    assert {entry.version for entry in edge.opset_import if entry.domain == ""} == {OPSET}
    assert edge.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert edge.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT16
    assert cloud.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT16
    operators = [node.op_type for node in (*edge.graph.node, *cloud.graph.node)]
    assert operators.count("Gelu") == 4
    assert not {"Erf", "Tanh"} & set(operators)
    assert b"/" not in b"".join(node.doc_string.encode() for node in edge.graph.node)


def test_huge_latents_are_clamped(tmp_path: Path) -> None:
    huge = build_random_model("ours_n0", 10)
    with torch.no_grad():
        huge.bottleneck_layer.encoder[-1].bias[:2] = torch.tensor([1e9, -1e9])
    export_edge(huge, tmp_path / "edge.onnx")
    session = open_session(tmp_path / "edge.onnx")
    symbols = session.run(None, {"pixels": synthetic_images(1, 64)})[0][0]
    assert (symbols[0] == 32767).all()
    assert (symbols[1] == -32767).all()
    assert (abs(symbols[2:]) < 100).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e31])
def test_weights_with_which_a_latent_might_be_no_number_are_refused(
    value: float, tmp_path: Path
) -> None:
    broken = build_random_model("ours_n0", 10)
    with torch.no_grad():
        broken.bottleneck_layer.encoder[-1].bias[0] = value
    with pytest.raises(ExportError, match="the checkpoint is broken"):
        export_edge(broken, tmp_path / "edge.onnx")
    assert not (tmp_path / "edge.onnx").exists()


@pytest.mark.parametrize("name", ["ours_n0", "ours_n4", "matsubara2022wacv"])
def test_no_latent_is_larger_than_its_bound(name: str) -> None:
    encoder = EdgeGraph(build_random_model(name, 10)).encoder
    pixels = torch.cat(
        [
            torch.from_numpy(synthetic_images(2, 64)).permute(0, 3, 1, 2).float(),
            255 * torch.ones(1, 3, 64, 64),
        ]
    )
    with torch.no_grad():
        found = float(encoder(pixels).abs().max())
    assert 0 < found <= largest_latent(encoder) < 1e30


class _FeaturesAlone(nn.Module):
    """A tail that gives the features as embedding."""

    def forward(self, features: torch.Tensor) -> TailOutputs:
        return TailOutputs([], features, features)


@pytest.mark.parametrize("name", ["ours_n0", "matsubara2022wacv"])
@pytest.mark.parametrize("median", [0.0, 0.25])
def test_the_cloud_graph_computes_what_the_model_does(name: str, median: float) -> None:
    """With subpixel upsampling, with and without medians, and with fixed parameters of GDN."""
    other = build_random_model(name, 10)
    with torch.no_grad():
        other.bottleneck_layer.entropy_bottleneck.quantiles[:, :, 1] = median
        symbols = torch.randint(-3, 4, (2, other.spec.latent_channels, 9, 7), dtype=torch.int16)
        expected = other.bottleneck_layer.decode(symbols.float())
        graph = CloudGraph(other)
        graph.tail = _FeaturesAlone()
        torch.testing.assert_close(
            graph(symbols)[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
