"""The stages of an export fit together, and nothing but the engine opens a session."""

import ast
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from export.stages import STAGES
from export.states import Inputs, Placed, Started

PROJECT = Path(__file__).resolve().parents[2]


def test_each_stage_takes_what_the_one_before_gives() -> None:
    state: type = Started
    for name, stage in STAGES:
        hints = get_type_hints(stage)
        assert hints["state"] is state, name
        assert issubclass(hints["return"], state), name
        state = hints["return"]
    assert state is Placed
    assert {field.name for field in fields(Inputs)} < {field.name for field in fields(Placed)}


@pytest.mark.parametrize("room", ["runtime", "export", "tests", "benchmarks"])
def test_one_function_opens_onnxruntimes_sessions(room: str) -> None:
    found = [
        str(path.relative_to(PROJECT))
        for path in sorted((PROJECT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
    ]
    assert found == (["runtime/engine/onnxruntime.py"] * 2 if room == "runtime" else [])
