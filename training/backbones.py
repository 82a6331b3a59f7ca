"""Classifiers of torchvision and timm, cut at a layer into a head and a tail.

A bottleneck replaces the head. A backbone is a network's name, as `timm:tf_efficientnet_lite2`, and
a cut: the layer whose output the decoder gives. torch.fx traces the network and splits it.

Always holds: head and tail together compute what the network computes. A tail's module names are
the network's own, so the weights of one fit the other. The tail depends on the image only through
the features at the cut.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models import ResNet, get_model, get_model_weights, list_models, resnet50
from torchvision.models.feature_extraction import NodePathTracer

from .data import IMAGENET, Normalisation

STRIDES = (4, 8, 16)  # of the cuts that a decoder can reach from latents of stride 8
_PROBE = 128  # side in pixels of the image that shapes are measured with
_LEAVES = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # traced as they are, with their subclasses


class BackboneNameError(ValueError):
    """No network of this name, or its library is not installed."""


class CutError(ValueError):
    """The network cannot be cut there."""


class TailOutputs(NamedTuple):
    """What a tail computes.

    stages: float [N, C, H, W] each, the outputs of the cut's later siblings (layer2, layer3 and
    layer4 for a cut at layer1); embedding: float [N, D], the input of the last linear layer;
    logits: float [N, classes].
    """

    stages: list[Tensor]
    embedding: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Backbone:
    """A classifier and where it is cut.

    Attributes:
        source: `torchvision:NAME` or `timm:NAME`.
        cut: the layer whose output the decoder gives, by its name in the network.
        channels, stride: of that output: [N, channels, H / stride, W / stride].
        normalisation: of its input.
        classifier: the last linear layer, which gives the logits, by its name in the network.
    """

    source: str
    cut: str
    channels: int
    stride: int
    normalisation: Normalisation = IMAGENET
    classifier: str = "fc"

    def tail(self, classes: int) -> nn.Module:
        """The tail with random weights: features [N, channels, H, W] -> TailOutputs."""
        if self == RESNET50:
            return ResNetTail(resnet50(weights=None, num_classes=classes))
        return split(build_network(self.source, classes), self.cut)[1]


class ResNetTail(nn.Module):
    """layer2, layer3, layer4, the mean over rows and columns, and fc of a torchvision ResNet."""

    def __init__(self, network: ResNet):
        super().__init__()
        self.layer2, self.layer3, self.layer4 = network.layer2, network.layer3, network.layer4
        self.fc = network.fc

    def forward(self, features: Tensor) -> TailOutputs:
        """Features float [N, 256, H/4, W/4] of an image [N, 3, H, W] -> TailOutputs."""
        second = self.layer2(features)
        third = self.layer3(second)
        fourth = self.layer4(third)
        embedding = fourth.mean((2, 3))
        return TailOutputs([second, third, fourth], embedding, self.fc(embedding))


RESNET50 = Backbone("torchvision:resnet50", "layer1", 256, 4)
LITE2 = Backbone(
    "timm:tf_efficientnet_lite2",
    "blocks.2",
    48,
    8,
    Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "classifier",
)


BACKBONES = {"resnet50": RESNET50, "lite2": LITE2}


def build_network(source: str, classes: int | None = None) -> nn.Module:
    """The whole classifier with random weights, in eval mode.

    Without `classes` it has as many as the library gives it. Raises BackboneNameError.
    """
    library, _, name = source.partition(":")
    options = {} if classes is None else {"num_classes": classes}
    if library == "torchvision":
        if name not in list_models(module=_torchvision_models()):
            raise BackboneNameError(
                f"torchvision has no classifier {name!r}: "
                "torchvision.models.list_models() lists those that it has"
            )
        # These two print a warning, and take minutes, unless told how to initialise.
        slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = get_model(name, weights=None, **options, **slow)
    elif library == "timm":
        timm = _timm()
        if name not in timm.list_models():
            near = timm.list_models(f"*{name[:12]}*")[:5]
            raise BackboneNameError(
                f"timm has no classifier {name!r}"
                + (f": it has {', '.join(near)}" if near else ": see timm.list_models()")
            )
        network = timm.create_model(name, pretrained=False, **options)
    else:
        raise BackboneNameError(
            f"{source!r} names no backbone: write torchvision:NAME or timm:NAME, "
            "such as torchvision:resnet50"
        )
    return network.eval()


def count_parameters(source: str) -> int:
    """How many values the network has, found without allocating them. Raises BackboneNameError."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(source).parameters())


def _torchvision_models() -> Any:
    import torchvision

    return torchvision.models  # without the detectors, segmenters and video models


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise BackboneNameError(
            "a backbone of timm needs the package timm: pip install timm"
        ) from error
    return timm


def normalisation(source: str) -> Normalisation:
    """Mean and deviation that the library gives a network's input. Raises BackboneNameError."""
    library, _, name = source.partition(":")
    if library == "timm":
        config = _timm().models.get_pretrained_cfg(name)
        return Normalisation(tuple(config.mean), tuple(config.std)) if config else IMAGENET
    with suppress(ValueError, StopIteration, AttributeError):
        preset = next(iter(get_model_weights(name))).transforms()
        return Normalisation(tuple(preset.mean), tuple(preset.std))
    return IMAGENET


def classifier_name(network: nn.Module) -> str:
    """The name of the last linear layer, which gives the logits. Raises CutError."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise CutError(
            "the network has no linear layer to give its logits: choose another backbone"
        )
    return linear[-1]


class _Tracer(NodePathTracer):
    """Does not trace into timm's layers whose code depends on sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: tuple[type, ...] = ()
        with suppress(ImportError):
            from timm.models import get_notrace_modules

            self.whole = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, qualname: str) -> bool:
        return isinstance(module, (*self.whole, *_LEAVES)) or super().is_leaf_module(
            module, qualname
        )


class _Trace:
    """A network's graph, and which node gives the output of which layer."""

    def __init__(self, network: nn.Module):
        self.network, tracer = network.eval(), _Tracer()
        try:
            self.graph = tracer.trace(network)
        except Exception as error:  # whatever the network's own code raises on traced values
            raise CutError(
                f"torch.fx cannot trace the network ({' '.join(str(error).split())[:120]}): "
                "choose another backbone"
            ) from error
        self.last: dict[str, fx.Node] = {}
        for node, path in tracer.node_to_qualname.items():
            parts = path.split(".")
            for count in range(1, len(parts) + 1):
                self.last[".".join(parts[:count])] = node
        # Further inputs, such as a mask for attention, have a default.
        self.inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self._shapes: dict[int, dict[fx.Node, tuple[int, ...]]] = {}

    def shapes(self, side: int) -> dict[fx.Node, tuple[int, ...]]:
        """The shape of each node's value for an image of `side` pixels a side."""
        if side not in self._shapes:
            recorder = _Recorder(fx.GraphModule(self.network, self.graph))
            try:
                with torch.no_grad():
                    recorder.run(torch.zeros(1, 3, side, side))
            except Exception as error:  # whatever the network's own code raises on a size
                raise CutError(
                    f"the network does not take images of {side}x{side} pixels "
                    f"({str(error).splitlines()[0]}): choose one that takes any size"
                ) from error
            self._shapes[side] = recorder.shapes
        return self._shapes[side]

    def stages(self, cut: str) -> list[fx.Node]:
        """The outputs of the cut's later siblings that are maps of features."""
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        shapes, parent = self.shapes(_PROBE), cut.rpartition(".")[0]
        beside = {node for name, node in self.last.items() if name.rpartition(".")[0] == parent}
        maps = [
            node
            for node in beside
            if order[node] > order[self.last[cut]]
            and len(shapes.get(node, ())) == 4
            and shapes[node][2] > 1
        ]
        return sorted(maps, key=order.__getitem__)

    def multiply_adds(self, side: int) -> dict[fx.Node, int]:
        """By convolution or linear layer, for one image of `side` pixels a side."""
        shapes, found = self.shapes(side), {}
        for node in self.graph.nodes:
            layer = (
                self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                # Each output value is the product of its inputs with one row of the weights.
                found[node] = math.prod(shapes[node]) * layer.weight[0].numel()
        return found


class _Recorder(fx.Interpreter):
    """Runs a graph, and keeps the shape of each node's value."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


@dataclass(frozen=True)
class Cut:
    """A layer at which a network can be cut, its output's channels and stride, and what remains.

    Attributes:
        head, tail: multiply-adds before and behind it for one image.
    """

    name: str
    channels: int
    stride: int
    head: int
    tail: int


def cut_backbone(source: str, cut: str, classes: int | None = None) -> Backbone:
    """The backbone `source` at `cut`, with channels, stride and normalisation looked up.

    Raises BackboneNameError, CutError.
    """
    for known in BACKBONES.values():
        if (source, cut) == (known.source, known.cut):
            return known
    trace = _Trace(build_network(source, classes))
    channels, stride = _features(trace, source, cut)
    _split(trace, cut)
    last = classifier_name(trace.network)
    return Backbone(source, cut, channels, stride, normalisation(source), last)


def _features(trace: _Trace, source: str, cut: str) -> tuple[int, int]:
    """Channels and stride at `cut`. Raises CutError."""
    if cut not in trace.last:
        raise CutError(
            f"{source} has no layer {cut!r}: "
            f"python -m training.cuts --backbone {source} lists its cuts"
        )
    at = trace.last[cut]
    shape, larger = (trace.shapes(side).get(at, ()) for side in (_PROBE, 2 * _PROBE))
    if (
        len(shape) != 4
        or shape[2] != shape[3]
        or larger != (*shape[:2], 2 * shape[2], 2 * shape[3])
    ):
        raise CutError(
            f"{source} gives {list(shape)} at {cut}, which is no map of [channels, rows, columns]: "
            "choose another cut"
        )
    stride = _PROBE // shape[2]
    if stride not in STRIDES:
        raise CutError(
            f"{source} has stride {stride} at {cut}: "
            f"choose a cut of stride {', '.join(map(str, STRIDES))}"
        )
    return shape[1], stride


def split(network: nn.Module, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The head, image -> features at `cut`, and the tail, features -> TailOutputs.

    They share the network's layers. Raises CutError.
    """
    return _split(_Trace(network), cut)


def _split(trace: _Trace, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    network, at = trace.network, trace.last[cut]
    head = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    head.graph_copy(trace.graph, copied)
    head.output(copied[at])

    tail = fx.Graph()
    copied = {at: tail.placeholder("features")}
    logits = tail.graph_copy(trace.graph, copied)
    place = classifier_name(network)
    calls = [one for one in trace.graph.nodes if (one.op, one.target) == ("call_module", place)]
    if not calls:
        raise CutError(f"the linear layer {place} is not called as one: choose another backbone")
    embedding = copied[calls[0].args[0]]
    stages = [copied[node] for node in trace.stages(cut)]
    tail.output(tail.call_function(TailOutputs, (stages, embedding, logits)))
    return _module(network, head), _module(network, tail, [copied[node] for node in trace.inputs])


def _module(network: nn.Module, graph: fx.Graph, unused: Sequence[fx.Node] = ()) -> fx.GraphModule:
    """The graph with the layers that it needs. Raises CutError if one of `unused` is used."""
    module = fx.GraphModule(network, graph)
    module.graph.eliminate_dead_code()
    for node in unused:
        if node.users:
            raise CutError("a shortcut of the network bypasses the cut: choose another one")
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def list_cuts(source: str, side: int = 224) -> list[Cut]:
    """The blocks that `source` can be cut at, in order, for images of `side` pixels a side.

    Where several blocks end in the same operation, the outermost is listed. Raises
    BackboneNameError, CutError.
    """
    network = build_network(source)
    trace = _Trace(network)
    trace.shapes(_PROBE)
    work = trace.multiply_adds(side)
    order = list(trace.graph.nodes)
    cuts: dict[fx.Node, Cut] = {}
    for name, node in sorted(
        trace.last.items(), key=lambda item: (order.index(item[1]), len(item[0]))
    ):
        with suppress(CutError, AttributeError):  # AttributeError: an input, which is no layer
            layer = network.get_submodule(name)
            if isinstance(layer, nn.BatchNorm2d) or not list(layer.children()):
                continue  # a single operation inside a block
            channels, stride = _features(trace, source, name)
            _split(trace, name)
            before = order[: order.index(node) + 1]
            head = sum(work.get(one, 0) for one in before)
            cuts.setdefault(node, Cut(name, channels, stride, head, sum(work.values()) - head))
    return list(cuts.values())
