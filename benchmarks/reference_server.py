"""A cloud side as one would build it without this toolkit: FastAPI around torch and CompressAI, one image a request.

    python benchmarks/reference_server.py --port N

The body of a request is the stream that CompressAI's EntropyBottleneck.compress gives for one 224x224 image. There is
no queue, no batch and no limit but those of uvicorn. serving.py measures it beside cloud-serve.
"""

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.latency import load_torch_model
from benchmarks.machine import cores
from runtime.options import number
from runtime.tasks.classification import require_finite

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

SIDE = 28  # of the latent


def load() -> "FeatureCompressionModel":
    """ours_n4 for inference, with CompressAI's tables."""
    torch.set_num_threads(cores())
    model = load_torch_model("ours_n4").eval()
    model.bottleneck_layer.entropy_bottleneck.update(force=True)
    return model


@torch.inference_mode()
def classify(model: "FeatureCompressionModel", stream: bytes) -> int:
    """A stream of CompressAI's -> its class's place among the logits."""
    bottleneck = model.bottleneck_layer
    latent = bottleneck.entropy_bottleneck.decompress([stream], [SIDE, SIDE])
    return int(require_finite(model.tail(bottleneck.decoder(latent)).numpy()).argmax())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=number(int, 0, 65535), required=True)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    model = load()
    app = FastAPI()

    @app.post("/v1/classify")
    async def answer(request: Request) -> dict[str, int]:
        return {"class_index": classify(model, await request.body())}

    listener = socket.create_server(("127.0.0.1", args.port), backlog=1024)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
