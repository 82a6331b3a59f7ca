"""The Open Inference Protocol's messages: requests that are parsed or refused, and responses."""

import base64
import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError
from runtime.service import oip
from runtime.tasks.classification import Classification

FILES = [b"\xfc one", b"", b"\x00\xff three"]
LABELS = ["cat", "dog", "Käse"]
LOGITS = np.array([[0, 1, 2], [5, 0, 0]], np.float32)
OUTPUTS = ("label", "probability", "class_index", "logits")


def parse(data: bytes, header_length: str | None, max_files: int) -> oip.InferRequest:
    return oip.parse(data, header_length, max_files, Classification)


def tensor(**changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in FILES]
    tensor = {"name": "feature_file", "datatype": "BYTES", "shape": [3], "data": data} | changes
    return {key: value for key, value in tensor.items() if value is not None}


def body(request: Any = None, **changes: Any) -> bytes:
    return json.dumps(
        request if request is not None else {"inputs": [tensor()], **changes}
    ).encode()


def binary(data: bytes, size: Any = None, shape: list[int] | None = None) -> tuple[bytes, str]:
    head = body(
        {
            "inputs": [
                tensor(
                    data=None,
                    shape=shape or [3],
                    parameters={"binary_data_size": len(data) if size is None else size},
                )
            ]
        }
    )
    return head + data, str(len(head))


def test_feature_files_in_base64() -> None:
    request = parse(body(id="7", parameters={"top_k": 2}), None, 3)
    assert request == oip.InferRequest(FILES, dict.fromkeys(OUTPUTS, False), "7", 2)
    nested = [[text] for text in tensor()["data"]]
    assert parse(body({"inputs": [tensor(shape=[3, 1], data=nested)]}), None, 3).files == FILES


def test_feature_files_in_binary() -> None:
    data, length = binary(oip.join(FILES))
    assert parse(data, length, 3).files == FILES


def test_requested_outputs() -> None:
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "label"}]
    assert parse(body(outputs=outputs), None, 3).outputs == {"logits": True, "label": False}
    assert parse(body(parameters={"binary_data_output": True}), None, 3).outputs == dict.fromkeys(
        OUTPUTS, True
    )


def test_an_optional_member_that_is_null_counts_as_absent() -> None:
    whole = parse(body(), None, 3)
    assert parse(body(id=None, parameters=None, outputs=None), None, 3) == whole
    assert (
        parse(
            body(parameters={"top_k": None, "binary_data_output": None, "timeout": None}), None, 3
        )
        == whole
    )
    nulls = {"binary_data_size": None, "shared_memory_region": None}
    for parameters in (None, nulls):
        assert (
            parse(json.dumps({"inputs": [tensor() | {"parameters": parameters}]}).encode(), None, 3)
            == whole
        )
    for parameters in (None, {"binary_data": None, "classification": None}):
        assert parse(
            body(outputs=[{"name": "label", "parameters": parameters}]), None, 3
        ).outputs == {"label": False}
    data = oip.join(FILES)
    head = body(
        {
            "inputs": [tensor() | {"data": None, "parameters": {"binary_data_size": len(data)}}],
            "id": None,
        }
    )
    assert parse(head + data, str(len(head)), 3) == whole


@pytest.mark.parametrize("member", ["inputs", "name", "datatype", "shape", "data"])
def test_a_required_member_may_not_be_null(member: str) -> None:
    request = {"inputs": None} if member == "inputs" else {"inputs": [tensor() | {member: None}]}
    with pytest.raises(MalformedRequestError):
        parse(json.dumps(request).encode(), None, 3)


def test_shared_memory_is_refused_rather_than_ignored() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 40}
    for request in (
        {"inputs": [tensor(parameters=region)]},
        {"inputs": [tensor(data=None, parameters=region)]},
        {"inputs": [tensor()], "outputs": [{"name": "label", "parameters": region}]},
        {"inputs": [tensor(parameters={"shared_memory_offset": 0})]},
    ):
        with pytest.raises(UnsupportedSharedMemoryError, match="send tensors within the request"):
            parse(body(request), None, 3)


def test_metadata_has_no_version_since_no_path_has_one() -> None:
    assert set(oip.metadata("ours_n4", Classification(LABELS), "onnxruntime")) == {
        "name",
        "platform",
        "inputs",
        "outputs",
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (body([]), "where inputs"),
        (body({}), "not exactly one input of name feature_file"),
        (body({"inputs": 3}), "where inputs"),
        (body({"inputs": [7]}), "where name"),
        (body({"inputs": [tensor(), tensor()]}), "not exactly one input"),
        (body({"inputs": [tensor(name="image")]}), "not exactly one input"),
        (body({"inputs": [tensor(datatype="FP32")]}), "not exactly one input"),
        (body({"inputs": [tensor(shape=[])]}), "shape"),
        (body({"inputs": [tensor(shape=[True])]}), "shape"),
        (body({"inputs": [tensor(shape=[-1])]}), "shape"),
        (body({"inputs": [tensor(shape=[1, 1, 3])]}), "shape"),
        (body({"inputs": [tensor(shape=[2])]}), "shape is of 2 feature files, 3 came"),
        (body({"inputs": [tensor(data=None)]}), "neither data nor a binary_data_size"),
        (body({"inputs": [tensor(data=["a", "b", "c"])]}), "not base64"),
        (body({"inputs": [tensor(data=["ä", "", ""])]}), "not base64"),
        (body({"inputs": [tensor(data=[1, 2, 3])]}), "not base64"),
        (body({"inputs": [tensor(parameters={"binary_data_size": 4})]}), "binary_data_size is 4"),
        (
            body({"inputs": [tensor(parameters={"binary_data_size": True})]}),
            "where binary_data_size",
        ),
        (body(parameters={"top_k": 0}), "top_k"),
        (body(parameters={"top_k": "5"}), "where top_k"),
        (body(id=5), "where id"),
        (body(id="x" * 300), "300 characters"),
        (body(outputs=[{"name": "mood"}]), "no output 'mood'"),
        (body(outputs=[{"name": "logits", "parameters": {"classification": 3}}]), "no output"),
    ],
)
def test_malformed_inference_requests_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedRequestError, match=reason):
        parse(data, None, 3)


@pytest.mark.parametrize("length", ["", "-1", "99999", "1e3", "٣", "12345678901234567890"])
def test_a_bad_length_of_the_json_is_refused(length: str) -> None:
    with pytest.raises(MalformedRequestError, match="Content-Length"):
        parse(body(), length, 3)


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        (oip.join(FILES) + b"x", None, "ends at byte"),
        (oip.join(FILES)[:-1], None, "ends at byte"),
        (struct.pack("<I", 0xFFFFFFFF), None, "ends at byte 4294967299 of 4"),
        (oip.join(FILES), 3, "bytes follow the JSON"),
        (oip.join(FILES[:2]), None, "shape is of 3 feature files, 2 came"),
    ],
)
def test_binary_data_of_another_length_is_refused(
    data: bytes, size: int | None, reason: str
) -> None:
    with pytest.raises(MalformedRequestError, match=reason):
        parse(*binary(data, size), 3)


def test_trailing_bytes_that_no_input_declares_are_refused() -> None:
    head = body()
    with pytest.raises(MalformedRequestError, match="2 bytes follow the JSON, and no input"):
        parse(head + b"xx", str(len(head)), 3)


def test_too_many_feature_files_are_refused() -> None:
    for request in (body(), binary(oip.join(FILES))[0]):
        with pytest.raises(TooManyFilesError, match="3 feature files"):
            parse(request, None if request == body() else binary(oip.join(FILES))[1], 2)
    with pytest.raises(TooManyFilesError, match="more than 2"):
        parse(*binary(oip.join(FILES), shape=[1]), 2)
    with pytest.raises(TooManyFilesError, match="more than 2"):
        parse(body({"inputs": [tensor(shape=[1])]}), None, 2)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_elements_is_the_inverse_of_join(files: list[bytes]) -> None:
    assert oip.elements(memoryview(oip.join(files)), 8) == files


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-1, 250).map(str)))
def test_any_bytes_are_parsed_or_refused(data: bytes, length: str | None) -> None:
    with contextlib.suppress(
        MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError
    ):
        parse(data, length, 8)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "data", "shape", "parameters", "top_k"]), inner)
    ),
)


@given(
    st.sampled_from(["name", "datatype", "shape", "data", "parameters"]),
    JSON,
    st.sampled_from(["id", "parameters", "outputs"]),
    JSON,
)
def test_any_json_is_parsed_or_refused(
    of_tensor: str, value: Any, of_request: str, other: Any
) -> None:
    with contextlib.suppress(
        MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError
    ):
        parse(body({"inputs": [tensor(**{of_tensor: value})], of_request: other}), None, 8)


def test_an_answer_in_json() -> None:
    request = oip.InferRequest(FILES[:2], dict.fromkeys(OUTPUTS, False), "7", 2)
    content, length = oip.render(request, "m", Classification(LABELS), LOGITS)
    assert length is None
    answer = json.loads(content)
    assert (answer["model_name"], answer["id"]) == ("m", "7")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["label"] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["Käse", "dog", "cat", "dog"],
    }
    assert outputs["class_index"]["data"] == [2, 1, 0, 1]
    assert outputs["probability"]["data"] == pytest.approx(
        [0.6652, 0.2447, 0.9867, 0.0066], abs=1e-4
    )
    assert outputs["logits"] == {
        "name": "logits",
        "datatype": "FP32",
        "shape": [2, 3],
        "data": [0, 1, 2, 5, 0, 0],
    }


def test_an_answer_in_binary() -> None:
    request = oip.InferRequest(
        FILES[:2], {"logits": True, "class_index": False, "label": True}, top_k=99
    )
    content, length = oip.render(request, "m", Classification(LABELS), LOGITS)
    assert length is not None
    answer, tail = json.loads(content[:length]), content[length:]
    assert [
        output.get("parameters", {}).get("binary_data_size") for output in answer["outputs"]
    ] == [24, None, 46]
    assert np.array_equal(np.frombuffer(tail[:24], "<f4").reshape(2, 3), LOGITS)
    assert [label.decode() for label in oip.elements(memoryview(tail)[24:], 6)] == [
        "Käse",
        "dog",
        "cat",
        "cat",
        "dog",
        "Käse",
    ]
    assert answer["outputs"][1]["shape"] == [2, 3]
