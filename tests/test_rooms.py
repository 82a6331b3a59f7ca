"""Every import in the tree follows the rules of docs/design.md about which room may import which.

A wrong import fails with the names of both rooms. Imports inside functions count as well, and so do
imports for type checking only, because a reader follows them too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

LEAVES = {"runtime", "runtime.errors", "runtime.files", "runtime.options", "runtime.refusals"}
_CODEC = LEAVES | {"runtime.codec"}
_ENDS = {"runtime.edge", "runtime.cloud"}
ROOMS = {
    f"runtime.{name}"
    for name in (
        "codec",
        "images",
        "engine",
        "tasks",
        "bulk",
        "service",
        "delivery",
        "cluster",
        "cli",
    )
}
# Which other rooms each room may import.
RULES: dict[str, set[str]] = {
    "runtime": _ENDS,
    "runtime.errors": set(),
    "runtime.files": {"runtime.errors"},
    "runtime.options": set(),
    "runtime.refusals": {"runtime", "runtime.errors"},
    "runtime.codec": LEAVES,
    "runtime.images": _CODEC,
    "runtime.engine": _CODEC,
    "runtime.tasks": LEAVES,
    "runtime.edge": _CODEC | {"runtime.images", "runtime.engine", "runtime.tasks"},
    "runtime.cloud": _CODEC | {"runtime.images", "runtime.engine", "runtime.tasks"},
    "runtime.bulk": _CODEC | _ENDS | {"runtime.tasks"},
    "runtime.service": _CODEC | {"runtime.cloud", "runtime.tasks", "runtime.engine"},
    "runtime.delivery": _CODEC | {"runtime.tasks"},
    "runtime.cluster": _CODEC | {"runtime.cloud", "runtime.service", "runtime.bulk"},
    "runtime.cli": _CODEC | _ENDS | ROOMS,
    "training": set(),
    "export": {"training"} | LEAVES | _ENDS | ROOMS,
}
OURS = ("runtime", "export", "training", "benchmarks", "tests", "examples")


def room_of(module: str) -> str:
    """`runtime.codec.bundle` -> `runtime.codec`; `export.gate` -> `export`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "runtime" else parts[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import of this project's modules in a file."""
    package = file.relative_to(PROJECT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # In `from . import x` and `from runtime import x`, x may be a module or not.
            names = [
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in OURS)


def is_module(name: str) -> bool:
    path = PROJECT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("root", ["runtime", "export", "training"])
def test_imports_follow_the_rules(root: str) -> None:
    wrong = []
    for file in sorted((PROJECT / root).rglob("*.py")):
        module = ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        room = room_of(module)
        assert room in RULES, f"{file} is in no room: add its rule here and in docs/design.md"
        allowed = RULES[room] | {room}
        wrong += [
            f"{file.relative_to(PROJECT)}:{line} imports {name}, which {room} may not"
            for line, name in imports(file)
            if room_of(name) not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_wrong_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PROJECT", tmp_path)
    (tmp_path / "runtime" / "codec").mkdir(parents=True)
    file = tmp_path / "runtime" / "codec" / "x.py"
    (tmp_path / "runtime" / "cli").mkdir()
    file.write_text(
        "def f():\n    from ..cli import y\n    import export.gate\n"
        "from .. import edge\nfrom . import x\n"
    )
    (tmp_path / "runtime" / "edge.py").write_text("")
    assert sorted(imports(file)) == [
        (2, "runtime.cli"),
        (3, "export.gate"),
        (4, "runtime.edge"),
        (5, "runtime.codec.x"),
    ]


def test_rooms_are_one_level_deep() -> None:
    deep = [
        path
        for path in (PROJECT / "runtime").rglob("*.py")
        if len(path.relative_to(PROJECT).parts) > 3
    ]
    assert not deep


def test_nothing_imports_a_command() -> None:
    for root in ("runtime", "export", "training"):
        for file in (PROJECT / root).rglob("*.py"):
            commands = [
                name
                for _, name in imports(file)
                if name.startswith("runtime.cli.") and not name.startswith("runtime.cli.command")
            ]
            assert not commands or file.parent.name == "cli", (file, commands)
