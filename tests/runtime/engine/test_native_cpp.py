"""The integer encoder without Python: its C++ test program, on processors of several kinds."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import integer_encoder as oracle
import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[3] / "csrc" / "encoder" / "encoder_test.cpp"
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="builds for x86-64, with this machine's compiler"
)


def tool(name: str, package: str) -> str:
    """Its path. Without it the test is skipped, except in CI, which must have it."""
    found = shutil.which(name) or shutil.which(f"{name}-static")
    if not found:
        assert os.environ.get("CI") != "true", f"CI must have {name}"
        pytest.skip(f"no {name}: apt-get install {package}")
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Arguments of the program: weights, pixels, and the oracle's symbols for them."""
    folder = tmp_path_factory.mktemp("cases")
    found = []
    for blocks, rows, columns, extreme in ((0, 2, 3, False), (1, 3, 29, True), (2, 2, 17, False)):
        weights = oracle.random_weights(blocks, columns, extreme)
        pixels = np.random.default_rng(rows).integers(
            0, 256, (8 * rows, 8 * columns, 3), dtype=np.uint8
        )
        names = [folder / f"{columns}.{kind}" for kind in ("weights", "pixels", "symbols")]
        symbols = oracle.encode(weights, pixels).astype("<i2").tobytes()
        for name, data in zip(
            names, (oracle.write(weights), pixels.tobytes(), symbols), strict=True
        ):
            name.write_bytes(data)
        found.append([*map(str, names), str(rows), str(columns)])
    return found


def kernels(cases: list[list[str]], *command: str | Path) -> list[str]:
    """Run the program on all cases; gives the kernels that it had."""
    outputs = set()
    for case in cases:
        done = subprocess.run([*command, *case], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.add(done.stdout)
    (output,) = outputs
    return output.split()


def test_on_arm(cases: list[list[str]], tmp_path: Path) -> None:
    """NEON with and without the dot product, in an emulator."""
    compiler = tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = tool("qemu-aarch64", "qemu-user")
    program = tmp_path / "encoder_test"
    subprocess.run([compiler, *FLAGS, "-static", SOURCE, "-o", program], check=True)
    assert kernels(cases, emulator, program) == ["neon-dot", "neon", "portable"]
    # A Cortex-A53 has no dot product, and ends the program if it meets one.
    assert kernels(cases, emulator, "-cpu", "cortex-a53", program) == ["neon", "portable"]


def test_in_webassembly(cases: list[list[str]], tmp_path: Path) -> None:
    """With SIMD of 128 bits, and without; both in Node."""
    compiler, node = tool("em++", "emscripten"), tool("node", "nodejs")
    program = tmp_path / "encoder_test.js"
    # Emscripten 3.1 hands Node 18 and later a path to fetch, unless it compiles synchronously.
    options = ["-sNODERAWFS", "-sALLOW_MEMORY_GROWTH", "-sEXIT_RUNTIME"]
    options.append("-sWASM_ASYNC_COMPILATION=0")
    for simd, expected in ((["-msimd128"], ["wasm", "portable"]), ([], ["portable"])):
        subprocess.run([compiler, *FLAGS, *simd, *options, SOURCE, "-o", program], check=True)
        assert kernels(cases, node, program) == expected


@x86
def test_on_a_processor_without_avx(cases: list[list[str]], tmp_path: Path) -> None:
    """An instruction that it lacks would end the program."""
    compiler = os.environ.get("CXX") or tool("g++", "g++")
    emulator = tool("qemu-x86_64", "qemu-user")
    program = tmp_path / "encoder_test"
    subprocess.run([compiler, *FLAGS, SOURCE, "-o", program], check=True)
    assert kernels(cases, emulator, "-cpu", "Nehalem", program) == ["portable"]


@x86
def test_the_kernel_for_avx_vnni_with_the_instructions_of_avx512(
    cases: list[list[str]], tmp_path: Path
) -> None:
    compiler = os.environ.get("CXX") or tool("g++", "g++")
    program = tmp_path / "encoder_test"
    test = "-DENCODER_TEST_AVXVNNI"
    subprocess.run([compiler, *FLAGS, test, SOURCE, "-o", program], check=True)
    found = kernels(cases, program)
    if "avx512vnni" not in found:
        pytest.skip("this processor has no VNNI")
    assert found == ["avx512vnni", "avxvnni", "avx2", "portable"]


@pytest.mark.slow
def test_under_sanitizers(cases: list[list[str]], tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip(f"no C++ compiler to build {SOURCE} with")
    program = tmp_path / "encoder_test"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *FLAGS, *sanitizers, SOURCE, "-o", program], check=True)
    assert kernels(cases, program)[-1] == "portable"


def test_a_wrong_symbol_is_seen(cases: list[list[str]], tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip(f"no C++ compiler to build {SOURCE} with")
    program = tmp_path / "encoder_test"
    subprocess.run([compiler, *FLAGS, SOURCE, "-o", program], check=True)
    weights, pixels, symbols, *size = cases[0]
    changed = bytearray(Path(symbols).read_bytes())
    changed[0] ^= 1
    (tmp_path / "symbols").write_bytes(changed)
    done = subprocess.run(
        [program, weights, pixels, tmp_path / "symbols", *size],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "portable: 1 symbols are wrong" in done.stderr
