"""The Open Inference Protocol, version 2: its JSON, and its extension for binary tensors.

    request   {"inputs": [{"name": "feature_file", "datatype": "BYTES", "shape": [N], ...}],
               "outputs": [...], "parameters": {...}}
    response  {"outputs": [label, probability, class_index: [N, top_k]; logits: [N, classes]]}

The outputs are the members of a task's answers, and the graph's output that they are made of; the
ones above are those of classification.

Feature files are binary, so within JSON they are in base64. With the binary extension the JSON
comes first, its length is in a header, and the tensors' bytes follow. An element of a BYTES tensor
is its length (32 bits, little-endian) and its bytes.

Always holds: a request with any error is refused whole; lengths are checked before anything is read
with them; an optional member that is null counts as absent.
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
from ..tasks.base import Task

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUT = "feature_file"
EXTENSIONS = ["binary_tensor_data"]
NO_SHARED_MEMORY = (
    "shared memory is not supported (see `extensions` in /v2): send tensors within the request"
)
_DATATYPES = {str: "BYTES", float: "FP32", int: "INT32"}
_DTYPES = {"FP32": "<f4", "INT32": "<i4"}
_LENGTH = struct.Struct("<I")
_MAX_ID = 256  # characters
_MAX_DEPTH = 2  # of nested lists in data, and of a shape


@dataclass(frozen=True)
class InferRequest:
    """A valid request. `outputs`: name -> whether it is requested in binary."""

    files: list[bytes]
    outputs: dict[str, bool] = field(default_factory=dict)
    id: str | None = None
    top_k: int = 1


def outputs_of(task: type[Task] | Task) -> dict[str, str]:
    """A task's outputs: name -> datatype. All but the last one have top_k columns."""
    fields = {field.name: _DATATYPES[field.kind] for field in task.FIELDS}
    return fields | {task.OUTPUT: "FP32"}


def metadata(name: str, task: Task, engine: str) -> dict[str, Any]:
    """The answer of /v2/models/NAME: the inputs and outputs of a model."""
    columns = {task.OUTPUT: len(task.labels)}
    tensor = {"name": INPUT, "datatype": "BYTES", "shape": [-1]}
    return {
        "name": name,
        "platform": f"edgecloud_features ({engine})",
        "inputs": [{**tensor, "parameters": {"content_type": "base64"}}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, columns.get(output, -1)]}
            for output, datatype in outputs_of(task).items()
        ],
    }


def parse(
    body: bytes, header_length: str | None, max_files: int, task: type[Task] | Task
) -> InferRequest:
    """Read an inference request.

    Args:
        body: of the HTTP request.
        header_length: value of the header HEADER_LENGTH; None if there is none.
        max_files: feature files that one request may have.
        task: of the model that is asked.

    Raises MalformedRequestError, TooManyFilesError, UnsupportedSharedMemoryError.
    """
    length = _json_length(body, header_length)
    try:
        request = strict_json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise MalformedRequestError(
            f"the request is not JSON ({str(error)[:80]}): see the Open Inference Protocol"
        ) from None
    files = _files(request, memoryview(body)[length:], max_files)
    parameters = _get(request, "parameters", dict, {})
    top_k = _get(parameters, "top_k", int, 1)
    if not 1 <= top_k < 1 << 31:
        raise MalformedRequestError(f"top_k is {str(top_k)[:20]}, which is not a number from 1 up")
    identity = _get(request, "id", str, None)
    if identity is not None and len(identity) > _MAX_ID:
        raise MalformedRequestError(
            f"the request's id has {len(identity)} characters, and at most {_MAX_ID} are accepted: "
            "choose a shorter one"
        )
    binary = _get(parameters, "binary_data_output", bool, False)
    outputs = _outputs(request, binary, list(outputs_of(task)))
    return InferRequest(files, outputs, identity, top_k)


def _json_length(body: bytes, header_length: str | None) -> int:
    """How many bytes of the body are JSON."""
    if header_length is None:
        return len(body)
    if not (
        header_length.isascii()
        and header_length.isdigit()
        and len(header_length) < 10
        and int(header_length) <= len(body)
    ):
        raise MalformedRequestError(
            f"{HEADER_LENGTH} is {header_length[:20]!r} for a body of {len(body)} bytes: "
            "send the length of the JSON"
        )
    return int(header_length)


def _files(request: Any, tail: memoryview, max_files: int) -> list[bytes]:
    """The feature files of a request, in its JSON or in the bytes that follow it."""
    inputs = _get(request, "inputs", list, [])
    if (
        len(inputs) != 1
        or _get(inputs[0], "name", str, "") != INPUT
        or _get(inputs[0], "datatype", str, "") != "BYTES"
    ):
        raise MalformedRequestError(
            f"the request has not exactly one input of name {INPUT} and datatype BYTES: "
            "send feature files in such an input"
        )
    count = _count(_get(inputs[0], "shape", list, []))
    if count > max_files:
        raise TooManyFilesError(
            f"{count} feature files in one request, and at most {max_files} are accepted: "
            "send several requests"
        )
    size = _get(_parameters(inputs[0]), "binary_data_size", int, None)
    if size is None:
        if len(tail):
            raise MalformedRequestError(
                f"{len(tail)} bytes follow the JSON, and no input has a binary_data_size: "
                "send both or neither"
            )
        data = _get(inputs[0], "data", list, None)
        files = [_decode(text) for text in _flatten(data, max_files)]
    else:
        if size != len(tail):
            raise MalformedRequestError(
                f"binary_data_size is {size}, but {len(tail)} bytes follow the JSON: "
                "send as many as it says"
            )
        files = elements(tail, max_files)
    if len(files) != count:
        raise MalformedRequestError(
            f"the input's shape is of {count} feature files, {len(files)} came: "
            "send as many as it says"
        )
    return files


def _outputs(request: dict[str, Any], binary: bool, known: list[str]) -> dict[str, bool]:
    """The outputs that are requested: name -> whether in binary, which is `binary` by default."""
    wanted: dict[str, bool] = {}
    for output in _get(request, "outputs", list, []):
        name, parameters = _get(output, "name", str, ""), _parameters(output)
        if name not in known or parameters.get("classification") is not None:
            raise MalformedRequestError(
                f"there is no output {name[:80]!r} with these parameters: "
                f"ask for {', '.join(known)}; top_k is a parameter of the request"
            )
        wanted[name] = _get(parameters, "binary_data", bool, binary)
    return wanted or dict.fromkeys(known, binary)


def elements(data: memoryview, max_files: int) -> list[bytes]:
    """The elements of a BYTES tensor; the body of /v1/classify/batch has the same form.

    Raises MalformedRequestError, TooManyFilesError.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise MalformedRequestError(
                f"feature file {len(found)} ends at byte {end} of {len(data)}: "
                "send all of it, after its length"
            )
        if len(found) == max_files:
            raise _too_many(max_files)
        found.append(bytes(data[start:end]))
        at = end
    return found


def _too_many(max_files: int) -> TooManyFilesError:
    return TooManyFilesError(
        f"more than {max_files} feature files in one request: send several requests"
    )


def join(files: Sequence[bytes]) -> bytes:
    """The inverse of `elements`."""
    return b"".join(_LENGTH.pack(len(file)) + file for file in files)


def render(
    request: InferRequest, model: str, task: Task, rows: NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """The response to a request.

    Args:
        request: what outputs are requested, and how.
        model: name of the bundle that answered.
        task: of that bundle.
        rows: the graph's output that answers are made of, such as logits float32 [N, classes].

    Returns the body, and the length of its JSON if tensors follow that, else None.
    """
    answers = [task.answers(row, request.top_k) for row in rows]
    datatypes = outputs_of(task)
    found: dict[str, NDArray[Any]] = {
        name: np.array([[getattr(one, name) for one in few] for few in answers], object)
        for name in datatypes
        if name != task.OUTPUT
    }
    found[task.OUTPUT] = rows
    outputs, tail = [], []
    for name, binary in request.outputs.items():
        datatype, values = datatypes[name], found[name]
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
    """A member of a JSON object; `default` if it is absent or null.

    Raises MalformedRequestError if `source` is not an object, or the member is of another kind.
    """
    value = source.get(key) if isinstance(source, dict) else source
    if value is None and isinstance(source, dict):
        return default
    if (
        not isinstance(source, dict)
        or not isinstance(value, kind)
        or (isinstance(value, bool) and kind is int)
    ):
        raise MalformedRequestError(
            f"the request has {str(value)[:40]!r} where {key} ({kind.__name__}) belongs: "
            "see the Open Inference Protocol"
        )
    return value


def _parameters(tensor: Any) -> dict[str, Any]:
    """The parameters of an input or an output. Raises UnsupportedSharedMemoryError."""
    parameters: dict[str, Any] = _get(tensor, "parameters", dict, {})
    if any(
        parameters.get(f"shared_memory_{what}") is not None
        for what in ("region", "byte_size", "offset")
    ):
        raise UnsupportedSharedMemoryError(NO_SHARED_MEMORY)
    return parameters


def _count(shape: list[Any]) -> int:
    """How many elements a tensor of this shape has."""
    if (
        not shape
        or len(shape) > _MAX_DEPTH
        or not all(type(side) is int and 1 <= side < 1 << 31 for side in shape)
    ):
        raise MalformedRequestError(
            f"the input's shape is {str(shape)[:40]}, not [N] or [N, 1]: "
            "send at least one feature file"
        )
    return math.prod(shape)


def _flatten(data: Any, max_files: int, depth: int = 1) -> list[str]:
    """The strings of data, which may be nested lists."""
    if not isinstance(data, list):
        raise MalformedRequestError(
            "the input has neither data nor a binary_data_size: send feature files in one of both"
        )
    if len(data) > max_files:
        raise _too_many(max_files)
    flat: list[str] = []
    for entry in data:
        flat += (
            _flatten(entry, max_files, depth + 1)
            if isinstance(entry, list) and depth < _MAX_DEPTH
            else [entry]
        )
    return flat


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise MalformedRequestError(
            "the input's data are not base64: encode feature files in it, "
            "or send them with the binary extension"
        ) from None
