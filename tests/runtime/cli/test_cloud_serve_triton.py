"""cloud-serve and Triton's client, which speaks the Open Inference Protocol."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_process import services

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Triton's client of a service, which logs no refusals and stops with SIGINT."""
    with services(tmp_path_factory.mktemp("triton")) as serve:
        serving = serve(bundle, "--log", "failures")
        client = triton.InferenceServerClient(serving.address)
        yield client
        client.close()
        assert serving.stop(signal.SIGINT) == 0
        assert serving.log() == []


@pytest.fixture
def tensor(feature_bytes: bytes) -> Any:
    """The input of a request with two feature files."""
    tensor = triton.InferInput("feature_file", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes], object))
    return tensor


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ours_n4")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("ours_n4")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["feature_file"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == [
        "label",
        "probability",
        "class_index",
        "logits",
    ]
    assert "versions" not in metadata


def test_all_outputs_in_binary(client: Any, tensor: Any) -> None:
    answer = client.infer("ours_n4", [tensor], request_id="q1", parameters={"top_k": 3})
    assert answer.get_response()["id"] == "q1"
    assert answer.as_numpy("label").tolist()[0][0] == b"golf ball"
    assert answer.as_numpy("label").shape == (2, 3)
    assert answer.as_numpy("logits").shape == (2, 10)
    assert answer.as_numpy("logits").dtype == np.float32
    assert answer.as_numpy("class_index").tolist()[1][0] == int(
        answer.as_numpy("logits")[1].argmax()
    )


def test_some_outputs_in_json(client: Any, tensor: Any) -> None:
    everything = client.infer("ours_n4", [tensor], parameters={"top_k": 3})
    outputs = [
        triton.InferRequestedOutput("probability", binary_data=False),
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("class_index", binary_data=True),
    ]
    some = client.infer("ours_n4", [tensor], outputs=outputs)
    assert np.allclose(
        some.as_numpy("probability"), everything.as_numpy("probability")[:, :1], atol=1e-5
    )
    assert some.as_numpy("label").tolist() == [["golf ball"], ["golf ball"]]
    assert some.as_numpy("class_index").shape == (2, 1)


def test_a_damaged_feature_file_is_refused(client: Any, tensor: Any, feature_bytes: bytes) -> None:
    from tritonclient.utils import InferenceServerException

    tensor.set_data_from_numpy(np.array([feature_bytes, feature_bytes[:-1]], object))
    with pytest.raises(InferenceServerException, match="send it again") as refused:
        client.infer("ours_n4", [tensor])
    assert refused.value.status() == "400"


def _with_shared_output(client: Any, tensor: Any) -> None:
    output = triton.InferRequestedOutput("label")
    output.set_shared_memory("region", 64)
    client.infer("ours_n4", [tensor], outputs=[output])


def _with_shared_input(client: Any, _: Any) -> None:
    shared = triton.InferInput("feature_file", [1], "BYTES")
    shared.set_shared_memory("region", 400)
    client.infer("ours_n4", [shared])


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (_with_shared_input, "send tensors within the request"),
        (_with_shared_output, "send tensors within the request"),
        (
            lambda client, _: client.get_system_shared_memory_status(),
            "send tensors within the request",
        ),
        (
            lambda client, _: client.register_system_shared_memory("region", "/key", 64),
            "send tensors within the request",
        ),
        (
            lambda client, tensor: client.infer(
                "ours_n4", [tensor], request_compression_algorithm="gzip"
            ),
            "compressed",
        ),
        (lambda client, _: client.get_model_metadata("ours_n4", "1"), "Not Found"),
    ],
    ids=["input", "output", "status", "register", "compression", "version"],
)
def test_what_is_not_supported_is_refused(
    client: Any, tensor: Any, ask: Callable[[Any, Any], None], text: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=text):
        ask(client, tensor)
