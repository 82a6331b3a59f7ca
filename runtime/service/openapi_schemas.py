"""The objects of the OpenAPI document, and the small functions that build it.

Always holds: the statuses and codes of refusals are those of refusals.py. What an answer holds is
what its task says.
"""

from collections.abc import Sequence
from typing import Any

from ..refusals import INTERNAL, STATUS, code_of
from ..tasks.base import Task
from ..tasks.registry import TASKS
from .oip import INPUT, outputs_of

Schema = dict[str, Any]


def object_of(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these members: name -> schema."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def ref(name: str) -> Schema:
    """A reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    """What the schema allows, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array_of(items: Schema) -> Schema:
    """An array whose items have one schema."""
    return {"type": "array", "items": items}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
_JSON_TYPES = {str: STRING, int: INTEGER, float: NUMBER}
_INFER_INPUT = object_of(
    {
        "name": {"const": INPUT},
        "datatype": {"const": "BYTES"},
        "shape": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 1},
        },
    },
    {
        "data": or_null({**array_of(STRING), "description": "feature files in base64"}),
        "parameters": or_null(
            object_of({}, {"binary_data_size": or_null({"type": "integer", "minimum": 0})})
        ),
    },
)
_INFER_PARAMETERS = {
    "top_k": or_null({"type": "integer", "minimum": 1}),
    "binary_data_output": or_null(BOOLEAN),
}
# Name -> schema, under which `ref` finds it; `schemas` adds those that depend on the tasks.
_SCHEMAS: Schema = {
    "Model": object_of(
        {
            "name": STRING,
            "fingerprint": STRING,
            "model": STRING,
            "weights": STRING,
            "classes": INTEGER,
            "engine": STRING,
            "serves": {
                **BOOLEAN,
                "description": "false for a variant, which is only asked by name",
            },
        }
    ),
    "Refusal": object_of(
        {
            "code": {**STRING, "description": "does not change; see the codes"},
            "error": {**STRING, "description": "value and remedy"},
        },
        {"known": {**array_of(ref("Model")), "description": "with unknown_model: what is served"}},
    ),
    "Tensor": object_of(
        {"name": STRING, "datatype": STRING, "shape": array_of(INTEGER)},
        {"parameters": {"type": "object"}, "data": {"type": "array"}},
    ),
    "Metadata": object_of(
        {
            "name": STRING,
            "platform": STRING,
            "inputs": array_of(ref("Tensor")),
            "outputs": array_of(ref("Tensor")),
        }
    ),
    "InferResponse": object_of(
        {"model_name": STRING, "outputs": array_of(ref("Tensor"))}, {"id": STRING}
    ),
}


def output_names(tasks: Sequence[type[Task]] = TASKS) -> list[str]:
    """The outputs that may be asked for in the Open Inference Protocol."""
    return list(dict.fromkeys(name for task in tasks for name in outputs_of(task)))


def schemas(tasks: Sequence[type[Task]] = TASKS) -> Schema:
    """All schemas of a service that may serve these tasks: name -> schema, as `ref` finds it."""
    required, optional = _result(tasks)
    result = object_of(required, optional)
    accepted = object_of({"status": {"const": 200}, **required}, optional)
    refused = object_of(
        {"status": {"type": "integer", "minimum": 400}, "code": STRING, "error": STRING},
        {"known": array_of(ref("Model"))},
    )
    return {
        **{task.ANSWER: _answer(task) for task in tasks},
        "Result": result,
        "Answer": {"oneOf": [accepted, refused]},
        "InferRequest": _infer_request(tasks),
        **_SCHEMAS,
    }


def _answer(task: type[Task]) -> Schema:
    """One answer of a task."""
    members: Schema = {}
    for field in task.FIELDS:
        bounds = {"minimum": field.minimum, "maximum": field.maximum}
        members[field.name] = {
            **_JSON_TYPES[field.kind],
            **{name: bound for name, bound in bounds.items() if bound is not None},
        }
    return object_of(members)


def _result(tasks: Sequence[type[Task]]) -> tuple[Schema, Schema]:
    """The members of the answer to one feature file: those always there, and the others."""
    answers = {
        task.ANSWERS: {**array_of(ref(task.ANSWER)), "description": "best first"} for task in tasks
    }
    required = {
        "model": {**STRING, "description": "name of the bundle that answered"},
        "fingerprint": {**STRING, "description": "of that bundle, as the feature file carries it"},
        "bytes": {**INTEGER, "description": "of the feature file"},
        **(answers if len(tasks) == 1 else {}),
        "milliseconds": {
            "type": "object",
            "additionalProperties": NUMBER,
            "description": "coder, queue, graph",
        },
    }
    return required, {} if len(tasks) == 1 else answers


def _infer_request(tasks: Sequence[type[Task]]) -> Schema:
    output = object_of(
        {"name": {"enum": output_names(tasks)}},
        {"parameters": or_null(object_of({}, {"binary_data": or_null(BOOLEAN)}))},
    )
    return object_of(
        {"inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INFER_INPUT}},
        {
            "id": or_null({**STRING, "maxLength": 256}),
            "parameters": or_null(object_of({}, _INFER_PARAMETERS)),
            "outputs": or_null(array_of(output)),
        },
    )


def json_response(schema: Schema, description: str) -> Schema:
    """A response with a JSON body."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def refusal_responses(*statuses: int) -> Schema:
    """The responses of these statuses, each with its codes."""
    found = {}
    for status in sorted(set(statuses)):
        codes = [code_of(kind) for kind, value in STATUS.items() if value == status]
        if status == 500:
            codes.append(INTERNAL)
        response = json_response(ref("Refusal"), ", ".join(codes))
        if status in (429, 503):
            response["headers"] = {"Retry-After": {"schema": INTEGER, "description": "seconds"}}
        found[str(status)] = response
    return found
