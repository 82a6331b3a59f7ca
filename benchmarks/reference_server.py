"""A cloud side as one would build it without this toolkit: FastAPI around torch and CompressAI.

    python benchmarks/reference_server.py --port N

A request's body is the stream that CompressAI's EntropyBottleneck.compress gives for one 224x224
image. Requests are answered one at a time, without a queue, batches or limits of its own.
serving.py measures it beside cloud-serve.
"""

import argparse
import socket
from typing import TYPE_CHECKING

import torch
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.common import new_parser
from benchmarks.machine import cores
from benchmarks.models import load_torch_model
from runtime.options import number
from runtime.tasks.classification import require_finite

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

_LATENT_SIDE = 28


def load() -> "FeatureCompressionModel":
    """ours_n4 for inference, with CompressAI's tables."""
    torch.set_num_threads(cores())
    model = load_torch_model("ours_n4").eval()
    model.bottleneck_layer.entropy_bottleneck.update(force=True)
    return model


@torch.inference_mode()
def classify(model: "FeatureCompressionModel", stream: bytes) -> int:
    """One of CompressAI's streams -> the index of its class."""
    bottleneck = model.bottleneck_layer
    latent = bottleneck.entropy_bottleneck.decompress([stream], [_LATENT_SIDE, _LATENT_SIDE])
    return int(require_finite(model.tail(bottleneck.decoder(latent)).logits.numpy()).argmax())


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--port",
        type=number(int, 0, 65535),
        required=True,
        metavar="N",
        help="where to listen on 127.0.0.1; 0: any free port",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Serve until the process is ended."""
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
