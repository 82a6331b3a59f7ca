"""The microcontroller's encoder: under qemu it writes the files of the engine `native`.

Memory is what the linker laid out; the stack is painted, so that its deepest use can be read.
"""

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cortex_m
import integer_encoder
import numpy as np
import pytest
from cortex_m_files import Files, doubled, flat_tables, made_tables
from numpy.typing import NDArray
from PIL import Image
from shared_folder import made_once

from runtime import EdgeEncoder
from runtime.codec.feature_file import Profile
from runtime.codec.feature_file import build as feature_file
from runtime.engine import _encoder
from runtime.images.preprocess import preprocess

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = PROJECT / "checkpoints" / "ours_n0_enc" / "lmb1.28.safetensors"
FLASH, RAM, STACK = 160 << 10, 64 << 10, 2 << 10
SMALL_AT, VERSION_AT, FINGERPRINT_AT = 36, 8, 36  # the last: in edge.weights
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def n0_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained ours_n0_enc: bundles/ours_n0_enc if it is up to date, otherwise exported now."""
    cortex_m.require_tools()
    made = PROJECT / "bundles" / "ours_n0_enc"
    if (made / "edge.tables").is_file():
        manifest = json.loads((made / "manifest.json").read_text())
        if manifest["checkpoint"]["sha256"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest():
            return made
    from export.cli import main

    def export(out: Path) -> None:
        assert main(["ours_n0_enc", "--checkpoint", str(CHECKPOINT), "--out", str(out)]) == 0

    return made_once(tmp_path_factory, "ours_n0_enc", export)


@pytest.fixture(scope="module")
def files(n0_bundle: Path) -> Files:
    return Files(*((n0_bundle / name).read_bytes() for name in ("edge.tables", "edge.weights")))


@pytest.fixture(scope="module")
def programs(n0_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program for each processor that is run."""
    folder = tmp_path_factory.mktemp("cortex-m")
    return {cpu: cortex_m.build(n0_bundle, folder / cpu, cpu) for cpu in cortex_m.MACHINES}


@pytest.fixture(scope="module")
def with_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Files], Path]:
    """Builds the program with other files. It replaces the program that was made before."""
    cortex_m.require_tools()
    folder = tmp_path_factory.mktemp("made")
    return lambda files: cortex_m.build(files.write(folder / "files"), folder / "build")


@pytest.fixture(scope="module")
def n0_native(n0_bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(n0_bundle, threads=1, provider="native")


@pytest.fixture(scope="module")
def pictures() -> dict[str, Pixels]:
    """Pictures of 224x224 pixels: the demo's, a gradient, noise, and one with large symbols."""
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    planes = np.broadcast_arrays(ramp, ramp[:, None], np.uint8(128))
    random = np.random.default_rng(0)
    squares = random.integers(0, 2, (56, 56, 3), np.uint8) * np.uint8(255)
    return {
        "golf ball": preprocess(Image.open(PROJECT / "docs/demo/golf_ball.jpg")),
        "gradient": np.stack(planes, axis=-1),
        "noise": random.integers(0, 256, (224, 224, 3), np.uint8),
        "squares": squares.repeat(4, axis=0).repeat(4, axis=1),
    }


@pytest.mark.parametrize("cpu", cortex_m.MACHINES)
def test_the_same_bytes(
    cpu: str,
    programs: dict[str, Path],
    n0_native: EdgeEncoder,
    pictures: dict[str, Pixels],
    tmp_path: Path,
) -> None:
    written = set()
    for pixels in pictures.values():
        made, report = cortex_m.encode(programs[cpu], pixels, tmp_path, cpu)
        assert made == n0_native.encode(np.ascontiguousarray(pixels), as_is=True)
        assert report["bytes"] == len(made)
        assert 0 < report["stack_bytes"] <= STACK * 3 // 4
        # 40 instructions a tick. Fewer than two for three multiplications cannot be.
        instructions = 40 * report["rows_ticks"]
        assert 784 * (192 * 128 + 128 * 64) * 2 / 3 < instructions < 40e6
        assert 40 * report["coder_ticks"] < 4e6
        written.add(made)
    assert len(written) == len(pictures)


@pytest.mark.parametrize("size", [(8, 8), (64, 96), (224, 8), (8, 216), (120, 224)])
def test_other_sizes(
    size: tuple[int, int],
    programs: dict[str, Path],
    n0_native: EdgeEncoder,
    pictures: dict[str, Pixels],
    tmp_path: Path,
) -> None:
    part = np.ascontiguousarray(pictures["golf ball"][: size[0], : size[1]])
    made, _ = cortex_m.encode(programs["cortex-m7"], part, tmp_path)
    assert made == n0_native.encode(part, as_is=True)


def test_the_memory_is_within_its_limits(programs: dict[str, Path]) -> None:
    for program in programs.values():
        lines = subprocess.check_output(["arm-none-eabi-size", "-A", program], text=True)
        table = [line.split() for line in lines.splitlines() if line.startswith(".")]
        sizes = {name: int(size) for name, size, _ in table}
        flash = sum(sizes.get(name, 0) for name in (".text", ".ARM.exidx", ".data"))
        ram = sum(sizes.get(name, 0) for name in (".stack", ".data", ".bss"))
        assert 90_000 < flash <= FLASH
        assert 50_000 < ram <= RAM
        assert sizes[".stack"] == STACK
        symbols = subprocess.check_output(["arm-none-eabi-nm", program], text=True)
        assert "_Znw" not in symbols
        assert "malloc" not in symbols
        assert "_sbrk" not in symbols


def test_another_processor_is_only_built(n0_bundle: Path, tmp_path: Path) -> None:
    assert cortex_m.build(n0_bundle, tmp_path, "cortex-m33").is_file()


def test_a_bundle_with_plain_files(
    files: Files,
    with_files: Callable[[Files], Path],
    n0_bundle: Path,
    pictures: dict[str, Pixels],
    tmp_path: Path,
) -> None:
    body = files.tables[:SMALL_AT] + bytes(4) + files.tables[SMALL_AT + 4 : -4]
    program = with_files(Files(body + struct.pack("<I", zlib.crc32(body)), files.weights))
    plain = EdgeEncoder(n0_bundle, threads=1, provider="native", profile=Profile.STATIC)
    for pixels in pictures.values():
        made, _ = cortex_m.encode(program, pixels, tmp_path)
        assert made == plain.encode(np.ascontiguousarray(pixels), as_is=True)


@pytest.mark.parametrize("contexts", [1, 2, 15, 16, 21, 64])
def test_made_tables(
    contexts: int,
    files: Files,
    with_files: Callable[[Files], Path],
    pictures: dict[str, Pixels],
    tmp_path: Path,
) -> None:
    tables = made_tables(np.random.default_rng(contexts), contexts)
    made = files.with_tables(tables, small=True)
    program = with_files(made)
    fingerprint = made.weights[FINGERPRINT_AT : FINGERPRINT_AT + 32]
    for pixels in (pictures["noise"], pictures["golf ball"][:80, :120]):
        symbols = _encoder.Encoder(made.weights, 1).encode(np.ascontiguousarray(pixels)[None])[0]
        payload = tables.encode(symbols, Profile.CONTEXT)
        height, width = pixels.shape[:2]
        expected = feature_file(fingerprint, height, width, payload, Profile.CONTEXT)
        assert cortex_m.encode(program, pixels, tmp_path)[0] == expected


@pytest.mark.parametrize("extreme", [False, True])
def test_made_weights(
    extreme: bool, files: Files, with_files: Callable[[Files], Path], tmp_path: Path
) -> None:
    """Weights of all sizes, with which values between the layers saturate."""
    random = np.random.default_rng(int(extreme))
    weights = integer_encoder.random_weights(0, seed=3, extreme=extreme)
    pixels = random.integers(0, 256, (96, 120, 3), np.uint8)
    symbols = integer_encoder.encode(weights, pixels)
    while not 64 <= (largest := np.abs(symbols).max()) < 128:
        weights.layers[-1].shift += 1 if largest >= 128 else -1
        symbols = integer_encoder.encode(weights, pixels)
    tables = made_tables(random, 20)
    made = files._replace(weights=integer_encoder.write(weights)).with_tables(tables, small=True)
    made_file, _ = cortex_m.encode(with_files(made), pixels, tmp_path)
    payload = tables.encode(np.ascontiguousarray(symbols), Profile.CONTEXT)
    fingerprint = made.weights[FINGERPRINT_AT : FINGERPRINT_AT + 32]
    assert made_file == feature_file(fingerprint, 96, 120, payload, Profile.CONTEXT)


def test_no_picture_gives_a_far_symbol(files: Files) -> None:
    """docs/cortex-m.md says so: the range of each value, whatever the pixels are."""
    weights = integer_encoder.read(files.weights)
    first, last = weights.layers

    def rounded(layer: integer_encoder.Layer, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        return (sums * layer.multipliers + (1 << (layer.shift - 1))) >> layer.shift

    low = rounded(first, first.biases + 255 * np.minimum(first.weights, 0).sum(axis=1))
    high = rounded(first, first.biases + 255 * np.maximum(first.weights, 0).sum(axis=1))
    every = np.arange(-(1 << 15), 1 << 15)
    index = np.minimum(np.abs(every) >> (weights.fraction - 6), 255)
    gelu = np.maximum(every, 0) - weights.gelu[index]
    ranges = [
        gelu[max(0, a + (1 << 15)) : b + (1 << 15) + 1] for a, b in zip(low, high, strict=True)
    ]
    least = np.array([values.min() for values in ranges])
    most = np.array([values.max() for values in ranges])
    ends = [last.weights * least, last.weights * most]
    assert rounded(last, last.biases + np.minimum(*ends).sum(axis=1)).min() == -74
    assert rounded(last, last.biases + np.maximum(*ends).sum(axis=1)).max() == 40


def _changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


REFUSED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no tables": (lambda files: files._replace(tables=_changed(files.tables, 0)), "not a file of"),
    "cut tables": (lambda files: files._replace(tables=files.tables[:100]), "not a file of"),
    "other version": (
        lambda files: files._replace(tables=_changed(files.tables, VERSION_AT)),
        "edge.tables is of all rates or of another release",
    ),
    "damaged tables": (
        lambda files: files._replace(tables=_changed(files.tables, 9000)),
        "edge.tables is damaged",
    ),
    "damaged weights": (
        lambda files: files._replace(weights=files.weights[:-4]),
        "edge.weights is damaged",
    ),
    "weights of another bundle": (
        lambda files: files._replace(weights=_changed(files.weights, FINGERPRINT_AT)),
        "of different bundles",
    ),
    "other weights": (
        lambda files: files._replace(weights=_changed(files.weights, 592)),
        "of different bundles",
    ),
    "far symbols": (lambda files: doubled(files, 5), "outside -128..127"),
    "a large file": (lambda files: files.with_tables(flat_tables(True), True), "larger than"),
    "a wide part": (lambda files: files.with_tables(flat_tables(False), False), "sixteen lanes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(
    name: str,
    files: Files,
    with_files: Callable[[Files], Path],
    pictures: dict[str, Pixels],
    tmp_path: Path,
) -> None:
    change, why = REFUSED[name]
    program = with_files(change(files))
    (tmp_path / "in.rgb").write_bytes(pictures["squares"].tobytes())
    done = cortex_m.run(program, [224, 224, tmp_path / "in.rgb", tmp_path / "feat.bin"])
    assert done.returncode == 1
    assert done.stderr.startswith("cortex-m: ")
    assert why in done.stderr
    assert not (tmp_path / "feat.bin").exists()


def test_weights_with_blocks_are_refused(files: Files, bundle: Path, tmp_path: Path) -> None:
    """They do not fit into 160 KB. A chip with more flash refuses them when it runs."""
    cortex_m.require_tools()
    n4 = Files(*((bundle / name).read_bytes() for name in ("edge.tables", "edge.weights")))
    folder, memory = n4.write(tmp_path / "n4"), tmp_path / "memory.ld"
    script = (cortex_m.EXAMPLE / "memory.ld").read_text()
    memory.write_text(script.replace("LENGTH = 160K", "LENGTH = 2M"))
    program = cortex_m.build(folder, tmp_path / "build", memory=memory)
    done = cortex_m.run(program, [8, 8, "none", "none"])
    assert (done.returncode, "has residual blocks" in done.stderr) == (1, True)
    command = ["make", "-C", cortex_m.EXAMPLE, f"BUNDLE={folder}", f"BUILD={tmp_path / 'small'}"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "will not fit in region `flash'" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([224, 224], "give HEIGHT WIDTH INPUT OUTPUT"),
        ([230, 224, "in.rgb", "out"], "multiples of 8 pixels, from 8 to 224"),
        ([224, 232, "in.rgb", "out"], "multiples of 8 pixels, from 8 to 224"),
        ([0, 224, "in.rgb", "out"], "multiples of 8 pixels, from 8 to 224"),
        ([8, "8x", "in.rgb", "out"], "multiples of 8 pixels, from 8 to 224"),
        ([8, 8, "none.rgb", "out"], "there is no such file of pixels"),
        ([16, 8, "in.rgb", "out"], "fewer pixels than height x width x 3 bytes"),
        ([8, 8, "in.rgb", "no/out"], "the feature file cannot be written"),
        ([8, 8, "in.rgb", "x" * 300], "the arguments are too long"),
    ],
)
def test_refused_arguments(
    arguments: list[object],
    why: str,
    programs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.rgb").write_bytes(bytes(3 * 8 * 8 + 100))
    done = cortex_m.run(programs["cortex-m7"], arguments)
    assert done.returncode == 1
    assert why in done.stderr
    assert not Path("out").exists()


def test_the_program_that_users_run(n0_bundle: Path) -> None:
    cortex_m.require_tools()
    command = [sys.executable, cortex_m.EXAMPLE / "run.py", "--bundle", n0_bundle]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["golf_ball.jpg", "gradient", "noise"]
    assert all("bytes, as in Python" in line for line in lines[:3])
    assert lines[4].startswith("flash ")
