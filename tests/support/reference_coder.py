"""The coder once more, in plain Python: slow and readable, and the oracle for the native coder.

Written from docs/FORMAT.md, section 3; the headings below have the numbers of its subsections.

A payload is what a list of steps leaves in 16-bit words. `narrow_steps`, `wide_steps` and
`encode_small` list the steps of rows of symbols, in the order in which a decoder takes them. The
encoder takes that list in reverse (`push`), because rANS is a stack: what was pushed last is popped
first. The decoder (class `Decoder` and the `pop_...` functions) finds each step from its state.

Words are a stack as well: a list whose last word is the decoder's next one.

Always holds: decoding raises AssertionError or IndexError on every payload that the encoder does
not write. The native coder refuses such a payload.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ONE = 1 << 16  # sum of a table's frequencies
LOWER = 1 << 16  # a lane's state lies in [2^16, 2^32) between steps
NARROW_LANES, WIDE_LANES = 2, 16
WIDE_SYMBOLS = 16384  # with fewer symbols in busy channels there is no wide part
RUN_FREQUENCY = 57344  # a channel whose mode has at least this frequency is coded in runs
MAX_RUN = 256
LEVELS = 5
MANY_CONTEXTS = 16  # with at least as many channels that have context tables, four lanes

Rows = list[list[int]]  # a list for each channel
Contexts = dict[int, tuple[list[int], Rows]]  # channel -> four thresholds, 25 CDFs


# 3.1 What follows from a table


@dataclass
class Channel:
    """A channel's table, and what follows from it."""

    cdf: list[int]
    offset: int

    def __post_init__(self) -> None:
        frequencies = [b - a for a, b in zip(self.cdf, self.cdf[1:], strict=False)]
        self.in_table = len(frequencies) - 1  # entries that stand for symbols; then the escape
        self.mode = max(range(self.in_table), key=lambda k: (frequencies[k], -k))
        self.in_runs = frequencies[self.mode] >= RUN_FREQUENCY
        self.values, self.runs = self.cdf, [0]
        if self.in_runs:
            self.values = self._without_mode(frequencies[self.mode])
            self.runs = self._run_starts(frequencies[self.mode])
        self.max_run = len(self.runs) - 1

    def _without_mode(self, frequency: int) -> list[int]:
        """The distribution of a symbol, given that it is not the mode: sums scaled to 2^16."""
        sums = self.cdf[: self.mode + 1]
        sums += [start - frequency for start in self.cdf[self.mode + 2 :]]
        return [start * ONE // (ONE - frequency) for start in sums]

    def _run_starts(self, frequency: int) -> list[int]:
        """The start of each entry k ("k modes"): the probability of fewer than k modes.

        That of k or more is the k-th power of the mode's, computed with 47 fractional bits.
        """
        starts, survival = [0], 1 << 47
        while len(starts) <= MAX_RUN:
            survival = survival * frequency >> 16
            start = ONE - (survival >> 31)
            if start in (starts[-1], ONE):
                break
            starts.append(start)
        return starts

    def entry(self, symbol: int) -> int:
        """The entry of a symbol in `cdf`; the last one is the escape."""
        k = symbol - self.offset
        return k if 0 <= k < self.in_table else self.in_table

    def value(self, symbol: int) -> int:
        """The entry of a symbol in `values`, where a mode in runs has none."""
        k = self.entry(symbol)
        return k - (self.in_runs and k > self.mode)

    def symbol(self, value: int) -> int | None:
        """Inverse of `value`; None for the escape."""
        k = value + (self.in_runs and value >= self.mode)
        return self.offset + k if k < self.in_table else None

    def digits(self, symbol: int) -> list[int]:
        """An escaped symbol's distance from the table in base 128, least significant digit first.

        All digits but the last have 128 added.
        """
        end = self.offset + self.in_table
        distance = 2 * (symbol - end) if symbol >= end else 2 * (self.offset - 1 - symbol) + 1
        digits = []
        while distance >= 128:
            digits.append(distance % 128 + 128)
            distance //= 128
        return [*digits, distance]


# 3.2 Lanes and steps


class Entry(NamedTuple):
    """A step: the part [start, start + frequency) of a table's 2^16."""

    lane: int
    start: int
    frequency: int


class Bits(NamedTuple):
    """A step: `width` raw bits."""

    lane: int
    width: int
    bits: int


Step = Entry | Bits


def table_step(lane: int, cdf: list[int], entry: int) -> Entry:
    return Entry(lane, cdf[entry], cdf[entry + 1] - cdf[entry])


def digit_steps(lane: int, channel: Channel, symbol: int) -> Iterator[Step]:
    """What follows the entry of a symbol: digits if that is the escape, else nothing."""
    if channel.entry(symbol) == channel.in_table:
        yield from (Bits(lane, 8, digit) for digit in channel.digits(symbol))


def value_steps(lane: int, channel: Channel, symbol: int) -> Iterator[Step]:
    """A symbol as an entry of `values`, then its digits if that is the escape."""
    yield table_step(lane, channel.values, channel.value(symbol))
    yield from digit_steps(lane, channel, symbol)


def push(lanes: list[int], steps: list[Step], words: list[int]) -> None:
    """Encode steps, the last one first: section 3.6."""
    for step in reversed(steps):
        state = lanes[step.lane]
        # A word leaves if the state would otherwise reach 2^32.
        limit = step.frequency << 16 if isinstance(step, Entry) else 1 << (32 - step.width)
        if state >= limit:
            words.append(state & 0xFFFF)
            state >>= 16
        if isinstance(step, Entry):
            quotient, remainder = divmod(state, step.frequency)
            lanes[step.lane] = (quotient << 16) + remainder + step.start
        else:
            lanes[step.lane] = state << step.width | step.bits


class Decoder:
    """Lanes that take words from a shared stack."""

    def __init__(self, words: list[int], lanes: int):
        """Reads the first states: section 3.3."""
        self.words = words
        self.lanes = [words.pop() | words.pop() << 16]
        assert self.lanes[0] >= LOWER
        for lane in range(lanes - 1):
            width = self.pop_bits(lane, 4)
            high = 1 << width | self.pop_bits(lane, width)
            self.lanes.append(high << 16 | words.pop())

    def _set(self, lane: int, state: int) -> None:
        """After either kind of step: a state below 2^16 takes a word."""
        self.lanes[lane] = state if state >= LOWER else state << 16 | self.words.pop()

    def pop_bits(self, lane: int, width: int) -> int:
        state = self.lanes[lane]
        self._set(lane, state >> width)
        return state & ((1 << width) - 1)

    def pop_entry(self, lane: int, cdf: list[int]) -> int:
        """The index of the entry that covers the state's low 16 bits."""
        state = self.lanes[lane]
        slot = state & 0xFFFF
        entry = bisect_right(cdf, slot) - 1
        self._set(lane, (cdf[entry + 1] - cdf[entry]) * (state >> 16) + slot - cdf[entry])
        return entry

    def pop_digits(self, lane: int, channel: Channel) -> int:
        """An escaped symbol. Its digits have to be those that an encoder writes for it."""
        digits: list[int] = []
        while not digits or digits[-1] >= 128:
            digits.append(self.pop_bits(lane, 8))
        distance = sum((digit % 128) << (7 * place) for place, digit in enumerate(digits))
        half = distance // 2
        below, above = channel.offset - 1 - half, channel.offset + channel.in_table + half
        symbol = below if distance % 2 else above
        assert digits == channel.digits(symbol)
        assert -32767 <= symbol <= 32767
        return symbol

    def pop_value(self, lane: int, channel: Channel) -> int:
        symbol = channel.symbol(self.pop_entry(lane, channel.values))
        return self.pop_digits(lane, channel) if symbol is None else symbol


# 3.3 Parts of a plain payload


def parts(channels: list[Channel], row: int) -> tuple[list[int], list[int]]:
    """The indexes of the wide part's channels and of the narrow part's, both in order."""
    busy = [c for c, channel in enumerate(channels) if not channel.in_runs]
    wide = busy[:-1] if len(busy) * row >= WIDE_SYMBOLS else []
    return wide, [c for c in range(len(channels)) if c not in wide]


def push_states(lanes: list[int], words: list[int]) -> None:
    """Write the encoder's last states, which are the decoder's first ones.

    A lane's low half is a word. Its high half has its bits in the lane before it.
    """
    for lane in range(len(lanes) - 1, 0, -1):
        words.append(lanes[lane] & 0xFFFF)
        high = lanes[lane] >> 16
        width = high.bit_length() - 1
        push(lanes, [Bits(lane - 1, 4, width), Bits(lane - 1, width, high ^ 1 << width)], words)
    words += [lanes[0] >> 16, lanes[0] & 0xFFFF]


def narrow_steps(channel: Channel, row: list[int]) -> Iterator[Step]:
    """The steps of one row in the narrow part."""
    if not channel.in_runs:
        for i, symbol in enumerate(row):
            yield from value_steps(i % 2, channel, symbol)
        return
    mode, i = channel.offset + channel.mode, 0
    while i < len(row):
        most = min(channel.max_run, len(row) - i)
        run = 0
        while run < most and row[i + run] == mode:
            run += 1
        yield table_step(0, [*channel.runs[: most + 1], ONE], run)
        i += run
        if run < most:
            yield from value_steps(1, channel, row[i])
            i += 1


def pop_narrow(decoder: Decoder, channel: Channel, row: int) -> list[int]:
    if not channel.in_runs:
        return [decoder.pop_value(i % 2, channel) for i in range(row)]
    values: list[int] = []
    while len(values) < row:
        most = min(channel.max_run, row - len(values))
        run = decoder.pop_entry(0, [*channel.runs[: most + 1], ONE])
        values += [channel.offset + channel.mode] * run
        if run < most:
            values.append(decoder.pop_value(1, channel))
    return values


def wide_steps(channel: Channel, row: list[int]) -> Iterator[Step]:
    """The steps of one row in the wide part: in groups of sixteen, entries first, then digits."""
    for begin in range(0, len(row), WIDE_LANES):
        group = row[begin : begin + WIDE_LANES]
        for lane, symbol in enumerate(group):
            yield table_step(lane, channel.values, channel.value(symbol))
        for lane, symbol in enumerate(group):
            yield from digit_steps(lane, channel, symbol)


def pop_wide(decoder: Decoder, channel: Channel, row: int) -> list[int]:
    values: list[int] = []
    for begin in range(0, row, WIDE_LANES):
        lanes = range(min(WIDE_LANES, row - begin))
        group = [channel.symbol(decoder.pop_entry(lane, channel.values)) for lane in lanes]
        values += [
            decoder.pop_digits(lane, channel) if symbol is None else symbol
            for lane, symbol in enumerate(group)
        ]
    return values


def to_channels(cdfs: Rows, offsets: list[int]) -> list[Channel]:
    return [Channel(cdf, offset) for cdf, offset in zip(cdfs, offsets, strict=True)]


def to_bytes(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(2, "little") for word in reversed(words))


def to_words(payload: bytes) -> list[int]:
    assert len(payload) % 2 == 0
    return [int.from_bytes(payload[i : i + 2], "little") for i in range(len(payload) - 2, -1, -2)]


def encode(cdfs: Rows, offsets: list[int], symbols: Rows) -> bytes:
    """symbols[channel][position] -> payload."""
    channels = to_channels(cdfs, offsets)
    wide, narrow = parts(channels, len(symbols[0]))
    words: list[int] = []
    lanes = [LOWER] * NARROW_LANES
    push(lanes, [step for c in narrow for step in narrow_steps(channels[c], symbols[c])], words)
    push_states(lanes, words)
    if wide:
        # The narrow part's first words become the low halves of the wide lanes' first states.
        lanes = [LOWER | (words.pop() if words else 0) for _ in range(WIDE_LANES)]
        push(lanes, [step for c in wide for step in wide_steps(channels[c], symbols[c])], words)
        push_states(lanes, words)
    return to_bytes(words)


def decode(cdfs: Rows, offsets: list[int], payload: bytes, row: int) -> Rows:
    """Inverse of `encode`, with `row` symbols a channel."""
    channels, words = to_channels(cdfs, offsets), to_words(payload)
    wide, narrow = parts(channels, row)
    symbols: Rows = [[]] * len(channels)
    padded = False  # whether the wide lanes may carry words that the narrow part lacks
    if wide:
        decoder = Decoder(words, WIDE_LANES)
        for c in wide:
            symbols[c] = pop_wide(decoder, channels[c], row)
        assert all(state >> 16 == 1 for state in decoder.lanes)
        padded = not words
        words += [state & 0xFFFF for state in reversed(decoder.lanes)]
    decoder = Decoder(words, NARROW_LANES)
    for c in narrow:
        symbols[c] = pop_narrow(decoder, channels[c], row)
    assert decoder.lanes == [LOWER] * NARROW_LANES
    assert not any(words) if padded else not words
    return symbols


# 3.5 Small payloads


def context_of(thresholds: list[int], values: list[int], at: int, columns: int) -> int:
    """The context at position `at` of a plane; only `values` before that position are read."""
    above = values[at - columns] if at >= columns else 0
    left = values[at - 1] if at % columns else 0
    levels = [sum(symbol >= threshold for threshold in thresholds) for symbol in (above, left)]
    return LEVELS * levels[0] + levels[1]


def groups(contexts: Contexts) -> tuple[int, list[list[int]]]:
    """The number of lanes, and the channels with context tables in groups coded side by side."""
    lanes = 2 if len(contexts) < MANY_CONTEXTS else 4
    channels = sorted(contexts)
    whole = len(channels) // lanes * lanes
    together = [channels[i : i + lanes] for i in range(0, whole, lanes)]
    return lanes, together + [[c] for c in channels[whole:]]


def encode_small(
    cdfs: Rows, offsets: list[int], contexts: Contexts, symbols: Rows, columns: int
) -> bytes:
    """symbols[channel][position], in rows of `columns` -> small payload."""
    channels = to_channels(cdfs, offsets)
    lanes, side_by_side = groups(contexts)
    steps: list[Step] = []
    for c, channel in enumerate(channels):
        if c not in contexts:
            steps += narrow_steps(channel, symbols[c])
    for group in side_by_side:
        for at in range(len(symbols[0])):
            for lane, c in enumerate(group):
                thresholds, tables = contexts[c]
                cdf = tables[context_of(thresholds, symbols[c], at, columns)]
                steps.append(table_step(lane, cdf, channels[c].entry(symbols[c][at])))
                steps += digit_steps(lane, channels[c], symbols[c][at])
    words: list[int] = []
    states = [LOWER] * lanes
    push(states, steps, words)
    push_states(states, words)
    return to_bytes(words)


def decode_small(
    cdfs: Rows, offsets: list[int], contexts: Contexts, payload: bytes, row: int, columns: int
) -> Rows:
    """Inverse of `encode_small`, with `row` symbols a channel."""
    channels = to_channels(cdfs, offsets)
    lanes, side_by_side = groups(contexts)
    decoder = Decoder(to_words(payload), lanes)
    symbols: Rows = [[] for _ in channels]
    for c, channel in enumerate(channels):
        if c not in contexts:
            symbols[c] = pop_narrow(decoder, channel, row)
    for group in side_by_side:
        for at in range(row):
            for lane, c in enumerate(group):
                thresholds, tables = contexts[c]
                cdf = tables[context_of(thresholds, symbols[c], at, columns)]
                entry = decoder.pop_entry(lane, cdf)
                escaped = entry == channels[c].in_table
                symbols[c].append(
                    decoder.pop_digits(lane, channels[c]) if escaped else offsets[c] + entry
                )
    assert decoder.lanes == [LOWER] * lanes
    assert not decoder.words
    return symbols
