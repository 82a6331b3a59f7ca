"""Writes the golden files of version 2, in variable/, and the bad ones in variable/errors/.

    python tests/golden/make_variable.py

The files are committed, and change only with the format's version. They come from the second
implementation in plain Python, tests/support/reference_file.py. A bad file is named by its defect;
CHECKS says which check of docs/FORMAT.md, section 6.2, it does not pass.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from reference_file import Bundle, sealed, write

HERE = Path(__file__).resolve().parent / "variable"

# Symbols -3 to 3 and the escape, nearly all 0.
SKEWED = [0, 1, 4, 204, 65004, 65524, 65534, 65535, 65536]
CONTEXTS = (
    [0, 1, 2, 3],
    [
        [0, 4000 + 500 * context, 30000, 50000 + 400 * context, 65000, 65536]
        for context in range(25)
    ],
)


def plain(level: int) -> list[int]:
    """Symbols 0 to 3 and the escape."""
    return [0, 4000, 30000 - 500 * level, 50000, 65000, 65536]


# Levels 0 to 7 have context tables for channel 1, the others have none.
BUNDLE = Bundle(
    channels=3,
    stride=8,
    shrink=0,
    max_symbols=1 << 16,
    fingerprint=bytes.fromhex("0badcafe"),
    levels=[
        ([SKEWED, plain(level), plain(level)], [-3, 0, 0], {1: CONTEXTS} if level < 8 else {})
        for level in range(16)
    ],
    order=(1, 2, 0),
)
SYMBOLS = [[0, 0, 2, 0, -90, 0], [1, 0, 3, 2, 1, 500], [3, 3, 0, 1, 2, 2]]
SQUARE = [row[:4] for row in SYMBOLS]


def intact() -> dict[str, bytes]:
    """By name: files of 24x16 pixels, and of 16x16 where the name says so."""
    return {
        "whole": write(BUNDLE, SYMBOLS, 16, 24, step=120),
        "whole_small": write(BUNDLE, SYMBOLS, 16, 24, small=True, step=40),
        "small_without_contexts": write(BUNDLE, SYMBOLS, 16, 24, small=True, step=240),
        "square": write(BUNDLE, SQUARE, 16, 16, step=0),
        "cut": write(BUNDLE, SYMBOLS, 16, 24, step=0, kept=2),
        "cut_small": write(BUNDLE, SYMBOLS, 16, 24, small=True, step=0, kept=1),
        "no_channels": write(BUNDLE, SQUARE, 16, 16, step=0, kept=0),
    }


def spoiled() -> dict[str, tuple[int, bytes]]:
    """By name: the check that refuses a file, and the file."""
    files = intact()
    whole, small, cut = files["whole"], files["whole_small"], files["cut"]
    payload = whole[9:-4]

    def header(fields: str, rest: bytes = payload) -> bytes:
        return sealed(bytes.fromhex("fc020badcafe" + fields) + rest)

    return {
        "empty": (1, b""),
        "other_kind": (2, b"\x89PNG" + whole),
        "bit_6": (3, sealed(b"\xfc\x42" + whole[2:-4])),
        "bit_7": (3, sealed(b"\xfc\x82" + whole[2:-4])),
        "version_3": (3, sealed(b"\xfc\x03" + whole[2:-4])),
        "header_cut": (4, whole[:8]),
        "kept_cut": (4, cut[:7]),
        "checksum_cut": (4, whole[:12]),
        "field_longer_than_need_be": (4, header("78820003")),
        "field_of_five_bytes": (4, header("78828080800103")),
        "step_241": (4, header("f10203")),
        "step_254": (4, header("fe0203")),
        "width_written_twice": (4, header("780202")),
        "payload_cut": (6, whole[:-2]),
        "byte_after_the_end": (6, whole + b"\0"),
        "bit_flipped": (6, whole[:10] + bytes([whole[10] ^ 4]) + whole[11:]),
        "other_bundle": (7, sealed(b"\xfc\x02\xde\xad\xbe\xef" + whole[6:-4])),
        "version_1": (7, sealed(bytes.fromhex("fc010badcafe020308") + bytes(8))),
        "no_pixels": (8, header("780003")),
        "too_many_symbols": (8, header("78ffffff7f03")),
        "cut_to_all_channels": (9, header("ff030203")),
        "cut_to_255_channels": (9, header("ffff0203")),
        "more_symbols_than_payload": (10, header("78027f")),
        "payload_of_no_bytes": (10, header("780203", b"")),
        "payload_word_left": (10, header("780203", payload + b"\0\0")),
        "payload_odd": (10, header("780203", payload + b"\0")),
        "whole_said_to_be_cut": (10, header("ff020203")),
        "plain_said_to_be_small": (10, sealed(b"\xfc\x32" + files["square"][2:-4])),
        "small_said_to_be_plain": (10, sealed(b"\xfc\x02" + small[2:-4])),
        "no_channels_and_a_payload": (10, header("ff000203", bytes(6))),
    }


if __name__ == "__main__":
    (HERE / "errors").mkdir(parents=True, exist_ok=True)
    for name, data in intact().items():
        (HERE / f"{name}.bin").write_bytes(data)
    for name, (_, data) in spoiled().items():
        (HERE / "errors" / f"{name}.bin").write_bytes(data)
