"""The C library writes the same files on other processors, which qemu plays here.

EDGECLOUD_PICTURES=FOLDER pytest -m slow tests/csrc/test_other_processors.py compares the files of
all JPEGs below a folder instead of 200 parts of one picture.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder
from runtime.images.preprocess import preprocess

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
COUNT, SIDE = 200, 64
# The compilers' prefix, and the kernel that is expected.
PROCESSORS = {
    "aarch64": ("aarch64-linux-gnu", "neon-dot"),
    "arm": ("arm-linux-gnueabihf", "portable"),
    "riscv64": ("riscv64-linux-gnu", "portable"),
}


def _build(prefix: str, folder: Path) -> Path:
    """The program stream_test for a processor, linked statically."""
    library, out = folder / "edgecloud.o", folder / "stream_test"
    flags = ["-O2", "-ffp-contract=off", "-I", CSRC / "include"]
    for command in (
        [
            f"{prefix}-g++",
            "-std=c++17",
            *flags,
            "-c",
            CSRC / "library/edgecloud.cpp",
            "-o",
            library,
        ],
        [f"{prefix}-gcc", *flags, "-c", CSRC / "library/stream_test.c", "-o", folder / "main.o"],
        [f"{prefix}-g++", "-static", folder / "main.o", library, "-pthread", "-o", out],
    ):
        subprocess.run(command, check=True)
    return out


def _images(picture: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Parts of a picture, of all kinds of sizes; or the pictures of a folder that was named."""
    if folder := os.environ.get("EDGECLOUD_PICTURES"):
        for path in sorted(Path(folder).rglob("*.[jJ][pP]*[gG]")):
            yield np.asarray(Image.open(path).convert("RGB"))
        return
    random = np.random.default_rng(0)
    for _ in range(COUNT):
        height, width = random.integers(20, 300, 2)
        top = random.integers(0, picture.shape[0] - height)
        left = random.integers(0, picture.shape[1] - width)
        yield picture[top : top + height, left : left + width].copy()


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_same_bytes_on(
    processor: str,
    bundle: Path,
    variable_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    prefix, kernel = PROCESSORS[processor]
    for tool in (f"{prefix}-g++", f"qemu-{processor}"):
        if not shutil.which(tool):
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI must have {tool}")
            pytest.skip(f"no {tool}: apt-get install g++-{prefix} qemu-user")
    images = list(_images(golf_ball))
    assert images, "no pictures to encode"
    command = [f"qemu-{processor}", _build(prefix, tmp_path)]
    _compare(command, bundle, images, kernel, None)
    _compare(command, variable_bundle, images[: COUNT // 4], kernel, 90)


def _compare(
    command: list[str | Path],
    bundle: Path,
    images: list[NDArray[np.uint8]],
    kernel: str,
    max_bytes: int | None,
) -> None:
    """The program's files are Python's."""
    stream = b"".join(
        struct.pack("<3I", *image.shape[:2], SIDE) + image.tobytes() for image in images
    )
    asked = [] if max_bytes is None else [str(max_bytes)]
    done = subprocess.run(
        [*command, bundle, *asked], input=stream, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode() == f"{kernel}\n"
    python = EdgeEncoder(bundle, threads=1, provider="native", max_bytes=max_bytes)
    files = BytesIO(done.stdout)
    for image in images:
        (size,) = struct.unpack("<I", files.read(4))
        pixels = preprocess(Image.fromarray(image))
        before = (pixels.shape[0] - SIDE) // 2
        part = pixels[before : before + SIDE, before : before + SIDE]
        assert files.read(size) == python.encode(np.ascontiguousarray(part), as_is=True)
    assert not files.read()
