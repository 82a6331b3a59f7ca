"""The reference pipeline, from pixels to a stream by torch and CompressAI, and what it computes."""

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

# Pixels uint8 [224, 224, 3] -> the stream, and a function that gives the symbols int32 [C, 28, 28].
# Only the first is timed.
Pipeline = Callable[[NDArray[np.uint8]], tuple[bytes, Callable[[], NDArray[np.int32]]]]

_SIDE = 1536  # of the matrices whose product is timed


def reference_pipelines(model: "FeatureCompressionModel", threads: int) -> dict[str, Pipeline]:
    """`torch`: the reference as it is; `torch tuned`: the same, as fast as torch allows.

    The tuned one uses channels-last memory, and bfloat16 where the processor has it.
    """
    import torch

    torch.set_num_threads(threads)
    bfloat16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(describe(threads)["instructions"])
    bottleneck = model.bottleneck_layer
    bottleneck.entropy_bottleneck.update(force=True)
    mean, std = model.spec.backbone.normalisation.tensors()

    def pipeline(tuned: bool) -> Pipeline:
        encoder = bottleneck.encoder
        if tuned:
            encoder = copy.deepcopy(encoder).to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def encode(pixels: NDArray[np.uint8]) -> tuple[bytes, Callable[[], NDArray[np.int32]]]:
            image = torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0).float().div(255)
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned and bfloat16):
                latent = encoder((image - mean) / std).float()
            payload = bottleneck.entropy_bottleneck.compress(latent)[0]
            return payload, lambda: (latent[0] - bottleneck.medians).round().to(torch.int32).numpy()

        return encode

    return {"torch": pipeline(False), "torch tuned": pipeline(True)}


def multiply_adds(model: "FeatureCompressionModel") -> int:
    """Multiply-adds of the encoder's convolutions for one 224x224 image."""
    import torch

    counted: list[int] = []
    encoder = model.bottleneck_layer.encoder
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: counted.append(layer.weight.numel() * out.shape[2] * out.shape[3])
        )
        for layer in encoder.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        encoder(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def peak_multiply_adds(threads: int) -> float:
    """Multiply-adds a second of this machine's float32 matrix product: the best of twelve."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return _SIDE**3 / best
