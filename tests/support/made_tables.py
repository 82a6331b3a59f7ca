"""Entropy tables and symbols for tests."""

import numpy as np
from hypothesis import strategies as st

LIMIT = 32767


@st.composite
def tables_and_symbols(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Valid tables, and symbols inside, just outside and far outside: (cdfs, offsets, rows)."""
    cdfs, offsets, symbols = [], [], []
    row = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 31, 130]))
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(
            st.lists(
                st.integers(1, 65535),
                min_size=1,
                max_size=draw(st.sampled_from([1, 2, 20, 300])),
                unique=True,
            )
        )
        cdf = [0, *sorted(inner), 65536]
        offset = draw(st.integers(-LIMIT, LIMIT - len(cdf) + 3))
        inside = st.integers(offset, offset + len(cdf) - 3)
        near = st.integers(max(-LIMIT, offset - 70), min(LIMIT, offset + len(cdf) + 70))
        anywhere = st.integers(-LIMIT, LIMIT)
        source = draw(
            st.sampled_from([inside, near, anywhere, st.one_of(inside, anywhere), st.just(offset)])
        )
        cdfs.append(cdf)
        offsets.append(offset)
        symbols.append(draw(st.lists(source, min_size=row, max_size=row)))
    return cdfs, offsets, symbols


def as_array(symbols: list[list[int]]) -> np.ndarray:
    """The symbols as int16 [channels, symbols of a channel]."""
    return np.array(symbols, np.int16).reshape(len(symbols), -1)


def skewed_tables(channels: int) -> tuple[list[list[int]], list[int]]:
    """Equal tables with nearly all mass on 0, as in a trained model: (cdfs, offsets)."""
    frequencies = [1, 3, 200, 64800, 520, 10, 1, 1]
    assert sum(frequencies) == 65536
    return [[0, *np.cumsum(frequencies).tolist()]] * channels, [-3] * channels
