"""The Open Inference Protocol, version 2: its JSON, and its extension for binary tensors.

    request   {"inputs": [{"name": "feature_file", "datatype": "BYTES", "shape": [N], ...}], "outputs": [...], "parameters": {...}}
    response  {"outputs": [label, probability, class_index: [N, top_k]; logits: [N, classes]]}

A feature file is no text: within JSON it is written in base64. With the binary extension the JSON comes
first, its length in a header, and then the tensors' bytes; an element of a BYTES tensor is a 32-bit
little-endian length and so many bytes.

Always holds: what is not as the protocol asks is refused whole; lengths are checked before anything is taken from them;
an optional member that is null is as if it were absent.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec import strict_json
from ..errors import MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError
from ..tasks.classification import Classification

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUT = "feature_file"
# Name -> datatype. The first three have top_k columns, the last one as many as there are classes.
OUTPUTS = {"label": "BYTES", "probability": "FP32", "class_index": "INT32", "logits": "FP32"}
EXTENSIONS = ["binary_tensor_data"]
NO_SHARED_MEMORY = (
    "shared memory is not served (see `extensions` in /v2): send tensors within the request"
)
_DTYPES = {"FP32": "<f4", "INT32": "<i4"}
_LENGTH = struct.Struct("<I")
_MAX_ID = 256
_MAX_DEPTH = 2  # of nested lists of data


@dataclass(frozen=True)
class InferRequest:
    """A request that was understood. `outputs` are names, and whether each is to come in binary."""

    files: list[bytes]
    outputs: dict[str, bool] = field(default_factory=dict)
    id: str | None = None
    top_k: int = 1


def metadata(name: str, classes: int, engine: str) -> dict[str, Any]:
    """What /v2/models/NAME tells."""
    shapes = {
        "label": [-1, -1],
        "probability": [-1, -1],
        "class_index": [-1, -1],
        "logits": [-1, classes],
    }
    return {
        "name": name,
        "platform": f"edgecloud_features ({engine})",
        "inputs": [
            {
                "name": INPUT,
                "datatype": "BYTES",
                "shape": [-1],
                "parameters": {"content_type": "base64"},
            }
        ],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": shapes[output]}
            for output, datatype in OUTPUTS.items()
        ],
    }


def parse(body: bytes, header_length: str | None, max_files: int) -> InferRequest:
    """Take an inference request apart.

    Args:
        body: of the request.
        header_length: value of the header HEADER_LENGTH, where there is one.
        max_files: feature files of one request.

    Raises MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError.
    """
    length = len(body)
    if header_length is not None:
        if not (
            header_length.isascii()
            and header_length.isdigit()
            and len(header_length) < 10
            and int(header_length) <= len(body)
        ):
            raise MalformedRequestError(
                f"{HEADER_LENGTH} is {header_length[:20]!r}, of a body of {len(body)} bytes: send the JSON's length"
            )
        length = int(header_length)
    try:
        request = strict_json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise MalformedRequestError(
            f"the request is not JSON ({str(error)[:80]}): see the Open Inference Protocol"
        ) from None
    inputs = _get(request, "inputs", list, [])
    if (
        len(inputs) != 1
        or _get(inputs[0], "name", str, "") != INPUT
        or _get(inputs[0], "datatype", str, "") != "BYTES"
    ):
        raise MalformedRequestError(
            f"the request's inputs are not one of name {INPUT} and datatype BYTES: send feature files in that"
        )
    count = _count(_get(inputs[0], "shape", list, []))
    if count > max_files:
        raise TooManyFilesError(
            f"{count} feature files in one request, {max_files} are taken: send several requests"
        )
    size = _get(_parameters(inputs[0]), "binary_data_size", int, None)
    if size is not None:
        if size != len(body) - length:
            raise MalformedRequestError(
                f"binary_data_size is {size}, {len(body) - length} bytes follow the JSON: send so many as it says"
            )
        files = elements(memoryview(body)[length:], max_files)
    else:
        if length != len(body):
            raise MalformedRequestError(
                f"{len(body) - length} bytes follow the JSON, and no input has a binary_data_size: leave one of both"
            )
        files = [_decode(text) for text in _flat(_get(inputs[0], "data", list, None), max_files)]
    if len(files) != count:
        raise MalformedRequestError(
            f"the input's shape is of {count} feature files, {len(files)} came: send as many as it says"
        )
    parameters = _get(request, "parameters", dict, {})
    top_k = _get(parameters, "top_k", int, 1)
    if not 1 <= top_k < 1 << 31:
        raise MalformedRequestError(f"top_k is {str(top_k)[:20]}, which is not a number from 1 up")
    identity = _get(request, "id", str, None)
    if identity is not None and len(identity) > _MAX_ID:
        raise MalformedRequestError(
            f"the request's id has {len(identity)} characters, {_MAX_ID} are taken: choose a shorter one"
        )
    return InferRequest(
        files,
        _outputs(request, _get(parameters, "binary_data_output", bool, False)),
        identity,
        top_k,
    )


def _outputs(request: dict[str, Any], binary: bool) -> dict[str, bool]:
    wanted: dict[str, bool] = {}
    for output in _get(request, "outputs", list, []):
        name, parameters = _get(output, "name", str, ""), _parameters(output)
        if name not in OUTPUTS or parameters.get("classification") is not None:
            raise MalformedRequestError(
                f"no output {name[:80]!r} with these parameters: ask for {', '.join(OUTPUTS)}; top_k is the request's"
            )
        wanted[name] = _get(parameters, "binary_data", bool, binary)
    return wanted or dict.fromkeys(OUTPUTS, binary)


def elements(data: memoryview, most: int) -> list[bytes]:
    """The elements of a BYTES tensor, which is also the body of a batch: each a 32-bit little-endian length and its bytes.

    Raises MalformedRequestError, TooManyFilesError.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise MalformedRequestError(
                f"feature file {len(found)} ends at byte {end} of {len(data)}: send all of it, after its length"
            )
        if len(found) == most:
            raise TooManyFilesError(
                f"more than {most} feature files in one request: send several requests"
            )
        found.append(bytes(data[start:end]))
        at = end
    return found


def join(files: Sequence[bytes]) -> bytes:
    """Inverse of `elements`."""
    return b"".join(_LENGTH.pack(len(file)) + file for file in files)


def render(
    request: InferRequest, model: str, labels: list[str], logits: NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """The response to logits float32 [N, classes]: its body, and the JSON's length if tensors follow it."""
    probabilities, best = Classification.most_probable(logits, request.top_k)
    found: dict[str, NDArray[Any]] = {
        "label": np.array(labels, object)[best],
        "probability": np.take_along_axis(probabilities, best, 1),
        "class_index": best,
        "logits": logits,
    }
    outputs, tail = [], []
    for name, binary in request.outputs.items():
        datatype, values = OUTPUTS[name], found[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if binary:
            raw = (
                join([str(label).encode() for label in values.flat])
                if datatype == "BYTES"
                else values.astype(_DTYPES[datatype]).tobytes()
            )
            output["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    response: dict[str, Any] = {"model_name": model, "outputs": outputs}
    if request.id is not None:
        response["id"] = request.id
    head = json.dumps(response, allow_nan=False).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def _get(source: Any, key: str, kind: type, default: Any) -> Any:
    """A member of a JSON object, of the kind that it must have; `default` where it is absent or null."""
    value = source.get(key) if isinstance(source, dict) else source
    if value is None and isinstance(source, dict):
        return default
    if (
        not isinstance(source, dict)
        or not isinstance(value, kind)
        or (isinstance(value, bool) and kind is int)
    ):
        raise MalformedRequestError(
            f"the request has {str(value)[:40]!r} where {key} ({kind.__name__}) belongs: see the Open Inference Protocol"
        )
    return value


def _parameters(tensor: Any) -> dict[str, Any]:
    """Of an input or an output."""
    parameters: dict[str, Any] = _get(tensor, "parameters", dict, {})
    if any(
        parameters.get(f"shared_memory_{what}") is not None
        for what in ("region", "byte_size", "offset")
    ):
        raise UnsupportedSharedMemoryError(NO_SHARED_MEMORY)
    return parameters


def _count(shape: list[Any]) -> int:
    if (
        not shape
        or len(shape) > _MAX_DEPTH
        or not all(type(side) is int and 1 <= side < 1 << 31 for side in shape)
    ):
        raise MalformedRequestError(
            f"the input's shape is {str(shape)[:40]}, not [N] or [N, 1]: send one feature file or more"
        )
    return math.prod(shape)


def _flat(data: Any, most: int, depth: int = 1) -> list[str]:
    """The strings of data, which may come in nested lists."""
    if not isinstance(data, list):
        raise MalformedRequestError(
            "the input has neither data nor a binary_data_size: send feature files in one of both"
        )
    if len(data) > most:
        raise TooManyFilesError(
            f"more than {most} feature files in one request: send several requests"
        )
    flat: list[str] = []
    for entry in data:
        flat += (
            _flat(entry, most, depth + 1)
            if isinstance(entry, list) and depth < _MAX_DEPTH
            else [entry]
        )
    return flat


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise MalformedRequestError(
            "the input's data are not base64: write feature files so, or send them by the binary extension"
        ) from None
