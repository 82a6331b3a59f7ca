"""The coder again, in plain Python: slow, readable, and the oracle that the native one is held to.

Written from docs/FORMAT.md, section "Payload", and in its order. Works on lists of ints, and
asserts what the native coder refuses.
"""

from bisect import bisect_right
from dataclasses import dataclass

ONE = 1 << 16  # frequencies sum to this
LOWER = 1 << 16  # a lane's state lies in [2^16, 2^32)
NARROW_LANES, WIDE_LANES = 2, 16
WIDE_SYMBOLS = 16384
RUN_FREQUENCY = 57344
MAX_RUN = 256
LEVELS = 5
MANY_CONTEXTS = 16  # channels with context tables from which on there are four lanes

Contexts = dict[int, tuple[list[int], list[list[int]]]]  # channel -> thresholds, 25 CDFs


@dataclass
class Channel:
    """A table, and what follows from it."""

    cdf: list[int]
    offset: int

    def __post_init__(self) -> None:
        frequencies = [b - a for a, b in zip(self.cdf, self.cdf[1:], strict=False)]
        self.in_table = len(frequencies) - 1
        self.mode = max(range(self.in_table), key=lambda k: (frequencies[k], -k))
        often = frequencies[self.mode]
        self.in_runs = often >= RUN_FREQUENCY
        self.values, self.runs = self.cdf, [0]
        if self.in_runs:
            # The table without its mode, scaled to 2^16; entry k of it is symbol entry k, or k + 1 from the mode on.
            without = self.cdf[: self.mode + 1] + [
                start - often for start in self.cdf[self.mode + 2 :]
            ]
            self.values = [start * ONE // (ONE - often) for start in without]
            # runs[k] is the start of "k modes"; what lies from runs[k] on is "k modes or more".
            survival = 1 << 47
            while len(self.runs) <= MAX_RUN:
                survival = survival * often >> 16
                start = ONE - (survival >> 31)
                if start in (self.runs[-1], ONE):
                    break
                self.runs.append(start)
        self.max_run = len(self.runs) - 1

    def entry(self, symbol: int) -> int:
        """Index in `values`; the last one is the escape."""
        k = symbol - self.offset
        if not 0 <= k < self.in_table:
            return len(self.values) - 2
        return k - (self.in_runs and k > self.mode)

    def symbol(self, entry: int) -> int | None:
        """Inverse of `entry`; None for the escape."""
        if entry == len(self.values) - 2:
            return None
        return self.offset + entry + (self.in_runs and entry >= self.mode)

    def digits(self, symbol: int) -> list[int]:
        """What follows an escape: the distance from the table in base 128, least significant first."""
        end = self.offset + self.in_table
        distance = 2 * (symbol - end) if symbol >= end else 2 * (self.offset - 1 - symbol) + 1
        digits = []
        while distance >= 128:
            digits.append(distance % 128 + 128)
            distance //= 128
        return [*digits, distance]


def parts(channels: list[Channel], row: int) -> tuple[list[int], list[int]]:
    """Indexes of the channels of the wide part and of the narrow part, both in order."""
    busy = [c for c, channel in enumerate(channels) if not channel.in_runs]
    wide = busy[:-1] if len(busy) * row >= WIDE_SYMBOLS else []
    return wide, [c for c in range(len(channels)) if c not in wide]


# A step of a part: which lane, and either the entry's start and frequency, or a digit.
Step = tuple[int, int, int] | tuple[int, int]


def narrow_steps(channel: Channel, row: list[int]) -> list[Step]:
    """The steps of one row in the narrow part, in the decoder's order."""
    steps: list[Step] = []

    def value(lane: int, symbol: int) -> None:
        entry = channel.entry(symbol)
        steps.append(
            (lane, channel.values[entry], channel.values[entry + 1] - channel.values[entry])
        )
        if channel.symbol(entry) is None:
            steps.extend((lane, digit) for digit in channel.digits(symbol))

    if not channel.in_runs:
        for i, symbol in enumerate(row):
            value(i % 2, symbol)
        return steps
    mode, i = channel.offset + channel.mode, 0
    while i < len(row):
        most = min(channel.max_run, len(row) - i)
        run = 0
        while run < most and row[i + run] == mode:
            run += 1
        i += run
        if run == most:
            steps.append((0, channel.runs[run], ONE - channel.runs[run]))
        else:
            steps.append((0, channel.runs[run], channel.runs[run + 1] - channel.runs[run]))
            value(1, row[i])
            i += 1
    return steps


def level(thresholds: list[int], symbol: int) -> int:
    return sum(symbol >= threshold for threshold in thresholds)


def context_of(thresholds: list[int], values: list[int], at: int, columns: int) -> int:
    """Of the symbol at position `at`: only what lies before it in `values` is looked at."""
    above = values[at - columns] if at >= columns else 0
    left = values[at - 1] if at % columns else 0
    return LEVELS * level(thresholds, above) + level(thresholds, left)


def groups(contexts: Contexts) -> tuple[int, list[list[int]]]:
    """How many lanes a small payload has, and the channels with context tables that go side by side."""
    lanes = 2 if len(contexts) < MANY_CONTEXTS else 4
    channels = sorted(contexts)
    whole = len(channels) // lanes * lanes
    return lanes, [channels[i : i + lanes] for i in range(0, whole, lanes)] + [
        [c] for c in channels[whole:]
    ]


def wide_steps(channel: Channel, row: list[int]) -> list[Step]:
    """The steps of one row in the wide part: of sixteen symbols the entries first, then the digits."""
    steps: list[Step] = []
    for begin in range(0, len(row), WIDE_LANES):
        group = row[begin : begin + WIDE_LANES]
        for lane, symbol in enumerate(group):
            entry = channel.entry(symbol)
            steps.append(
                (lane, channel.values[entry], channel.values[entry + 1] - channel.values[entry])
            )
        for lane, symbol in enumerate(group):
            if channel.symbol(channel.entry(symbol)) is None:
                steps.extend((lane, digit) for digit in channel.digits(symbol))
    return steps


def push(lanes: list[int], steps: list[Step], words: list[int]) -> None:
    """Encode steps, the last one first; `words` grows backwards, its last is the decoder's first."""
    for lane, *what in reversed(steps):
        state = lanes[lane]
        if len(what) == 1:
            lanes[lane] = push_bits(state, 8, what[0], words)
            continue
        start, frequency = what
        if state >= frequency << 16:
            words.append(state & 0xFFFF)
            state >>= 16
        lanes[lane] = (state // frequency << 16) + state % frequency + start


def push_bits(state: int, count: int, bits: int, words: list[int]) -> int:
    if state >= 1 << (32 - count):
        words.append(state & 0xFFFF)
        state >>= 16
    return state << count | bits


def push_states(lanes: list[int], words: list[int]) -> None:
    """The last states: of all lanes but the first the low half as a word, the high half's bits in the lane before."""
    for lane in range(len(lanes) - 1, 0, -1):
        words.append(lanes[lane] & 0xFFFF)
        high = lanes[lane] >> 16
        bits = high.bit_length() - 1
        lanes[lane - 1] = push_bits(lanes[lane - 1], bits, high ^ 1 << bits, words)
        lanes[lane - 1] = push_bits(lanes[lane - 1], 4, bits, words)
    words += [lanes[0] >> 16, lanes[0] & 0xFFFF]


def encode(cdfs: list[list[int]], offsets: list[int], symbols: list[list[int]]) -> bytes:
    """symbols[channel][position] -> payload."""
    channels = [Channel(cdf, offset) for cdf, offset in zip(cdfs, offsets, strict=True)]
    wide, narrow = parts(channels, len(symbols[0]))
    words: list[int] = []
    lanes = [LOWER] * NARROW_LANES
    push(lanes, [step for c in narrow for step in narrow_steps(channels[c], symbols[c])], words)
    push_states(lanes, words)
    if wide:
        # The wide lanes begin with the narrow part's first words in their low halves.
        lanes = [LOWER | (words.pop() if words else 0) for _ in range(WIDE_LANES)]
        push(lanes, [step for c in wide for step in wide_steps(channels[c], symbols[c])], words)
        push_states(lanes, words)
    return b"".join(word.to_bytes(2, "little") for word in reversed(words))


def encode_small(
    cdfs: list[list[int]],
    offsets: list[int],
    contexts: Contexts,
    symbols: list[list[int]],
    columns: int,
) -> bytes:
    """symbols[channel][position] of rows of `columns` -> small payload."""
    channels = [Channel(cdf, offset) for cdf, offset in zip(cdfs, offsets, strict=True)]
    lanes, side_by_side = groups(contexts)
    steps = [
        step
        for c in range(len(channels))
        if c not in contexts
        for step in narrow_steps(channels[c], symbols[c])
    ]
    for group in side_by_side:
        for at in range(len(symbols[0])):
            for lane, c in enumerate(group):
                thresholds, tables = contexts[c]
                cdf = tables[context_of(thresholds, symbols[c], at, columns)]
                k = symbols[c][at] - offsets[c]
                entry = k if 0 <= k < channels[c].in_table else channels[c].in_table
                steps.append((lane, cdf[entry], cdf[entry + 1] - cdf[entry]))
                if entry == channels[c].in_table:
                    steps.extend((lane, digit) for digit in channels[c].digits(symbols[c][at]))
    words: list[int] = []
    states = [LOWER] * lanes
    push(states, steps, words)
    push_states(states, words)
    return b"".join(word.to_bytes(2, "little") for word in reversed(words))


class Stream:
    """Lanes that take words from a shared list, whose last one is next."""

    def __init__(self, words: list[int], lanes: int):
        self.words = words
        self.lanes = [words.pop() | words.pop() << 16]
        assert self.lanes[0] >= LOWER
        for lane in range(lanes - 1):
            bits = self.pop_bits(lane, 4)
            high = 1 << bits | self.pop_bits(lane, bits)
            self.lanes.append(high << 16 | words.pop())

    def set(self, lane: int, state: int) -> None:
        self.lanes[lane] = state if state >= LOWER else state << 16 | self.words.pop()

    def pop_bits(self, lane: int, count: int) -> int:
        state = self.lanes[lane]
        self.set(lane, state >> count)
        return state & ((1 << count) - 1)

    def pop(self, lane: int, cdf: list[int]) -> int:
        """Index of the entry that covers the lane's low 16 bits."""
        state = self.lanes[lane]
        slot = state & 0xFFFF
        entry = bisect_right(cdf, slot) - 1
        self.set(lane, (cdf[entry + 1] - cdf[entry]) * (state >> 16) + slot - cdf[entry])
        return entry

    def pop_digits(self, lane: int, channel: Channel) -> int:
        digits: list[int] = []
        while not digits or digits[-1] >= 128:
            digits.append(self.pop_bits(lane, 8))
        distance = sum((digit % 128) << (7 * place) for place, digit in enumerate(digits))
        half = distance // 2
        symbol = (
            channel.offset - 1 - half if distance % 2 else channel.offset + channel.in_table + half
        )
        assert digits == channel.digits(symbol)
        assert -32767 <= symbol <= 32767
        return symbol

    def pop_value(self, lane: int, channel: Channel) -> int:
        symbol = channel.symbol(self.pop(lane, channel.values))
        return self.pop_digits(lane, channel) if symbol is None else symbol


def pop_narrow(stream: Stream, channel: Channel, row: int) -> list[int]:
    if not channel.in_runs:
        return [stream.pop_value(i % 2, channel) for i in range(row)]
    values: list[int] = []
    while len(values) < row:
        most = min(channel.max_run, row - len(values))
        run = stream.pop(0, [*channel.runs[: most + 1], ONE])
        values += [channel.offset + channel.mode] * run
        if run < most:
            values.append(stream.pop_value(1, channel))
    return values


def pop_wide(stream: Stream, channel: Channel, row: int) -> list[int]:
    values: list[int] = []
    for begin in range(0, row, WIDE_LANES):
        group = [
            channel.symbol(stream.pop(lane, channel.values))
            for lane in range(min(WIDE_LANES, row - begin))
        ]
        values += [
            stream.pop_digits(lane, channel) if symbol is None else symbol
            for lane, symbol in enumerate(group)
        ]
    return values


def decode(cdfs: list[list[int]], offsets: list[int], payload: bytes, row: int) -> list[list[int]]:
    """Payload -> symbols[channel][position]; AssertionError or IndexError on anything but what `encode` writes."""
    assert len(payload) % 2 == 0
    channels = [Channel(cdf, offset) for cdf, offset in zip(cdfs, offsets, strict=True)]
    wide, narrow = parts(channels, row)
    words = [int.from_bytes(payload[i : i + 2], "little") for i in range(0, len(payload), 2)]
    words.reverse()
    symbols: list[list[int]] = [[]] * len(channels)
    padded = False
    if wide:
        stream = Stream(words, WIDE_LANES)
        for c in wide:
            symbols[c] = pop_wide(stream, channels[c], row)
        assert all(state >> 16 == 1 for state in stream.lanes)
        padded = not words
        words += [state & 0xFFFF for state in reversed(stream.lanes)]
    stream = Stream(words, NARROW_LANES)
    for c in narrow:
        symbols[c] = pop_narrow(stream, channels[c], row)
    assert stream.lanes == [LOWER] * NARROW_LANES
    assert not any(words) if padded else not words
    return symbols


def decode_small(
    cdfs: list[list[int]],
    offsets: list[int],
    contexts: Contexts,
    payload: bytes,
    row: int,
    columns: int,
) -> list[list[int]]:
    """Inverse of `encode_small`; AssertionError or IndexError on anything else than it writes."""
    assert len(payload) % 2 == 0
    channels = [Channel(cdf, offset) for cdf, offset in zip(cdfs, offsets, strict=True)]
    lanes, side_by_side = groups(contexts)
    words = [int.from_bytes(payload[i : i + 2], "little") for i in range(0, len(payload), 2)]
    words.reverse()
    stream = Stream(words, lanes)
    symbols: list[list[int]] = [[] for _ in channels]
    for c, channel in enumerate(channels):
        if c not in contexts:
            symbols[c] = pop_narrow(stream, channel, row)
    for group in side_by_side:
        for at in range(row):
            for lane, c in enumerate(group):
                thresholds, tables = contexts[c]
                entry = stream.pop(lane, tables[context_of(thresholds, symbols[c], at, columns)])
                escape = entry == channels[c].in_table
                symbols[c].append(
                    stream.pop_digits(lane, channels[c]) if escape else offsets[c] + entry
                )
    assert stream.lanes == [LOWER] * lanes
    assert not words
    return symbols
