"""The service with a variable-rate bundle beside one with one rate: requests mix levels."""

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_app import running

from runtime import CloudDecoder, EdgeEncoder
from runtime.service.core import Service
from runtime.service.oip import join
from runtime.service.settings import Settings

GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"


@pytest.fixture(scope="module")
def files(variable_bundle: Path) -> list[bytes]:
    encoder = EdgeEncoder(variable_bundle, 1)
    whole = [encoder.encode(GOLF_BALL, rate=level) for level in (0, 7.5, 15)]
    return [*whole, encoder.encode(GOLF_BALL, max_bytes=51)]


def test_a_request_mixes_levels_and_bundles(
    variable_bundle: Path, bundle: Path, files: list[bytes], feature_bytes: bytes
) -> None:
    decoder = CloudDecoder(variable_bundle, 1)
    wanted = [decoder.classify(data) for data in files]

    async def body() -> None:
        settings = Settings(bundles=(bundle, variable_bundle), threads=1, deadline_ms=60_000.0)
        async with running(settings) as (client, service):
            await ask(client, service)

    async def ask(client: httpx.AsyncClient, service: Service) -> None:
        response = await client.post("/v1/classify/batch", content=join([*files, feature_bytes]))
        assert response.status_code == 200
        results = response.json()["answers"]
        assert [result["model"] for result in results] == [variable_bundle.name] * 4 + [bundle.name]
        for result, classes in zip(results, wanted, strict=False):
            assert [one["label"] for one in result["classes"]] == [one.label for one in classes]
            assert np.allclose(
                [one["probability"] for one in result["classes"]],
                [one.probability for one in classes],
                atol=1e-4,
            )
        cut = files[0][:-2]
        response = await client.post("/v1/classify", content=cut)
        assert (response.status_code, response.json()["code"]) == (400, "damaged_feature_file")
        request = {
            "parameters": {"binary_data_output": False},
            "inputs": [
                {
                    "name": "feature_file",
                    "datatype": "BYTES",
                    "shape": [len(files)],
                    "parameters": {"binary_data_size": len(join(files))},
                }
            ],
        }
        head = json.dumps(request).encode()
        response = await client.post(
            f"/v2/models/{variable_bundle.name}/infer",
            content=head + join(files),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        labels = next(out for out in response.json()["outputs"] if out["name"] == "label")
        assert labels["data"] == [classes[0].label for classes in wanted]

    asyncio.run(body())
