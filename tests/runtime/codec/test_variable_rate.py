"""Variable-rate bundles: coding at every step, cut files, and every bundle that is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference_file
from bundle_files import put
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import LIMIT, skewed_tables
from variable_bundle import edit_manifest, made_rates

from runtime import errors
from runtime.codec.bundle import Bundle
from runtime.codec.coder import CONTEXTS, Contexts, Tables, levels_to_json
from runtime.codec.compressai_stream import from_feature_file, to_feature_file
from runtime.codec.feature_file import Profile, parse
from runtime.codec.rates import LEVELS, Rates
from runtime.codec.variable_rate import VariableRate

Copy = Callable[[Path], Path]
CHANNELS = 5


def tables(level: int) -> Tables:
    """Some channels are in runs and some busy; some of either kind have context tables."""
    rng = np.random.default_rng(level)
    cdfs, offsets = skewed_tables(CHANNELS)
    for channel in (1, 3):
        inner = np.sort(rng.choice(65535, 7, replace=False)) + 1
        cdfs[channel] = [0, *inner.tolist(), 65536]
    rows = [
        [0, *(np.sort(rng.choice(65535, 7, replace=False)) + 1).tolist(), 65536]
        for _ in range(CONTEXTS)
    ]
    chosen = [channel for channel in (0, 1, 3) if rng.integers(2)] if level else [1, 2]
    return Tables(cdfs, offsets, {channel: Contexts([-2, 0, 1, 3], rows) for channel in chosen})


LEVEL_TABLES = [tables(level) for level in range(LEVELS)]
ORDER = [3, 1, 4, 0, 2]
ONES = [[1.0] * CHANNELS] * LEVELS
VARIABLE = VariableRate(Rates(ONES, ONES, ORDER), LEVEL_TABLES)
ORACLE = reference_file.Bundle(
    CHANNELS,
    8,
    0,
    1 << 20,
    bytes.fromhex("12345678"),
    [
        (
            [cdf.tolist() for cdf in one.cdfs],
            one.offsets.tolist(),
            {
                channel: (thresholds.tolist(), [row.tolist() for row in rows])
                for channel, (thresholds, rows) in one.contexts.items()
            },
        )
        for one in LEVEL_TABLES
    ],
    tuple(ORDER),
)


@settings(max_examples=200)
@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.one_of(st.integers(0, 240), st.none()),
    st.integers(0, CHANNELS - 1),
    st.booleans(),
    st.integers(0, 1 << 32),
)
def test_both_implementations_write_the_same_files(
    rows: int, columns: int, step: int | None, kept: int, small: bool, seed: int
) -> None:
    """`step` None: a file cut to `kept` channels."""
    rng = np.random.default_rng(seed)
    spread = rng.choice([1, 4, 300, LIMIT], (CHANNELS, 1, 1))
    planes = np.clip(rng.normal(0, spread, (CHANNELS, rows, columns)), -LIMIT, LIMIT)
    symbols = planes.astype(np.int16)
    at, of = (0, kept) if step is None else (step, None)
    profile = Profile.CONTEXT if small else Profile.STATIC
    oracle = reference_file.write(
        ORACLE, symbols.reshape(CHANNELS, -1).tolist(), 8 * rows, 8 * columns, small, at, of
    )
    file = parse(oracle)
    assert VARIABLE.encode(symbols, profile, at, of) == bytes(file.payload)
    found = VARIABLE.decode(file, (rows, columns))
    assert found.reshape(CHANNELS, -1).tolist() == reference_file.read(ORACLE, oracle)
    left_out = [] if of is None else ORDER[of:]
    assert np.array_equal(found[ORDER[:of]], symbols[ORDER[:of]])
    assert not found[left_out].any()


def test_tables_of_all_levels_survive_their_file() -> None:
    again = Tables.levels_from_json(levels_to_json(LEVEL_TABLES))
    assert [one.digest() for one in again] == [one.digest() for one in LEVEL_TABLES]
    assert VARIABLE.tables_at(0) is VARIABLE.tables_at(7) is LEVEL_TABLES[0]
    assert VARIABLE.tables_at(8) is LEVEL_TABLES[1]
    assert VARIABLE.tables_at(240) is LEVEL_TABLES[15]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{}", "not understood"),
        (b'{"precision": 15, "levels": []}', "precision 15"),
        (b'{"precision": 16}', "no list of levels"),
        (b'{"precision": 16, "levels": {}}', "no list of levels"),
        (b'{"precision": 16, "levels": [[]]}', "no list of levels"),
        (b'{"precision": 16, "levels": [{}]}', "not understood"),
        (b'{"precision": 16, "levels": [{"cdfs": 1, "offsets": [], "contexts": {}}]}', "no list"),
        (
            b'{"precision": 16, "levels": [{"cdfs": [[0, 2, 1]], "offsets": [0], "contexts": {}}]}',
            "does not increase",
        ),
    ],
)
def test_bad_tables_of_levels_are_refused(text: bytes, said: str) -> None:
    with pytest.raises(errors.TablesError, match=said):
        Tables.levels_from_json(text)


def test_there_are_sixteen_levels_of_as_many_tables_as_channels() -> None:
    rates = Rates(ONES, ONES, ORDER)
    with pytest.raises(errors.TablesError, match="15 levels"):
        VariableRate(rates, LEVEL_TABLES[1:])
    with pytest.raises(errors.TablesError, match=r"16 levels of \[4, 5\] tables"):
        VariableRate(rates, [*LEVEL_TABLES[1:], LEVEL_TABLES[0].of_channels([0, 1, 2, 3])])


def test_a_variable_rate_bundle_is_loaded(variable_bundle: Path) -> None:
    loaded = Bundle.load(variable_bundle)
    assert loaded.manifest.format_version == 2
    assert loaded.rates is not None
    assert loaded.default_step == 128
    assert loaded.tables.digest() == loaded.tables_at(128).digest()
    assert loaded.tables_at(0).digest() != loaded.tables.digest()


def test_a_bundle_with_one_rate_is_as_before(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert (loaded.rates, loaded.variable, loaded.manifest.format_version) == (None, None, 1)
    assert loaded.fingerprint.hex()[:8] == "405c5bcd"
    assert "default_level" not in json.loads(loaded.manifest.to_json())


def with_tables(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "tables.json").read_text())
        change(content)
        put(folder, "tables.json", json.dumps(content).encode())

    return edit


def with_rates(**members: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "rates.json").read_text()) | members
        put(folder, "rates.json", json.dumps(content).encode())

    return edit


def altered(folder: Path) -> None:
    data = (folder / "rates.json").read_bytes()
    (folder / "rates.json").unlink()
    (folder / "rates.json").write_bytes(data + b" ")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda f: (f / "rates.json").unlink(), errors.MissingBundleFileError, "rates.json"),
        (altered, errors.AlteredBundleFileError, "rates.json"),
        (with_rates(levels=3), errors.RatesError, "3 levels"),
        (with_rates(order=[*range(64)]), errors.InconsistentBundleError, "fingerprint"),
        (
            lambda f: put(f, "rates.json", made_rates(63).to_json()),
            errors.TablesError,
            r"of \[64\] tables, rates.json 16 of 63",
        ),
        (with_tables(lambda t: t["levels"].pop()), errors.TablesError, "15 levels"),
        (with_tables(lambda t: t["levels"].reverse()), errors.InconsistentBundleError, "contents"),
        (
            with_tables(lambda t: [level["cdfs"].pop() for level in t["levels"]]),
            errors.TablesError,
            "63 tables and 64 offsets",
        ),
        (lambda f: edit_manifest(f, format_version=1), errors.InconsistentBundleError, "one rate"),
        (lambda f: edit_manifest(f, format_version=3), errors.UnsupportedBundleError, "version 3"),
        (
            lambda f: edit_manifest(f, default_level=15.5),
            errors.InconsistentBundleError,
            "default level 15.5",
        ),
        (
            lambda f: edit_manifest(f, default_level="high"),
            errors.InconsistentBundleError,
            "not understood",
        ),
        (
            lambda f: edit_manifest(f, shape={"channels": 63, "stride": 8, "shrink": 0}),
            errors.InconsistentBundleError,
            "64 tables for 63 channels",
        ),
    ],
)
def test_bad_bundles_are_refused(
    variable_bundle: Path, copy_of: Copy, change: Callable, error: type, said: str
) -> None:
    folder = copy_of(variable_bundle)
    change(folder)
    with pytest.raises(error, match=said):
        Bundle.load(folder)


def test_the_default_level_is_the_manifests(variable_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(variable_bundle)
    edit_manifest(folder, default_level=2.25)
    loaded = Bundle.load(folder)
    assert loaded.default_step == 36
    symbols = np.zeros((64, 28, 28), np.int16)
    assert parse(loaded.encode(symbols, 224, 224)).step == 36


def test_what_no_file_can_have_is_not_written(variable_bundle: Path, bundle: Path) -> None:
    symbols = np.zeros((64, 28, 28), np.int16)
    loaded = Bundle.load(variable_bundle)
    for options in ({"step": -1}, {"step": 241}, {"step": 0, "kept": 64}, {"step": 1, "kept": 3}):
        with pytest.raises(ValueError, match="step"):
            loaded.encode(symbols, 224, 224, **options)
    for options in ({"step": 3}, {"kept": 3}):
        with pytest.raises(errors.FixedRateError, match="has one rate"):
            Bundle.load(bundle).encode(symbols, 224, 224, **options)


def test_compressai_has_no_streams_of_it(variable_bundle: Path) -> None:
    loaded = Bundle.load(variable_bundle)
    data = loaded.encode(np.zeros((64, 28, 28), np.int16), 224, 224)
    with pytest.raises(errors.NoCompressAiStreamError, match="one rate"):
        from_feature_file(data, loaded)
    with pytest.raises(errors.NoCompressAiStreamError, match="one rate"):
        to_feature_file(b"", 224, 224, loaded)
