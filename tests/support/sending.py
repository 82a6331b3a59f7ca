"""What the tests of edge-send share: pictures, results, and the command in a process."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def crops(picture: NDArray[np.uint8], folder: Path, count: int) -> list[Path]:
    """Files of different pictures, which are parts of one."""
    folder.mkdir()
    paths = []
    for index in range(count):
        top, left = 7 * (index // 20), 7 * (index % 20)
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(picture[top : top + 240, left : left + 240]).save(paths[-1])
    return paths


def results(spool: Path) -> list[dict[str, Any]]:
    """The lines of a spool's results."""
    return [json.loads(line) for line in (spool / "results.jsonl").read_text().splitlines()]


def is_delivered(spool: Path) -> bool:
    """Whether the file of the fixture `pending` is delivered, and no other."""
    return [(result["image"], result["status"]) for result in results(spool)] == [
        ("earlier", "delivered")
    ]


@contextmanager
def edge_send(arguments: list[str], stdin: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """The command, in a process that is killed at the end if it still runs."""
    command = [sys.executable, "-m", "runtime.cli.edge_send", *arguments]
    # If a shell runs the tests in the background, they ignore Ctrl-C, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with running:
        try:
            yield running
        finally:
            running.kill()
