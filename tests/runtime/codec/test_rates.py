"""Rate levels: gains between levels, rounding, and every rates.json that is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime import errors
from runtime.codec import _coder
from runtime.codec.rates import LEVELS, MAX_STEP, Rates, step_of, whole_level

CHANNELS = 3
FLOATS = st.floats(np.float32(1e-6).item(), 1e6, width=32)
GAINS = arrays.arrays(np.float32, (LEVELS, CHANNELS), elements=FLOATS)


def rates_of(low: float = 0.25, high: float = 4.0) -> Rates:
    ladder = np.geomspace(low, high, LEVELS)[:, None] * np.array([1.0, 0.5, 2.0])
    return Rates(ladder.tolist(), (1 / ladder).tolist(), [2, 0, 1])


def test_steps_and_levels() -> None:
    assert [step_of(level) for level in (0, 0.03, 0.04, 7.5, 15)] == [0, 0, 1, 120, 240]
    assert [whole_level(step) for step in (0, 7, 8, 23, 24, 231, 232, 240)] == [
        0, 0, 1, 1, 2, 14, 15, 15,
    ]  # fmt: skip
    assert {whole_level(step) for step in range(MAX_STEP + 1)} == set(range(LEVELS))


@given(GAINS, GAINS)
def test_rates_survive_their_file(gains: np.ndarray, inverse: np.ndarray) -> None:
    rates = Rates(gains.tolist(), inverse.tolist(), [1, 2, 0])
    again = Rates.from_json(rates.to_json())
    assert np.array_equal(again.gains, gains)
    assert np.array_equal(again.inverse_gains, inverse)
    assert again.to_bytes() == rates.to_bytes()
    assert json.loads(rates.to_json())["order"] == [1, 2, 0]


@given(GAINS)
def test_gains_between_levels(gains: np.ndarray) -> None:
    rates = Rates(gains.tolist(), gains[::-1].tolist(), [0, 1, 2])
    for level in range(LEVELS):
        assert np.array_equal(rates.gain(16 * level).ravel(), gains[level])
        assert np.array_equal(rates.inverse_gain(16 * level).ravel(), gains[15 - level])
    for level in range(LEVELS - 1):
        middle = np.sqrt(gains[level].astype(float) * gains[level + 1])
        assert np.allclose(rates.gain(16 * level + 8).ravel(), middle, rtol=1e-6)
        quarter = gains[level].astype(float) ** 0.75 * gains[level + 1].astype(float) ** 0.25
        assert np.allclose(rates.gain(16 * level + 4).ravel(), quarter, rtol=1e-6)
    assert rates.gain(3).shape == (CHANNELS, 1, 1)
    assert rates.gain(3).dtype == rates.inverse_gain(3).dtype == np.float32


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.just(CHANNELS), st.integers(0, 5), st.integers(0, 7)),
        elements=st.one_of(
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.integers(-70000, 70000).map(lambda value: value / 2),
        ),
    ),
    st.integers(0, MAX_STEP),
)
def test_symbols_are_the_rounded_products(latent: np.ndarray, step: int) -> None:
    rates = rates_of()
    with np.errstate(over="ignore"):
        wanted = np.clip(np.rint(latent * rates.gain(step)), -32767, 32767)
    symbols = rates.symbols(latent, step)
    assert symbols.dtype == np.int16
    assert np.array_equal(symbols, wanted)
    values = rates.values(symbols, step)
    assert values.dtype == np.float32
    assert np.array_equal(values, wanted.astype(np.float32) * rates.inverse_gain(step))


def test_halves_are_rounded_to_even() -> None:
    ones = [[1.0]] * LEVELS
    latent = np.array([[[0.5, 1.5, 2.5, -0.5, -1.5, 32766.5, 1e30, -1e30]]], np.float32)
    assert Rates(ones, ones, [0]).symbols(latent, 100).ravel().tolist() == [
        0, 2, 2, 0, -2, 32766, 32767, -32767,
    ]  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 62])
def test_a_latent_that_is_not_finite(value: float, place: int) -> None:
    latent = np.zeros((CHANNELS, 3, 7), np.float32)
    latent.ravel()[place] = value
    with pytest.raises(errors.NotANumberError, match="not a finite number"):
        rates_of().symbols(latent, 8)


def test_the_native_function_takes_only_what_fits() -> None:
    latent, gains = np.zeros((2, 3, 4), np.float32), np.ones(2, np.float32)
    assert _coder.quantise(latent, gains, np.empty((2, 3, 4), np.int16))
    for out in (np.empty((2, 4, 3), np.int16), np.empty((2, 12), np.int16)):
        with pytest.raises(ValueError, match="shape"):
            _coder.quantise(latent, gains, out)
    with pytest.raises(ValueError, match="shape"):
        _coder.quantise(latent, np.ones(3, np.float32), np.empty((2, 3, 4), np.int16))
    with pytest.raises(TypeError):
        _coder.quantise(latent.astype(np.float64), gains, np.empty((2, 3, 4), np.int16))
    with pytest.raises(TypeError):
        _coder.quantise(latent[:, :, ::2], gains, np.empty((2, 3, 2), np.int16))


def test_rates_do_not_change() -> None:
    rates = rates_of()
    for array in (rates.gains, rates.inverse_gains, rates.order):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert rates.channels == CHANNELS


def content(**members: object) -> bytes:
    good = json.loads(rates_of().to_json())
    return json.dumps(good | members).encode()


ROWS = [[1.0] * CHANNELS] * LEVELS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not understood"),
        (b"[]", "not understood"),
        (b"{}", "not understood"),
        (b"[" * 100_000, "not understood"),
        (content(gains=[[float("nan")] * CHANNELS] * LEVELS), "not understood"),
        (content(levels=15), "has 15 levels, this release reads 16"),
        (content(levels=None), "has None levels"),
        (content(order=[0, 1, 1]), "does not list every channel once"),
        (content(order=[0, 1, 3]), "does not list every channel once"),
        (content(order=[0, 1, -1]), "does not list every channel once"),
        (content(order=[0.0, 1.0, 2.0]), "does not list every channel once"),
        (content(order=[]), "does not list every channel once"),
        (content(order=[[0], [1, 2]]), "does not list every channel once"),
        (content(order=None), "does not list every channel once"),
        (content(order=[0, 1, 10**30]), "does not list every channel once"),
        (content(gains=ROWS[1:]), "gains that are not 16 rows of 3"),
        (content(gains=[row[1:] for row in ROWS]), "gains that are not 16 rows of 3"),
        (content(inverse_gains=[*ROWS[1:], [1.0]]), "inverse_gains that are not 16 rows of 3"),
        (content(gains=[["1"] * CHANNELS] * LEVELS), "gains that are not 16 rows of 3"),
        (content(gains=None), "gains that are not 16 rows of 3"),
        (content(gains=[*ROWS[1:], [1.0, 0.0, 1.0]]), "0.0 among the gains, channel 1 of level 15"),
        (content(gains=[*ROWS[1:], [1.0, -2.0, 1.0]]), "-2.0 among the gains"),
        (content(gains=[*ROWS[1:], [1.0, 1e-60, 1.0]]), "0.0 among the gains"),
        (content(inverse_gains=[*ROWS[1:], [2e6, 1.0, 1.0]]), "2000000.0 among the inverse_gains"),
        (content(inverse_gains=[*ROWS[1:], [1e300, 1.0, 1.0]]), "inf among the inverse_gains"),
    ],
)
def test_bad_rates_are_refused(text: bytes, said: str) -> None:
    with pytest.raises(errors.RatesError, match=said) as refused:
        Rates.from_json(text)
    assert "export the bundle again" in str(refused.value)
