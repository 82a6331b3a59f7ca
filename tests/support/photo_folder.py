"""The names in the fixture `photos`, and how tests run edge-encode on them."""

import json
from pathlib import Path
from typing import Any

from commands import Capture

from runtime.cli import edge_encode as edge_cli

NAMES = ["a.PNG", "b.jpg", "sub/c.jpeg", "sub/deep er/d.webp", "z[1].jpg"]
FILES = ["a.bin", "b.bin", "sub/c.bin", "sub/deep er/d.bin", "z[1].bin"]


def run(capsys: Capture, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    """Run edge-encode; gives its status, the lines of --json, and standard error."""
    status = edge_cli.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def tree(folder: Path) -> list[str]:
    """The names of all files in a folder and below, sorted."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
