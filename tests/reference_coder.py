"""The coder again, in plain Python: slow, readable, and the oracle that the native one is held to.

Written from docs/FORMAT.md, section "Payload". Works on lists of ints, and asserts what the native
coder refuses.
"""

from bisect import bisect_right

LANES = 4
LOWER = 1 << 16  # a lane's state lies in [2^16, 2^32)


def lane_of(position: int) -> int:
    return position % LANES


def escape_digits(symbol: int, offset: int, in_table: int) -> list[int]:
    """What follows the escape entry: the distance from the table in base 128, least significant first."""
    end = offset + in_table
    distance = 2 * (symbol - end) if symbol >= end else 2 * (offset - 1 - symbol) + 1
    digits = []
    while distance >= 128:
        digits.append(distance % 128 + 128)
        distance //= 128
    return [*digits, distance]


def encode(cdfs: list[list[int]], offsets: list[int], symbols: list[list[int]]) -> bytes:
    """symbols[channel][position] -> payload."""
    lanes = [LOWER] * LANES
    words: list[int] = []  # the last word is the payload's first
    for cdf, offset, row in reversed(list(zip(cdfs, offsets, symbols, strict=True))):
        in_table = len(cdf) - 2
        for position in reversed(range(len(row))):
            state = lanes[lane_of(position)]
            entry = row[position] - offset
            if not 0 <= entry < in_table:
                entry = in_table
                for digit in reversed(escape_digits(row[position], offset, in_table)):
                    if state >= 1 << 24:
                        words.append(state & 0xFFFF)
                        state >>= 16
                    state = state << 8 | digit
            start, frequency = cdf[entry], cdf[entry + 1] - cdf[entry]
            if state >= frequency << 16:
                words.append(state & 0xFFFF)
                state >>= 16
            lanes[lane_of(position)] = (state // frequency << 16) + state % frequency + start
    for state in reversed(lanes):
        words += [state >> 16, state & 0xFFFF]
    return b"".join(word.to_bytes(2, "little") for word in reversed(words))


def decode(cdfs: list[list[int]], offsets: list[int], payload: bytes, row: int) -> list[list[int]]:
    """Payload -> symbols[channel][position]; AssertionError or IndexError on anything but what `encode` writes."""
    assert len(payload) % 2 == 0
    words = [int.from_bytes(payload[i : i + 2], "little") for i in range(0, len(payload), 2)]
    words.reverse()
    lanes = []
    for _ in range(LANES):
        low, high = words.pop(), words.pop()
        lanes.append(high << 16 | low)
    assert min(lanes) >= LOWER

    def refill(state: int) -> int:
        return state if state >= LOWER else state << 16 | words.pop()

    symbols = []
    for cdf, offset in zip(cdfs, offsets, strict=True):
        in_table = len(cdf) - 2
        values = []
        for position in range(row):
            state = lanes[lane_of(position)]
            slot = state & 0xFFFF
            entry = bisect_right(cdf, slot) - 1
            state = refill((cdf[entry + 1] - cdf[entry]) * (state >> 16) + slot - cdf[entry])
            symbol = offset + entry
            if entry == in_table:
                digits = []
                while not digits or digits[-1] >= 128:
                    digits.append(state & 0xFF)
                    state = refill(state >> 8)
                distance = sum((digit % 128) << (7 * place) for place, digit in enumerate(digits))
                symbol = offset - 1 - distance // 2 if distance % 2 else offset + in_table + distance // 2
                assert digits == escape_digits(symbol, offset, in_table)
                assert -32767 <= symbol <= 32767
            values.append(symbol)
            lanes[lane_of(position)] = state
        symbols.append(values)
    assert lanes == [LOWER] * LANES
    assert not words
    return symbols
