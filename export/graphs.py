"""The two ONNX graphs of a model, both cut at integers.

    edge.onnx    pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W']
    cloud.onnx   symbols int16 [N, C, H', W'] -> logits float32 [N, classes]

Always holds: batch, height and width are dynamic (pixels in multiples of 8); a symbol lies in
-32767..32767, and -32768 marks a latent that is not a number, which the coder refuses; GELU is one
ONNX operator, so that quantisation need not split it.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from training.data import MEAN, STD
from training.models import FeatureCompressionModel

OPSET = 20  # the first with Gelu
MAX_SYMBOL, NOT_A_SYMBOL = 32767, -32768


class ExportError(RuntimeError):
    """A graph did not come out as it must."""


class EdgeGraph(nn.Module):
    """Normalisation, encoder, and rounding to symbols."""

    scale: Tensor
    shift: Tensor
    medians: Tensor

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        self.encoder = model.bottleneck_layer.encoder
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.register_buffer("medians", model.bottleneck_layer.medians)

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        symbols = torch.round(self.encoder(image) - self.medians)
        # What a clamp or a cast makes of a NaN differs from machine to machine.
        kept = torch.where(torch.isnan(symbols), float(NOT_A_SYMBOL), symbols.clamp(-MAX_SYMBOL, MAX_SYMBOL))
        return kept.to(torch.int16)


class CloudGraph(nn.Module):
    """Symbols plus median, decoder, and the tail of the ResNet."""

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        self.model = model

    def forward(self, symbols: Tensor) -> Tensor:
        return self.model.logits_of_symbols(symbols.to(torch.float32))


def export_edge(model: FeatureCompressionModel, path: Path) -> None:
    """Write edge.onnx; raises ExportError."""
    pixels = torch.zeros(2, 64, 80, 3, dtype=torch.uint8)
    shapes = {0: Dim("batch"), 1: 8 * Dim("rows", min=2), 2: 8 * Dim("columns", min=2)}
    gelus = sum(isinstance(m, nn.GELU) for m in EdgeGraph(model).modules()) + 2 * (model.spec.blocks or 0)
    _export(EdgeGraph(model), pixels, "pixels", shapes, "symbols", path, gelus)


def export_cloud(model: FeatureCompressionModel, path: Path) -> None:
    """Write cloud.onnx; raises ExportError."""
    symbols = torch.zeros(2, model.spec.latent_channels, 9, 11, dtype=torch.int16)
    shapes = {0: Dim("batch"), 2: Dim("latent_rows", min=2), 3: Dim("latent_columns", min=2)}
    gelus = sum(isinstance(m, nn.GELU) for m in model.bottleneck_layer.decoder.modules())
    _export(CloudGraph(model), symbols, "symbols", shapes, "logits", path, gelus)


def _export(graph: nn.Module, example: Tensor, source: str, shapes: Mapping[int, object], target: str, path: Path, gelus: int) -> None:
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[source],
            output_names=[target],
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset != OPSET:
        raise ExportError(f"{path.name} has opset {opset}, not {OPSET}: the installed torch is one that this project was not tested with")
    found = sum(node.op_type == "Gelu" for node in model.graph.node)
    if found != gelus:
        raise ExportError(f"{path.name} has {found} Gelu nodes, not {gelus}: the installed torch splits GELU")
    dynamic = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    if not all(dynamic[axis] for axis in shapes):
        raise ExportError(f"{path.name} came out with fixed sizes: {dynamic}")
    for axis, dimension in enumerate(model.graph.output[0].type.tensor_type.shape.dim):
        if dimension.dim_param:
            dimension.dim_param = ("batch", "", "latent_rows", "latent_columns")[axis]
    # The exporter's notes name the source files of the exporting machine.
    model.graph.ClearField("value_info")
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        holder.ClearField("metadata_props")
    onnx.save(model, path)


def stamp(path: Path, properties: dict[str, str]) -> None:
    """Set a graph's metadata_props."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
