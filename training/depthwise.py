"""Depthwise convolutions that a CPU trains in a fraction of the time.

oneDNN has no fast bfloat16 gradients of depthwise convolutions that have a stride, nor of the
weights of any. In a step of n4_lite2 (32 crops of 160 pixels, 2 cores of a Zen 4), the gradients
at the two with a stride took 180 of 870 ms, and those of all weights 280 more. The same
convolution with stride 1, of which the outputs between are dropped, takes a few. Weights of
depthwise convolutions are few (4 % of EfficientNet-Lite2's), and may stay as they are.

Always holds: the outputs are those of the network as it was, up to rounding.
"""

from types import MethodType

from torch import Tensor, nn
from torch.nn.functional import conv2d


def speed_up_strides(network: nn.Module) -> None:
    """Let the network's depthwise convolutions that have a stride compute with stride 1.

    Subclasses that do more than convolve, as with standardised weights, are left alone.
    """
    from timm.layers import Conv2dSame

    for layer in _depthwise(network):
        plain = type(layer) in (nn.Conv2d, Conv2dSame) and layer.padding_mode == "zeros"
        if plain and max(layer.stride) > 1:
            layer.forward = MethodType(_dense_forward, layer)  # type: ignore[method-assign]


def freeze_depthwise(network: nn.Module) -> None:
    """Keep the weights of the network's depthwise convolutions as they are."""
    for layer in _depthwise(network):
        layer.requires_grad_(False)


def _depthwise(network: nn.Module) -> list[nn.Conv2d]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return [layer for layer in layers if layer.groups == layer.in_channels > 1]


def _dense_forward(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """The layer's outputs for [N, C, H, W], computed at every place and then thinned."""
    from timm.layers import Conv2dSame, pad_same

    padding = layer.padding
    if isinstance(layer, Conv2dSame):
        kernel, stride, dilation = map(list, (layer.kernel_size, layer.stride, layer.dilation))
        images = pad_same(images, kernel, stride, dilation)
        padding = (0, 0)
    everywhere = conv2d(images, layer.weight, layer.bias, 1, padding, layer.dilation, layer.groups)
    down, right = layer.stride
    return everywhere[:, :, ::down, ::right]
