"""The golden files: the same bytes from Python, from C++ and from plain Python; each bad file its error."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference_coder

from runtime import errors
from runtime.bundle import Bundle, ShapeRule
from runtime.coder import Tables

GOLDEN = Path(__file__).resolve().parent / "golden"
CASES = sorted(GOLDEN.glob("*.txt"))
TABLES = Tables([[0, 1, 4, 204, 65004, 65524, 65534, 65535, 65536], [0, 4000, 30000, 50000, 65000, 65536]], [-3, 0])
BUNDLE = Bundle(GOLDEN, {}, ShapeRule(2, 8, 0), TABLES, bytes.fromhex("0badcafe") + bytes(28), max_symbols=1 << 16)

ERRORS = {
    "empty": errors.EmptyFeatureFileError,
    "other_kind": errors.NotAFeatureFileError,
    "version_0": errors.UnsupportedVersionError,
    "version_2": errors.UnsupportedVersionError,
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


def read(path: Path) -> tuple[list[list[int]], list[int], list[list[int]], bytes]:
    lines = path.read_text().split("\n")
    channels, row = map(int, lines[0].split())
    tables = [list(map(int, line.split())) for line in lines[1 : 1 + channels]]
    symbols = [list(map(int, line.split())) for line in lines[1 + channels : 1 + 2 * channels]]
    assert all(len(values) == row for values in symbols)
    return [table[1:] for table in tables], [table[0] for table in tables], symbols, bytes.fromhex(lines[1 + 2 * channels])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases(path: Path) -> None:
    cdfs, offsets, symbols, payload = read(path)
    array = np.array(symbols, np.int16).reshape(len(symbols), -1)
    assert Tables(cdfs, offsets).encode(array) == payload
    assert np.array_equal(Tables(cdfs, offsets).decode(payload, array.shape[1:]), array)
    assert reference_coder.encode(cdfs, offsets, symbols) == payload
    assert reference_coder.decode(cdfs, offsets, payload, array.shape[1]) == symbols


def test_cases_from_cpp_under_sanitizers(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler to build tests/golden/coder_test.cpp with")
    program = tmp_path / "coder_test"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, *flags, *sanitizers, GOLDEN / "coder_test.cpp", "-o", program], capture_output=True, text=True, check=False
    )
    if built.returncode and "sanitize" in built.stderr + built.stdout:
        built = subprocess.run([compiler, *flags, GOLDEN / "coder_test.cpp", "-o", program], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program, *CASES], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_intact_file_is_decoded() -> None:
    assert BUNDLE.decode((GOLDEN / "intact.bin").read_bytes()).tolist() == [[[0, 0, 2], [0, -90, 0]], [[1, 0, 3], [2, 1, 500]]]


@pytest.mark.parametrize("path", sorted((GOLDEN / "errors").glob("*.bin")), ids=lambda path: path.stem)
def test_each_bad_file_has_its_error(path: Path) -> None:
    with pytest.raises(errors.FeatureFileError) as refused:
        BUNDLE.decode(path.read_bytes())
    assert refused.type is ERRORS[path.stem]
    assert str(refused.value).count(":"), "the message says what to do"


def test_every_error_has_its_file() -> None:
    assert {path.stem for path in (GOLDEN / "errors").glob("*.bin")} == set(ERRORS)
