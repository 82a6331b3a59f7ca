"""Depthwise convolutions computed with stride 1 and thinned, and those that keep their weights."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from training.depthwise import freeze_depthwise, speed_up_strides


@pytest.mark.parametrize("side", [10, 13])
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("layer", [nn.Conv2d, Conv2dSame])
def test_outputs_and_gradients_are_those_of_the_stride(
    layer: type[nn.Conv2d], stride: int, side: int
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(layer(6, 6, 5, stride, padding=2, groups=6), nn.BatchNorm2d(6))
    fast = copy.deepcopy(network)
    speed_up_strides(fast)
    fast = copy.deepcopy(fast)  # as the moving average does
    images = torch.randn(2, 6, side, side + 3, requires_grad=True)
    outputs = [one(images) for one in (network, fast)]
    torch.testing.assert_close(*outputs)
    weigh = torch.randn_like(outputs[0])
    sources = [(images, one[0].weight) for one in (network, fast)]
    slow_gradients, fast_gradients = (
        torch.autograd.grad((output * weigh).sum(), source)
        for output, source in zip(outputs, sources, strict=True)
    )
    torch.testing.assert_close(fast_gradients, slow_gradients)
    assert list(fast.state_dict()) == list(network.state_dict())


def test_other_convolutions_are_left_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 1)
    )
    more = nn.Sequential(
        StdConv2d(4, 4, 3, 2, groups=4),
        nn.Conv2d(4, 4, 3, 2, padding=1, groups=4, padding_mode="reflect"),
    )
    for layers in (network, more):
        speed_up_strides(layers)
        assert not any("forward" in vars(layer) for layer in layers)
    freeze_depthwise(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_frozen_depthwise() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    freeze_depthwise(network)
    trained = {name for name, one in network.named_parameters() if one.requires_grad}
    assert trained == {"1.weight", "1.bias"}
