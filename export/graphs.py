"""The two ONNX graphs of a model, both cut at integers.

    edge.onnx    pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W']
    cloud.onnx   symbols int16 [N, C, H', W'] -> logits float32 [N, classes],
                                                 embedding float32 [N, D]

Those of a variable-rate model are cut where the gains of a rate level come in (link.py): the edge
graph gives the latent, float32, which becomes symbols outside, and the cloud graph takes values,
float32, which symbols become.

Always holds:
- batch, height and width are dynamic (pixels in multiples of 8);
- a symbol lies in -32767..32767;
- weights with which a latent could be infinite or NaN are refused, so the graph does not check;
- GELU is one ONNX operator, so that quantisation does not split it;
- what depends only on weights is computed here, not on the device.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from compressai.layers import GDN1
from torch import Tensor, nn
from torch.export import Dim

from training.architectures import FeatureScale, ResidualBlock
from training.models import FeatureCompressionModel

OPSET = 20  # the first with Gelu
MAX_SYMBOL = 32767
_MAX_LATENT = 1e30  # far below what float32 and bfloat16 hold

Graphs = dict[str, dict[str, Path]]  # end, precision -> file, as {"edge": {"fp32": ...}, ...}


class ExportError(RuntimeError):
    """A graph cannot be exported from these weights, or with this torch."""


class FixedGDN(nn.Module):
    """A GDN1 with its beta and gamma computed once.

    GDN1 stores them reparametrised, as roots with a lower bound.
    """

    beta: Tensor
    gamma: Tensor

    def __init__(self, layer: GDN1):
        super().__init__()
        self.inverse = layer.inverse
        self.register_buffer("beta", layer.beta_reparam(layer.beta).detach())
        self.register_buffer("gamma", layer.gamma_reparam(layer.gamma).detach()[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """float [N, C, H, W] -> the same shape."""
        norm = nn.functional.conv2d(torch.abs(x), self.gamma, self.beta)
        return x * norm if self.inverse else x / norm


def with_fixed_gdn(layers: nn.Module) -> nn.Sequential:
    """A copy of an encoder or decoder with FixedGDN in the place of each GDN1."""
    assert isinstance(layers, nn.Sequential)
    return nn.Sequential(
        *(FixedGDN(layer) if isinstance(layer, GDN1) else copy.deepcopy(layer) for layer in layers)
    )


def largest_latent(encoder: nn.Module) -> float:
    """An upper bound of every value that an encoder (with FixedGDN) computes from pixels in 0..255.

    It also bounds the partial sums. For a convolution |w * x| <= |w| * |x|; |gelu(x)| <= |x|; for a
    GDN |x / (beta + gamma |x|)| <= |x| / beta. Raises ExportError for other layers.
    """

    def through(layer: nn.Module, bound: Tensor) -> Tensor:
        """From a bound for each input channel to a bound for each output channel."""
        if isinstance(layer, nn.Sequential):
            for one in layer:
                bound = through(one, bound)
        elif isinstance(layer, nn.Conv2d):
            bias = 0 if layer.bias is None else layer.bias.detach().double().abs()
            bound = layer.weight.detach().double().abs().sum((2, 3)) @ bound + bias
        elif isinstance(layer, ResidualBlock):
            bound = bound + through(layer.conv_2, through(layer.conv_1, bound))
        elif isinstance(layer, FixedGDN):
            bound = bound / layer.beta.double()
        elif not isinstance(layer, nn.GELU):
            raise ExportError(f"an encoder with a {type(layer).__name__} has no known bound")
        return bound

    return float(through(encoder, torch.full((3,), 255.0, dtype=torch.float64)).max())


class SubpixelUpsampling(nn.Module):
    """A transposed convolution of stride 2 and a GELU, as a convolution to four times the channels.

    out[2j + a] takes in[j - 1], in[j] and in[j + 1] with the taps 4, 2, 0 for a = 0 and none, 3, 1
    for a = 1. That is two sets of weights of size 3 for rows, and two for columns. Engines run a
    plain convolution several times faster (Shi et al. 2016, arXiv 1609.05158), and in int8. The
    GELU comes before the pixel shuffle, so that it directly follows the convolution.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        assert (layer.kernel_size, layer.stride, layer.padding, layer.output_padding) == (
            (5, 5),
            (2, 2),
            (2, 2),
            (1, 1),
        )
        assert layer.bias is not None
        self.conv = nn.Conv2d(layer.in_channels, 4 * layer.out_channels, 3, padding=1)
        bias = self.conv.bias
        assert bias is not None
        taps = ((4, 2, 0), (None, 3, 1))
        with torch.no_grad():
            self.conv.weight.zero_()
            bias.copy_(layer.bias.repeat_interleave(4))
            for a, rows in enumerate(taps):
                for b, columns in enumerate(taps):
                    for i, row in enumerate(rows):
                        for j, column in enumerate(columns):
                            if row is not None and column is not None:
                                self.conv.weight[2 * a + b :: 4, :, i, j] = layer.weight[
                                    :, :, row, column
                                ].t()

    def forward(self, x: Tensor) -> Tensor:
        """float [N, C, H, W] -> [N, C', 2 H, 2 W]."""
        return nn.functional.pixel_shuffle(nn.functional.gelu(self.conv(x)), 2)


class EdgeGraph(nn.Module):
    """Normalisation, encoder, and rounding to symbols at a fixed rate.

    Where the first convolution has no padding, it takes the pixels as they are, and normalisation
    is part of its weights. (Padding is zero after normalisation, and no level of a pixel becomes
    zero.) The medians are part of the last convolution's bias; a variable rate has none.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        self.encoder = with_fixed_gdn(model.bottleneck_layer.encoder)
        self.rounds = not model.spec.variable_rate
        mean, std = model.spec.backbone.normalisation.tensors(torch.float64)
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
            if self.rounds:
                bias = bias - model.bottleneck_layer.medians.flatten()
            last.bias = nn.Parameter(bias)
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W'], or the latent float32."""
        image = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if not self.normalised:
            image = image * self.scale + self.shift
        latent = self.encoder(image)
        return as_symbols(latent) if self.rounds else latent


def as_symbols(latent: Tensor) -> Tensor:
    """A latent, rounded to the nearest whole numbers (half to even), as int16."""
    return torch.round(latent.clamp(-MAX_SYMBOL, MAX_SYMBOL)).to(torch.int16)


def _scaled(last: nn.Conv2d, scale: FeatureScale) -> nn.Conv2d:
    """A convolution and the scale behind it, as one convolution."""
    merged = copy.deepcopy(last)
    assert merged.bias is not None
    with torch.no_grad():
        merged.weight *= scale.scale[:, None, None, None]
        merged.bias.copy_(merged.bias * scale.scale + scale.shift)
    return merged


class CloudGraph(nn.Module):
    """Symbols plus median, decoder, and the tail of the backbone: to logits and embedding."""

    medians: Tensor

    def __init__(self, model: FeatureCompressionModel):
        super().__init__()
        layers = list(with_fixed_gdn(model.bottleneck_layer.decoder))
        if isinstance(layers[0], nn.ConvTranspose2d):
            assert isinstance(layers[1], nn.GELU)
            layers[:2] = [SubpixelUpsampling(layers[0])]
        if isinstance(layers[-1], FeatureScale):
            assert isinstance(layers[-2], nn.Conv2d)
            layers[-2:] = [_scaled(layers[-2], layers[-1])]
        self.decoder = nn.Sequential(*layers)
        self.tail = copy.deepcopy(model.tail)
        self.register_buffer("medians", model.bottleneck_layer.medians)
        self.adds_medians = bool(self.medians.any()) and not model.spec.variable_rate

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols int16 [N, C, H', W'] -> logits [N, classes] and embedding [N, D], float.

        A variable-rate model takes values, float32.
        """
        values = symbols.to(torch.float32)
        if self.adds_medians:
            values = values + self.medians
        found = self.tail(self.decoder(values))
        return found.logits, found.embedding


def _count_gelus(module: nn.Module) -> int:
    """How many GELUs a part of the bottleneck computes: a residual block has two."""
    blocks = sum(isinstance(one, ResidualBlock) for one in module.modules())
    return sum(isinstance(one, nn.GELU) for one in module.modules()) + 2 * blocks


def export_edge(model: FeatureCompressionModel, path: Path) -> None:
    """Write edge.onnx; raises ExportError."""
    graph = EdgeGraph(model)
    bound = largest_latent(graph.encoder)
    if not bound <= _MAX_LATENT:
        raise ExportError(
            f"the encoder's weights are so large that a latent might be {bound:.1g}: "
            "the checkpoint is broken"
        )
    pixels = torch.zeros(2, 64, 80, 3, dtype=torch.uint8)
    shapes = {0: Dim("batch"), 1: 8 * Dim("rows", min=2), 2: 8 * Dim("columns", min=2)}
    gelus = _count_gelus(graph)
    output = "symbols" if graph.rounds else "latent"
    _export(graph, pixels, "pixels", shapes, [output], path, gelus)


def export_cloud(model: FeatureCompressionModel, path: Path) -> None:
    """Write cloud.onnx; raises ExportError."""
    source, kind = "symbols", torch.int16
    if model.spec.variable_rate:
        source, kind = "values", torch.float32
    example = torch.zeros(2, model.spec.latent_channels, 9, 11, dtype=kind)
    shapes = {0: Dim("batch"), 2: Dim("latent_rows", min=2), 3: Dim("latent_columns", min=2)}
    gelus = _count_gelus(model.bottleneck_layer.decoder)
    _export(CloudGraph(model), example, source, shapes, ["logits", "embedding"], path, gelus)


def _export(
    graph: nn.Module,
    example: Tensor,
    source: str,
    shapes: Mapping[int, object],
    targets: list[str],
    path: Path,
    gelus: int,
) -> None:
    """Write a module as an ONNX graph.

    Args:
        example: an input.
        source, targets: names of the input and the outputs.
        shapes: the input's dynamic axes.
        gelus: how many Gelu operators there must be.

    Raises ExportError.
    """
    noise = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[source],
            output_names=targets,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
    model = onnx.load(path)
    _check_graph(model, path.name, shapes, gelus)
    _tidy(model)
    onnx.save(model, path)


def _check_graph(model: onnx.ModelProto, name: str, shapes: Mapping[int, Any], gelus: int) -> None:
    """Raises ExportError where torch's exporter gave another graph than this project expects."""
    onnx.checker.check_model(model)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset != OPSET:
        raise ExportError(
            f"{name} has opset {opset}, not {OPSET}: "
            "the installed torch is one that this project was not tested with"
        )
    operators = [node.op_type for node in model.graph.node]
    found = operators.count("Gelu")  # a tail may have some of its own
    if found < gelus or "Erf" in operators:
        raise ExportError(
            f"{name} has {found} Gelu nodes, not {gelus}: the installed torch splits GELU"
        )
    dynamic = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    if not all(dynamic[axis] for axis in shapes):
        raise ExportError(f"{name} came out with fixed sizes: {dynamic}")


def _tidy(model: onnx.ModelProto) -> None:
    """Name the dynamic axes of outputs, and remove what the exporter notes of its machine."""
    for output in model.graph.output:
        for axis, dimension in enumerate(output.type.tensor_type.shape.dim):
            if dimension.dim_param:
                dimension.dim_param = ("batch", "", "latent_rows", "latent_columns")[axis]
    model.graph.ClearField("value_info")
    for holder in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        holder.ClearField("metadata_props")  # names of source files among them


def stamp(path: Path, properties: Mapping[str, str]) -> None:
    """Set a graph's metadata_props."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(properties))
    onnx.save(model, path)
