"""Writes the golden files: cases of the coder beside this file, and bad feature files in errors/.

    python tests/golden/make.py

The files are committed, and change only with the format's version. Payloads come from the coder in
plain Python; tests compare the native one with them, from Python and from C++.

A case is text, line by line:

    "channels places", or "channels rows columns" for a small payload
    per channel "offset cdf..."
    for a small payload, per channel four thresholds and 25 CDFs, or an empty line
    per channel its symbols
    the payload in hexadecimal

A bad feature file is named by its defect. It is made of `intact.bin`, or of `intact_small.bin`,
whose second channel has context tables.
"""

import random
import sys
import zlib
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import reference_coder

HERE = Path(__file__).resolve().parent

# Symbols -3 to 3 and the escape, nearly all 0.
SKEWED = [0, 1, 4, 204, 65004, 65524, 65534, 65535, 65536]
# Symbols 0 to 3 and the escape.
PLAIN = [0, 4000, 30000, 50000, 65000, 65536]
CONTEXTS = (
    [0, 1, 2, 3],
    [
        [0, 4000 + 500 * context, 30000, 50000 + 400 * context, 65000, 65536]
        for context in range(25)
    ],
)
FINGERPRINT = bytes.fromhex("0badcafe")


def cases() -> dict[str, tuple[list[list[int]], list[int], list[list[int]]]]:
    """By name: CDFs, offsets, symbols."""
    rng = random.Random(0)
    mixed = [
        [rng.choice([0] * 20 + [1, -1, 2, -3]) for _ in range(100)],
        [rng.choice([0, 1, 1, 2, 3]) for _ in range(100)],
    ]
    return {
        "no_symbols": ([SKEWED, PLAIN], [-3, 0], [[], []]),
        "one_symbol": ([SKEWED], [-3], [[1]]),
        "two_symbols": ([PLAIN], [0], [[3, 0]]),
        "all_zero": ([SKEWED], [-3], [[0] * 784]),
        "mixed": ([SKEWED, PLAIN], [-3, 0], mixed),
        "all_escapes": (
            [SKEWED, PLAIN],
            [-3, 0],
            [[4, -4, 67, -68, 32767, -32767], [4, -1, 67, -65, 32767, -32767]],
        ),
        "wide": (
            [PLAIN] * 3,
            [0, -2, -1],
            [[(i * i + c) % 7 % 5 - 1 for i in range(5470)] for c in range(3)],
        ),
    }


def small_cases() -> dict[
    str, tuple[list[list[int]], list[int], reference_coder.Contexts, list[list[int]], int]
]:
    """By name: CDFs, offsets, context tables, symbols, columns."""
    rng = random.Random(1)
    smooth = [
        [min(4, max(-1, (i // 9 + i % 9) // 4 + rng.choice([-1, 0, 0, 0, 1]))) for i in range(99)]
        for _ in range(18)
    ]
    return {
        "small": (
            [SKEWED, PLAIN, PLAIN, PLAIN],
            [-3, 0, 0, 0],
            {c: CONTEXTS for c in (1, 2, 3)},
            [[0] * 99, *smooth[:3]],
            9,
        ),
        "small_four_lanes": ([PLAIN] * 18, [0] * 18, {c: CONTEXTS for c in range(18)}, smooth, 9),
    }


def write_cases() -> None:
    """Write the cases of the coder."""
    for name, (cdfs, offsets, contexts, symbols, columns) in small_cases().items():
        payload = reference_coder.encode_small(cdfs, offsets, contexts, symbols, columns)
        nothing: tuple[list[int], list[list[int]]] = ([], [])
        own = [
            [*thresholds, *chain(*tables)]
            for thresholds, tables in (contexts.get(c, nothing) for c in range(len(cdfs)))
        ]
        lines = [
            [len(cdfs), len(symbols[0]) // columns, columns],
            *([offset, *cdf] for offset, cdf in zip(offsets, cdfs, strict=True)),
        ]
        text = (
            "".join(" ".join(map(str, line)) + "\n" for line in [*lines, *own, *symbols])
            + payload.hex()
            + "\n"
        )
        (HERE / f"{name}.txt").write_text(text)
    for name, (cdfs, offsets, symbols) in cases().items():
        payload = reference_coder.encode(cdfs, offsets, symbols)
        lines = [
            [len(cdfs), len(symbols[0])],
            *([offset, *cdf] for offset, cdf in zip(offsets, cdfs, strict=True)),
            *symbols,
        ]
        text = "".join(" ".join(map(str, line)) + "\n" for line in lines) + payload.hex() + "\n"
        (HERE / f"{name}.txt").write_text(text)


def sealed(body: bytes) -> bytes:
    """A body with its checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def feature_file(
    payload: bytes,
    rows: bytes = b"\x02",
    columns: bytes = b"\x03",
    length: bytes | None = None,
    version: bytes = b"\x01",
) -> bytes:
    """A feature file of 16x24 pixels, two channels of 2x3 symbols, unless fields are given."""
    return sealed(
        b"\xfc"
        + version
        + FINGERPRINT
        + rows
        + columns
        + (bytes([len(payload)]) if length is None else length)
        + payload
    )


TABLES = [SKEWED, PLAIN], [-3, 0]
SYMBOLS = [[0, 0, 2, 0, -90, 0], [1, 0, 3, 2, 1, 500]]


def with_digits(symbol: int, digits: list[int]) -> bytes:
    """A file of an encoder that writes other digits than it should for `symbol`."""
    right = reference_coder.Channel.digits
    reference_coder.Channel.digits = lambda channel, value: (
        digits if value == symbol else right(channel, value)
    )
    try:
        return feature_file(reference_coder.encode(*TABLES, SYMBOLS))
    finally:
        reference_coder.Channel.digits = right


def with_last_state() -> bytes:
    """A file of an encoder that begins with another state than 2^16."""
    reference_coder.LOWER += 1
    try:
        return feature_file(reference_coder.encode(*TABLES, SYMBOLS))
    finally:
        reference_coder.LOWER -= 1


def write_bad_files() -> None:
    """Write the intact files, and each file that a reader must refuse."""
    payload = reference_coder.encode(*TABLES, SYMBOLS)
    intact = feature_file(payload)
    small_payload = reference_coder.encode_small(*TABLES, {1: CONTEXTS}, SYMBOLS, 3)
    intact_small = feature_file(small_payload, version=b"\x11")

    bad = {
        "empty": b"",
        "other_kind": b"\xff\xd8\xff\xe0" + intact,
        "version_0": sealed(b"\xfc\x00" + intact[2:-4]),
        "version_2": sealed(b"\xfc\x02" + intact[2:-4]),
        "version_3": sealed(b"\xfc\x03" + intact[2:-4]),
        "profile_2": sealed(b"\xfc\x21" + intact[2:-4]),
        "plain_said_to_be_small": feature_file(payload, version=b"\x11"),
        "small_said_to_be_plain": feature_file(small_payload),
        "small_payload_cut": feature_file(small_payload[:-2], version=b"\x11"),
        "small_payload_word_left": feature_file(small_payload + b"\0\0", version=b"\x11"),
        "header_cut": intact[:7],
        "payload_cut": intact[:-6],
        "checksum_cut": intact[:-1],
        "byte_after_the_end": intact + b"\0",
        "bit_flipped": intact[:12] + bytes([intact[12] ^ 4]) + intact[13:],
        "checksum_flipped": intact[:-1] + bytes([intact[-1] ^ 128]),
        "field_longer_than_need_be": feature_file(payload, rows=b"\x82\x00"),
        "field_of_five_bytes": feature_file(payload, rows=b"\x82\x80\x80\x80\x01"),
        "other_bundle": sealed(b"\xfc\x01\xde\xad\xbe\xef" + intact[6:-4]),
        "no_pixels": feature_file(payload, rows=b"\x00"),
        "too_many_symbols": feature_file(
            payload, rows=b"\xff\xff\xff\x7f", columns=b"\xff\xff\xff\x7f"
        ),
        "more_symbols_than_payload": feature_file(payload, columns=b"\x7f"),
        "payload_of_no_bytes": feature_file(b""),
        "payload_odd": feature_file(payload + b"\0"),
        "payload_word_left": feature_file(payload + b"\0\0"),
        "payload_first_state_small": feature_file(payload[:2] + b"\0\0" + payload[4:]),
        "payload_last_state": with_last_state(),
        "escape_longer_than_need_be": with_digits(
            500, [*reference_coder.Channel(PLAIN, 0).digits(500)[:-1], 128 + 7, 0]
        ),
        "escape_of_four_digits": with_digits(500, [255, 255, 255, 1]),
        "escape_out_of_range": with_digits(500, [255, 255, 7]),
    }
    (HERE / "intact.bin").write_bytes(intact)
    (HERE / "intact_small.bin").write_bytes(intact_small)
    for name, data in bad.items():
        (HERE / "errors" / f"{name}.bin").write_bytes(data)


if __name__ == "__main__":
    write_cases()
    write_bad_files()
