"""Golden files of version 2: both implementations read them, and each bad one has its error."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_file
from reference_file import Refused

from runtime import errors
from runtime.codec.bundle import Bundle, compute_fingerprint
from runtime.codec.coder import Contexts, Tables
from runtime.codec.feature_file import Profile, parse
from runtime.codec.manifest import Manifest, Preprocessing, ShapeRule
from runtime.codec.rates import LEVELS, Rates
from runtime.codec.variable_rate import VariableRate

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
sys.path.insert(0, str(GOLDEN))

from make_variable import BUNDLE, SQUARE, SYMBOLS, intact, spoiled  # noqa: E402

ERRORS = {
    1: errors.EmptyFeatureFileError,
    2: errors.NotAFeatureFileError,
    3: errors.UnsupportedVersionError,
    4: errors.DamagedFeatureFileError,
    6: errors.DamagedFeatureFileError,
    7: errors.WrongBundleError,
    8: errors.DamagedFeatureFileError,
    9: errors.DamagedFeatureFileError,
    10: errors.DamagedFeatureFileError,
}
# More exact classes than a check has in general.
OWN = {name: errors.TruncatedFeatureFileError for name in ("header_cut", "kept_cut")} | {
    "checksum_cut": errors.TruncatedFeatureFileError,
    "too_many_symbols": errors.TooManySymbolsError,
}


def native(bundle: reference_file.Bundle) -> Bundle:
    """The same bundle for the native coder; its gains are 1."""
    levels = [
        Tables(cdfs, offsets, {channel: Contexts(*pair) for channel, pair in contexts.items()})
        for cdfs, offsets, contexts in bundle.levels
    ]
    ones = [[1.0] * bundle.channels] * LEVELS
    manifest = Manifest(
        model="golden",
        lmb="0.16-5.12",
        weights="none",
        fingerprint=bundle.fingerprint + bytes(28),
        bottleneck_sha256="",
        shape=ShapeRule(bundle.channels, bundle.stride, bundle.shrink),
        max_symbols=bundle.max_symbols,
        preprocessing=Preprocessing(),
        profile=Profile.STATIC,
        precision="fp32",
        classes=1,
        files={},
        format_version=2,
    )
    return Bundle(
        GOLDEN, manifest, levels[8], VariableRate(Rates(ones, ones, bundle.order), levels)
    )


NATIVE = native(BUNDLE)
FILES = {path.stem: path.read_bytes() for path in (GOLDEN / "variable").glob("*.bin")}
BAD = {path.stem: path.read_bytes() for path in (GOLDEN / "variable" / "errors").glob("*.bin")}


def test_the_files_are_those_of_the_second_implementation() -> None:
    assert intact() == FILES
    assert {name: data for name, (_, data) in spoiled().items()} == BAD


@pytest.mark.parametrize("name", sorted(FILES))
def test_both_implementations_read_and_write_the_same(name: str) -> None:
    data = FILES[name]
    file = parse(data)
    found = NATIVE.decode(data)
    assert found.reshape(len(found), -1).tolist() == reference_file.read(BUNDLE, data)
    symbols = SQUARE if file.height == file.width else SYMBOLS
    planes = np.array(symbols, np.int16).reshape(len(symbols), -1, file.width // 8)
    written = NATIVE.encode(
        planes, file.height, file.width, file.profile, step=file.step, kept=file.kept
    )
    assert written == data
    kept = BUNDLE.order[: len(BUNDLE.order) if file.kept is None else file.kept]
    for channel in range(len(planes)):
        assert np.array_equal(found[channel], planes[channel] if channel in kept else 0 * planes[0])


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_changed_byte_and_every_truncation_is_refused(name: str) -> None:
    data = FILES[name]
    for at in range(len(data)):
        with pytest.raises(errors.FeatureFileError):
            NATIVE.decode(data[:at])
        for change in range(1, 256):
            with pytest.raises(errors.FeatureFileError):
                NATIVE.decode(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])


@pytest.mark.parametrize("name", sorted(BAD))
def test_each_bad_file_fails_its_check_and_has_its_error(name: str) -> None:
    check = spoiled()[name][0]
    with pytest.raises(Refused) as check_failed:
        reference_file.read(BUNDLE, BAD[name])
    assert check_failed.value.args == (check,)
    with pytest.raises(errors.FeatureFileError) as refused:
        NATIVE.decode(BAD[name])
    assert refused.type is OWN.get(name, ERRORS[check])
    assert str(refused.value).count(":"), "the message says what to do"


def test_a_small_file_needs_a_bundle_with_context_tables() -> None:
    bare = reference_file.Bundle(
        **{**vars(BUNDLE), "levels": [(cdfs, offsets, {}) for cdfs, offsets, _ in BUNDLE.levels]}
    )
    with pytest.raises(Refused, match="9"):
        reference_file.read(bare, FILES["small_without_contexts"])
    with pytest.raises(errors.DamagedFeatureFileError, match="no context tables"):
        native(bare).decode(FILES["small_without_contexts"])
    with pytest.raises(errors.NoContextTablesError, match="no context tables"):
        native(bare).encode(np.zeros((3, 2, 3), np.int16), 16, 24, Profile.CONTEXT)


def test_files_of_version_2_need_a_variable_rate_bundle() -> None:
    fixed = Bundle(GOLDEN, NATIVE.manifest, NATIVE.tables)
    object.__setattr__(fixed.manifest, "format_version", 1)
    try:
        with pytest.raises(errors.WrongBundleError, match="version 2"):
            fixed.decode(FILES["whole"])
    finally:
        object.__setattr__(fixed.manifest, "format_version", 2)


def test_the_fingerprint_is_that_of_the_page() -> None:
    """Any value that both ends must share changes it."""
    rng = np.random.default_rng(0)
    gains, inverse = (rng.uniform(0.1, 9, (2, LEVELS, 3)).astype(np.float32)).tolist()
    bundle = reference_file.Bundle(
        **{**vars(BUNDLE), "gains": tuple(gains), "inverse_gains": tuple(inverse)}
    )
    shape, sha = ShapeRule(3, 8, 0), "ab" * 32

    def ours(gains: list, inverse: list, order: list, levels: list[Tables]) -> bytes:
        variable = VariableRate(Rates(gains, inverse, order), levels)
        return compute_fingerprint(shape, variable, sha)

    assert NATIVE.variable
    levels = list(NATIVE.variable.levels)
    own = ours(gains, inverse, [1, 2, 0], levels)
    assert own == reference_file.fingerprint(bundle, bytes.fromhex(sha))
    assert own != compute_fingerprint(shape, levels[0], sha)
    nudged = [list(row) for row in gains]
    (bits,) = struct.unpack("<I", struct.pack("<f", nudged[15][2]))
    (nudged[15][2],) = struct.unpack("<f", struct.pack("<I", bits + 1))
    others = [
        ours(nudged, inverse, [1, 2, 0], levels),
        ours(gains, nudged, [1, 2, 0], levels),
        ours(gains, inverse, [1, 0, 2], levels),
        ours(gains, inverse, [1, 2, 0], [*levels[:15], levels[0]]),
    ]
    assert len({own, *others}) == 5
