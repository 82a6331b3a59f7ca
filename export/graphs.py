"""The two ONNX graphs of a model, both cut at integers.

    edge.onnx    pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W']
    cloud.onnx   symbols int16 [N, C, H', W'] -> logits float32 [N, classes]

Always holds: batch, height and width are dynamic (pixels in multiples of 8); a symbol lies in
-32767..32767, and -32768 marks a latent that is not a number, which the coder refuses; GELU is one
ONNX operator, so that quantisation need not split it; what depends on weights alone is computed
here, not on the device.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from compressai.layers import GDN1
from torch import Tensor, nn
from torch.export import Dim

from training.data import MEAN, STD
from training.models import FeatureCompressionModel

OPSET = 20  # the first with Gelu
MAX_SYMBOL, NOT_A_SYMBOL = 32767, -32768


class ExportError(RuntimeError):
    """A graph did not come out as it must."""


class FixedGDN(nn.Module):
    """A GDN1 whose beta and gamma are computed once: they are trained as roots, with a bound under them."""

    beta: Tensor
    gamma: Tensor

    def __init__(self, layer: GDN1):
        super().__init__()
        self.inverse = layer.inverse
        self.register_buffer("beta", layer.beta_reparam(layer.beta).detach())
        self.register_buffer("gamma", layer.gamma_reparam(layer.gamma).detach()[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        norm = nn.functional.conv2d(torch.abs(x), self.gamma, self.beta)
        return x * norm if self.inverse else x / norm


def with_fixed_gdn(layers: nn.Module) -> nn.Sequential:
    """A copy of an encoder or decoder with FixedGDN in the place of each GDN1."""
    assert isinstance(layers, nn.Sequential)
    return nn.Sequential(*(FixedGDN(layer) if isinstance(layer, GDN1) else copy.deepcopy(layer) for layer in layers))


class EdgeGraph(nn.Module):
    """Normalisation, encoder, and rounding to symbols.

    Where the first convolution has no padding, it takes the pixels as they are, and normalisation is in its
    weights. (Padding is zero after normalisation, which no level of a pixel stands for.) The medians are in the
    last convolution's bias.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        self.encoder = with_fixed_gdn(model.bottleneck_layer.encoder)
        mean, std = (torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in (MEAN, STD))
        scale, shift = 1 / (255 * std), -mean / std
        first, last = self.encoder[0], self.encoder[-1]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        self.normalised = first.padding == (0, 0)
        with torch.no_grad():
            if self.normalised:
                assert first.bias is not None
                weight = first.weight.double()
                first.bias.add_((weight * shift).sum((1, 2, 3)))
                first.weight.copy_(weight * scale)
            bias = torch.zeros(last.out_channels) if last.bias is None else last.bias
            last.bias = nn.Parameter(bias - model.bottleneck_layer.medians.flatten())
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if not self.normalised:
            image = image * self.scale + self.shift
        return as_symbols(torch.round(self.encoder(image)))


def as_symbols(latent: Tensor) -> Tensor:
    """Whole numbers to int16; what a clamp or a cast makes of a NaN differs from machine to machine."""
    return torch.where(torch.isnan(latent), float(NOT_A_SYMBOL), latent.clamp(-MAX_SYMBOL, MAX_SYMBOL)).to(torch.int16)


class CloudGraph(nn.Module):
    """Symbols plus median, decoder, and the tail of the ResNet."""

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.bottleneck_layer.decoder = with_fixed_gdn(model.bottleneck_layer.decoder)

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
