"""Golden files: three coders write the same bytes, and each bad file gives its error.

The coders are the native one from Python and from C++, and the one in plain Python.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference_coder

from runtime import errors
from runtime.codec.bundle import Bundle
from runtime.codec.coder import Contexts, Tables
from runtime.codec.feature_file import Profile
from runtime.codec.manifest import Manifest, Preprocessing, ShapeRule

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CODER_TEST = GOLDEN.parent.parent / "csrc" / "coder" / "coder_test.cpp"
CASES = sorted(GOLDEN.glob("*.txt"))
CONTEXTS = Contexts(
    [0, 1, 2, 3],
    [
        [0, 4000 + 500 * context, 30000, 50000 + 400 * context, 65000, 65536]
        for context in range(25)
    ],
)
TABLES = Tables(
    [[0, 1, 4, 204, 65004, 65524, 65534, 65535, 65536], [0, 4000, 30000, 50000, 65000, 65536]],
    [-3, 0],
    {1: CONTEXTS},
)
MANIFEST = Manifest(
    model="golden",
    lmb="1",
    weights="none",
    fingerprint=bytes.fromhex("0badcafe") + bytes(28),
    bottleneck_sha256="",
    shape=ShapeRule(2, 8, 0),
    max_symbols=1 << 16,
    preprocessing=Preprocessing(),
    profile=Profile.STATIC,
    precision="fp32",
    classes=1,
    files={},
)
BUNDLE = Bundle(GOLDEN, MANIFEST, TABLES)

ERRORS = {
    "empty": errors.EmptyFeatureFileError,
    "other_kind": errors.NotAFeatureFileError,
    "version_0": errors.UnsupportedVersionError,
    "version_2": errors.WrongBundleError,  # its header is one of version 2, its bundle has one rate
    "version_3": errors.UnsupportedVersionError,
    "profile_2": errors.UnsupportedVersionError,
    "plain_said_to_be_small": errors.DamagedFeatureFileError,
    "small_said_to_be_plain": errors.DamagedFeatureFileError,
    "small_payload_cut": errors.DamagedFeatureFileError,
    "small_payload_word_left": errors.DamagedFeatureFileError,
    "header_cut": errors.TruncatedFeatureFileError,
    "payload_cut": errors.TruncatedFeatureFileError,
    "checksum_cut": errors.TruncatedFeatureFileError,
    "byte_after_the_end": errors.TrailingBytesError,
    "bit_flipped": errors.DamagedFeatureFileError,
    "checksum_flipped": errors.DamagedFeatureFileError,
    "field_longer_than_need_be": errors.DamagedFeatureFileError,
    "field_of_five_bytes": errors.DamagedFeatureFileError,
    "other_bundle": errors.WrongBundleError,
    "no_pixels": errors.DamagedFeatureFileError,
    "too_many_symbols": errors.TooManySymbolsError,
    "more_symbols_than_payload": errors.DamagedFeatureFileError,
    "payload_of_no_bytes": errors.DamagedFeatureFileError,
    "payload_odd": errors.DamagedFeatureFileError,
    "payload_word_left": errors.DamagedFeatureFileError,
    "payload_first_state_small": errors.DamagedFeatureFileError,
    "payload_last_state": errors.DamagedFeatureFileError,
    "escape_longer_than_need_be": errors.DamagedFeatureFileError,
    "escape_of_four_digits": errors.DamagedFeatureFileError,
    "escape_out_of_range": errors.DamagedFeatureFileError,
}


def read(
    path: Path,
) -> tuple[list[list[int]], list[int], reference_coder.Contexts, list[list[int]], list[int], bytes]:
    """Tables, context tables, symbols, the shape of a plane and the payload."""
    lines = [line.split() for line in path.read_text().split("\n")]
    (channels, *shape), rest = map(int, lines[0]), iter(lines[1:])
    tables = [list(map(int, next(rest))) for _ in range(channels)]
    own = [list(map(int, next(rest))) for _ in range(channels)] if len(shape) == 2 else []
    contexts = {}
    for c, values in enumerate(own):
        width = len(tables[c]) - 1
        if values:
            contexts[c] = (
                values[:4],
                [values[at : at + width] for at in range(4, len(values), width)],
            )
    symbols = [list(map(int, next(rest))) for _ in range(channels)]
    payload = bytes.fromhex("".join(next(rest)))
    return (
        [table[1:] for table in tables],
        [table[0] for table in tables],
        contexts,
        symbols,
        shape,
        payload,
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases(path: Path) -> None:
    cdfs, offsets, contexts, symbols, shape, payload = read(path)
    array = np.array(symbols, np.int16).reshape(len(symbols), *shape)
    if len(shape) == 2:
        tables = Tables(
            cdfs, offsets, {channel: Contexts(*pair) for channel, pair in contexts.items()}
        )
        assert tables.encode(array, profile=Profile.CONTEXT) == payload
        assert np.array_equal(
            tables.decode(payload, array.shape[1:], profile=Profile.CONTEXT), array
        )
        assert reference_coder.encode_small(cdfs, offsets, contexts, symbols, shape[1]) == payload
        assert (
            reference_coder.decode_small(
                cdfs, offsets, contexts, payload, shape[0] * shape[1], shape[1]
            )
            == symbols
        )
        return
    assert Tables(cdfs, offsets).encode(array) == payload
    assert np.array_equal(Tables(cdfs, offsets).decode(payload, array.shape[1:]), array)
    assert reference_coder.encode(cdfs, offsets, symbols) == payload
    assert reference_coder.decode(cdfs, offsets, payload, array.shape[1]) == symbols


FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]


def tool(name: str, package: str) -> str:
    """Its path. Without it the test is skipped, except in CI, which must have it."""
    found = shutil.which(name) or shutil.which(f"{name}-static")
    if not found:
        assert os.environ.get("CI") != "true", f"CI must have {name}"
        pytest.skip(f"no {name}: apt-get install {package}")
    return found


def test_cases_on_arm(tmp_path: Path) -> None:
    """The portable path and NEON, in an emulator."""
    compiler, emulator = (
        tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
        tool("qemu-aarch64", "qemu-user"),
    )
    program = tmp_path / "coder_test"
    subprocess.run([compiler, *FLAGS, "-static", CODER_TEST, "-o", program], check=True)
    result = subprocess.run(
        [emulator, program, *CASES], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.split()) == (0, ["neon", "portable"]), (
        result.stdout + result.stderr
    )


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="builds for x86-64, with this machine's compiler"
)
def test_cases_on_a_processor_without_avx(tmp_path: Path) -> None:
    """An instruction that it lacks would end the program."""
    compiler, emulator = (
        os.environ.get("CXX") or tool("g++", "g++"),
        tool("qemu-x86_64", "qemu-user"),
    )
    program = tmp_path / "coder_test"
    subprocess.run([compiler, *FLAGS, CODER_TEST, "-o", program], check=True)
    result = subprocess.run(
        [emulator, "-cpu", "Nehalem", program, *CASES], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.split()) == (0, ["portable"]), (
        result.stdout + result.stderr
    )


@pytest.mark.slow
def test_cases_from_cpp_under_sanitizers(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler to build csrc/coder/coder_test.cpp with")
    program = tmp_path / "coder_test"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, *FLAGS, *sanitizers, CODER_TEST, "-o", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and "sanitize" in built.stderr + built.stdout:
        built = subprocess.run(
            [compiler, *FLAGS, CODER_TEST, "-o", program],
            capture_output=True,
            text=True,
            check=False,
        )
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program, *CASES], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_intact_file_is_decoded() -> None:
    assert np.array_equal(
        *(
            BUNDLE.decode((GOLDEN / name).read_bytes())
            for name in ("intact.bin", "intact_small.bin")
        )
    )
    assert BUNDLE.decode((GOLDEN / "intact.bin").read_bytes()).tolist() == [
        [[0, 0, 2], [0, -90, 0]],
        [[1, 0, 3], [2, 1, 500]],
    ]


@pytest.mark.parametrize("name", ["intact.bin", "intact_small.bin"])
def test_every_changed_byte_and_every_truncation_is_refused(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    for at in range(len(data)):
        with pytest.raises(errors.FeatureFileError):
            BUNDLE.decode(data[:at])
        for change in range(1, 256):
            with pytest.raises(errors.FeatureFileError):
                BUNDLE.decode(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])


@pytest.mark.parametrize(
    "path", sorted((GOLDEN / "errors").glob("*.bin")), ids=lambda path: path.stem
)
def test_each_bad_file_has_its_error(path: Path) -> None:
    with pytest.raises(errors.FeatureFileError) as refused:
        BUNDLE.decode(path.read_bytes())
    assert refused.type is ERRORS[path.stem]
    assert str(refused.value).count(":"), "the message says what to do"


def test_every_error_has_its_file() -> None:
    assert {path.stem for path in (GOLDEN / "errors").glob("*.bin")} == set(ERRORS)
