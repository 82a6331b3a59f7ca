"""docs/BUNDLE.md describes every member and file of a real bundle, with its type, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from export.graphs import OPSET
from runtime.codec.manifest import SCHEMA

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "BUNDLE.md").read_text(encoding="utf-8")
# What a word in capitals stands for in a member's name.
NAMES = {
    "FILE": r"[\w.]+",
    "END": "edge|cloud",
    "PRECISION": "fp32|int8",
    "PACKAGE": r"[\w-]+",
    "WAY": "edge|cloud|both|native",
}
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}


def section(number: str) -> str:
    """The text of `## N. ...` or `### N.M ...`, up to the next heading of that kind."""
    found = re.search(
        rf"^(#+) {re.escape(number)}\.? .*?(?=^\1 |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert found
    return found[0]


def first_cells(text: str) -> list[list[str]]:
    """The cells of each row of the text's tables that begins with a name in backticks."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    return [
        [cell.strip("|` ") if index == 0 else cell for index, cell in enumerate(row)]
        for row in rows
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every member that is not an object. A path may contain file names."""
    if not isinstance(value, dict):
        yield path, value
        return
    for name, member in value.items():
        yield from leaves(member, f"{path}.{name}" if path else name)


def pattern(member: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(r"[A-Z]{3,}", lambda word: f"(?:{NAMES[word[0]]})", member.replace(".", r"\."))
    )


def test_the_page_has_every_member_of_a_real_manifest_and_no_other(
    bundle: Path, variable_bundle: Path
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    validation = manifest["int8"].pop("validation")
    found = dict(leaves(json.loads((variable_bundle / "manifest.json").read_text())))
    found |= dict(leaves(manifest))
    found |= {f"int8.gate.{path}": value for path, value in leaves(validation)}  # the same members
    rows = first_cells(section("2"))
    for member, kind, *_ in rows:
        values = [value for path, value in found.items() if pattern(member).fullmatch(path)]
        assert values, f"docs/BUNDLE.md has {member}, the manifest has not"
        for value in values:
            assert isinstance(value, TYPES[kind]), (
                f"{member} is {value!r}, docs/BUNDLE.md says {kind}"
            )
            assert isinstance(value, bool) == (kind == "boolean")
    for path in found:
        assert sum(bool(pattern(member).fullmatch(path)) for member, *_ in rows) == 1, (
            f"docs/BUNDLE.md does not have {path}"
        )


def test_the_page_has_every_file_of_a_real_bundle_and_no_other(
    bundle: Path, variable_bundle: Path
) -> None:
    files = {row[0] for row in first_cells(section("1"))}
    folders = (bundle, variable_bundle)
    found = {path.name for folder in folders for path in folder.iterdir()}
    assert files - {"tuned.json"} == found - {"tuned.json"}
    named = [json.loads((folder / "manifest.json").read_text())["files"] for folder in folders]
    assert set().union(*named) == files - {"manifest.json", "tuned.json"}


def test_the_page_has_the_members_of_tables_and_rates(bundle: Path, variable_bundle: Path) -> None:
    tables = json.loads((bundle / "tables.json").read_text())
    members = set(tables) | {
        f"contexts.N.{name}" for context in tables["contexts"].values() for name in context
    }
    for name in ("tables.json", "rates.json"):
        members |= set(json.loads((variable_bundle / name).read_text()))
    assert {row[0] for row in first_cells(section("3"))} == members


def test_the_page_has_the_numbers_and_the_graphs_of_a_real_bundle(bundle: Path) -> None:
    assert f"schema {SCHEMA}\n" in PAGE
    assert f"opset {OPSET}," in section("5")
    kinds = {
        onnx.TensorProto.UINT8: "uint8",
        onnx.TensorProto.INT16: "int16",
        onnx.TensorProto.FLOAT: "float32",
    }
    for line in section("5").splitlines():
        if not line.startswith("| `"):
            continue
        names, source, targets = line.strip("|").split(" | ")
        for name in re.findall("`(.*?)`", names):
            model = onnx.load(bundle / name)
            tensors = [*model.graph.input, *model.graph.output]
            for tensor, text in zip(tensors, [source, *targets.split("; ")], strict=True):
                assert text.strip().startswith(
                    f"`{tensor.name}`, {kinds[tensor.type.tensor_type.elem_type]} "
                )
            properties = {entry.key for entry in model.metadata_props}
            assert properties == set(
                re.findall("`([a-z_]+)`", section("5").split("metadata_props", 1)[1])
            )


def test_the_page_has_the_tensors_of_variable_rate(variable_bundle: Path) -> None:
    for name, end in (("edge.onnx", "output"), ("cloud.onnx", "input")):
        (tensor,) = list(getattr(onnx.load(variable_bundle / name).graph, end))[:1]
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert f"{end} is `{tensor.name}`, float32" in section("5")


def test_every_refusal_on_the_page_is_a_class() -> None:
    from runtime import errors

    for name in re.findall(r"`(\w+Error)`", PAGE):
        assert issubclass(getattr(errors, name), errors.EdgeCloudError)
