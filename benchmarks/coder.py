"""Speed and size of the entropy coder on 64x28x28 symbols, against CompressAI and constriction.

    python benchmarks/coder.py [--runs N] [--json] [--keep]

Everything runs on one thread, through the Python calls, from numpy arrays to bytes and back. The
symbols are those of the demo's picture in the trained ours_n4, and random ones from discrete
Laplacians of 0.1, 0.4, 1.0 and 2.0 bits a symbol. All coders use the same tables and take turns,
a few calls in a row each.

- "ours" is the fastest kernel of this processor; slower kernels are timed by naming them.
- "ours, small" codes the picture with the bundle's context tables. Random symbols have no context,
  so each channel gets 25 equal tables: the time is that of a model whose channels all have context
  tables.
- CompressAI is timed as EntropyBottleneck calls it, from a tensor, and its native coder alone,
  which starts from lists that are ready made.
- constriction makes one call for each channel, with models that are ready made.

Always holds: what was timed decodes to the symbols; a wrong output stops the benchmark. Without
the bench extra, ours is timed alone.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.timing import ratios, show
from runtime import EdgeEncoder
from runtime.codec import _coder
from runtime.codec.coder import CONTEXTS, LEVELS, Contexts, Tables
from runtime.codec.feature_file import Profile
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import preprocess

CHANNELS, SIDE = 64, 28
BITS = (0.1, 0.4, 1.0, 2.0)
REACH = 20  # the largest of the random symbols
WARM_UP, CALLS = 3, 5

Symbols = NDArray[np.int16]


class Coder(NamedTuple):
    """A coder with its symbols: what is timed, and how its outputs are read.

    `decode` takes what `encode` gives, `symbols` what `decode` gives; `size` is the bytes to send.
    """

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    symbols: Callable[[Any], NDArray[np.int64]]
    size: Callable[[Any], int]


def laplacian(bits: float) -> NDArray[np.float64]:
    """Probabilities of -REACH..REACH under the discrete Laplacian of that entropy, by bisection."""
    values = np.arange(-REACH, REACH + 1)
    low, high = 0.02, 20.0
    for _ in range(60):
        scale = (low + high) / 2
        weights = np.exp(-np.abs(values) / scale)
        weights /= weights.sum()
        entropy = -(weights * np.log2(np.maximum(weights, 1e-300))).sum()
        low, high = (scale, high) if entropy < bits else (low, scale)
    return weights


def tables_of(probabilities: NDArray[np.float64]) -> Tables:
    """The same table for all channels and contexts; the escape has the lowest frequency, 1."""
    frequencies = np.maximum(1, (probabilities * 65000).astype(int))
    frequencies[len(frequencies) // 2] += 65535 - frequencies.sum()
    cdf = [0, *np.cumsum([*frequencies, 1]).tolist()]
    contexts = {channel: Contexts([-1, 0, 1, 2], [cdf] * CONTEXTS) for channel in range(CHANNELS)}
    return Tables([cdf] * CHANNELS, [-(len(frequencies) // 2)] * CHANNELS, contexts)


def ideal_bits(tables: Tables, symbols: Symbols, small: bool = False) -> float:
    """Sum of -log2 of the symbols' probabilities, and the bits of escaped symbols' digits."""
    total = 0.0
    for channel, (cdf, offset) in enumerate(zip(tables.cdfs, tables.offsets.tolist(), strict=True)):
        plane = symbols[channel].astype(np.int64)
        frequencies, context = np.diff(cdf.astype(np.int64))[None], np.zeros_like(plane)
        if small and channel in tables.contexts:
            thresholds, cdfs = tables.contexts[channel]
            frequencies = np.diff(np.stack(cdfs).astype(np.int64))
            level = np.digitize(np.pad(plane, ((1, 0), (1, 0))), thresholds)
            context = LEVELS * level[:-1, 1:] + level[1:, :-1]
        index = plane - offset
        inside = (index >= 0) & (index < len(cdf) - 2)
        total -= np.log2(frequencies[context, np.where(inside, index, -1)] / 65536).sum()
        distance = np.where(index < 0, -2 * index - 1, 2 * (index - len(cdf) + 2))[~inside]
        total += 8 * (1 + (distance >= 128) + (distance >= 128 * 128)).sum()
    return float(total)


def ours_small(tables: Tables, symbols: Symbols) -> Coder:
    """This project's coder with context tables."""
    return Coder(
        "ours, small",
        lambda: tables.encode(symbols, Profile.CONTEXT),
        lambda data: tables.decode(data, (SIDE, SIDE), Profile.CONTEXT),
        np.asarray,
        len,
    )


def ours(tables: Tables, symbols: Symbols, kernel: str) -> Coder:
    """This project's coder with static tables; a kernel other than the fastest by name."""
    if kernel == _coder.KERNELS[0]:
        return Coder(
            "ours",
            lambda: tables.encode(symbols),
            lambda data: tables.decode(data, (SIDE, SIDE)),
            np.asarray,
            len,
        )
    native, rows = _coder.Tables(*tables.flat(), kernel), symbols.reshape(CHANNELS, -1)
    out = np.empty((CHANNELS, SIDE * SIDE), np.int16)

    def decode(data: bytes) -> Symbols:
        if native.decode(data, out) is not None:
            raise BenchmarkError(f"the {kernel} kernel refuses what it wrote")
        return out

    return Coder(f"ours, {kernel}", lambda: native.encode(rows), decode, np.asarray, len)


def compressai_coders(tables: Tables, symbols: Symbols) -> list[Coder]:
    """CompressAI's EntropyBottleneck, and its native coder alone."""
    import torch
    from compressai.ans import RansDecoder, RansEncoder
    from compressai.entropy_models import EntropyBottleneck

    torch.set_num_threads(1)
    width = max(len(cdf) for cdf in tables.cdfs)
    cdfs = [cdf.tolist() + [0] * (width - len(cdf)) for cdf in tables.cdfs]
    lengths, offsets = [len(cdf) for cdf in tables.cdfs], tables.offsets.tolist()
    entropy = EntropyBottleneck(CHANNELS).eval()
    with torch.no_grad():
        entropy.quantiles[:, :, 1] = 0  # the medians, which ours adds elsewhere
    entropy._quantized_cdf = torch.tensor(cdfs, dtype=torch.int32)
    entropy._cdf_length = torch.tensor(lengths, dtype=torch.int32)
    entropy._offset = torch.tensor(offsets, dtype=torch.int32)
    latent = torch.from_numpy(symbols.astype(np.float32))[None]
    values = symbols.reshape(-1).tolist()
    indexes = np.repeat(np.arange(CHANNELS), SIDE * SIDE).tolist()
    return [
        Coder(
            "CompressAI, EntropyBottleneck",
            lambda: entropy.compress(latent),
            lambda data: entropy.decompress(data, (SIDE, SIDE)),
            lambda out: out[0].to(torch.int64).numpy(),
            lambda data: len(data[0]),
        ),
        Coder(
            "CompressAI, native with lists",
            lambda: RansEncoder().encode_with_indexes(values, indexes, cdfs, lengths, offsets),
            lambda data: RansDecoder().decode_with_indexes(data, indexes, cdfs, lengths, offsets),
            np.array,
            len,
        ),
    ]


def constriction_coders(tables: Tables, symbols: Symbols) -> list[Coder]:
    """constriction's ANS and range coders, which have no escape: tables must hold all symbols."""
    import constriction

    stream = constriction.stream
    models = [
        stream.model.Categorical(np.diff(cdf.astype(np.float64)) / 65536, perfect=False)
        for cdf in tables.cdfs
    ]
    # constriction's symbols begin at 0.
    rows = [
        row.astype(np.int32) - offset
        for row, offset in zip(symbols.reshape(CHANNELS, -1), tables.offsets, strict=True)
    ]
    count, offsets = SIDE * SIDE, tables.offsets[:, None]

    def ans_encode() -> Any:
        coder = stream.stack.AnsCoder()
        for row, model in zip(reversed(rows), reversed(models), strict=True):
            coder.encode_reverse(row, model)
        return coder.get_compressed()

    def range_encode() -> Any:
        coder = stream.queue.RangeEncoder()
        for row, model in zip(rows, models, strict=True):
            coder.encode(row, model)
        return coder.get_compressed()

    def ans_decode(data: Any) -> Any:
        coder = stream.stack.AnsCoder(data)
        return [coder.decode(model, count) for model in models]

    def range_decode(data: Any) -> Any:
        coder = stream.queue.RangeDecoder(data)
        return [coder.decode(model, count) for model in models]

    def joined(out: Any) -> NDArray[np.int64]:
        return np.stack(out) + offsets

    def size(data: Any) -> int:
        return 4 * len(data)  # 32-bit words

    return [
        Coder("constriction, ANS", ans_encode, ans_decode, joined, size),
        Coder("constriction, range coder", range_encode, range_decode, joined, size),
    ]


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, the mean of CALLS in a row, and its result.

    A call that is not timed comes first, to fill the caches that another coder has used.
    """
    result = call()
    start = time.perf_counter()
    for _ in range(CALLS):
        result = call()
    return (time.perf_counter() - start) / CALLS, result


def measure(name: str, tables: Tables, symbols: Symbols, runs: int) -> dict[str, Any]:
    """All coders on one set of symbols int16 [64, 28, 28], in turn. Raises BenchmarkError."""
    coders = [
        *(ours(tables, symbols, kernel) for kernel in _coder.KERNELS),
        ours_small(tables, symbols),
    ]
    if find_spec("compressai"):
        coders += compressai_coders(tables, symbols)
    if find_spec("constriction"):
        coders += constriction_coders(tables, symbols)
    encodes: dict[str, list[float]] = {coder.name: [] for coder in coders}
    decodes: dict[str, list[float]] = {coder.name: [] for coder in coders}
    sizes: dict[str, int] = {}
    for run in range(WARM_UP + runs):
        for coder in coders:
            encode, data = clock(coder.encode)
            decode, out = clock(partial(coder.decode, data))
            if run < WARM_UP:
                if not np.array_equal(coder.symbols(out).reshape(-1), symbols.reshape(-1)):
                    raise BenchmarkError(f"{coder.name} does not give back the symbols of {name}")
                sizes[coder.name] = coder.size(data)
            else:
                encodes[coder.name].append(encode)
                decodes[coder.name].append(decode)
    ideal = {small: ideal_bits(tables, symbols, small) / 8 for small in (False, True)}
    first = coders[0].name
    return {
        "symbols": name,
        "bits_per_symbol": 8 * ideal[False] / symbols.size,
        "ideal_bytes": ideal[False],
        "rows": [
            {
                "coder": coder.name,
                "bytes": sizes[coder.name],
                "over_ideal": sizes[coder.name] - ideal["small" in coder.name],
                "encode_ms": 1e3 * statistics.median(encodes[coder.name]),
                "decode_ms": 1e3 * statistics.median(decodes[coder.name]),
                "encode_ratio": ratios(encodes[coder.name], encodes[first]),
                "decode_ratio": ratios(decodes[coder.name], decodes[first]),
            }
            for coder in coders
        ],
    }


def call_overhead(tables: Tables, runs: int) -> dict[str, float]:
    """Microseconds of a call that codes one symbol of each channel: medians."""
    symbols = np.zeros((tables.channels, 1, 1), np.int16)
    data = tables.encode(symbols)
    calls = {
        "encode": lambda: tables.encode(symbols),
        "decode": lambda: tables.decode(data, (1, 1)),
    }
    return {
        name: 1e6 * statistics.median(clock(call)[0] for _ in range(runs))
        for name, call in calls.items()
    }


def text(results: list[dict[str, Any]]) -> str:
    """All sets of symbols and coders, as a Markdown table."""
    heads = ["symbols", "coder", "bytes", "bytes over the ideal", "encode ms", "decode ms"]
    heads += ["encode, times ours (quartiles)", "decode, times ours (quartiles)"]
    rows = [
        [
            result["symbols"],
            row["coder"],
            str(row["bytes"]),
            f"{row['over_ideal']:+.1f}",
            f"{row['encode_ms']:.4f}",
            f"{row['decode_ms']:.4f}",
            show(row["encode_ratio"]),
            show(row["decode_ratio"]),
        ]
        for result in results
        for row in result["rows"]
    ]
    return markdown(heads, rows, align="ll")


def _sets(bundle: Path) -> list[tuple[str, Tables, Symbols]]:
    """The sets of symbols: a name, the tables, and symbols int16 [64, 28, 28]."""
    encoder = EdgeEncoder(bundle, 1)
    symbols = encoder.symbols(preprocess(Image.open(PICTURE))[None])[0]
    sets = [("ours_n4, the demo's picture", encoder.bundle.tables, symbols)]
    for bits in BITS:
        probabilities = laplacian(bits)
        values = np.arange(-REACH, REACH + 1)
        drawn = np.random.default_rng(0).choice(values, (CHANNELS, SIDE, SIDE), p=probabilities)
        sets.append((f"Laplacian, {bits} bits", tables_of(probabilities), drawn.astype(np.int16)))
    return sets


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    add_runs_option(parser, "coder", default=200, least=4)
    parser.add_argument(
        "--bundle",
        type=Path,
        default=Path("bundles/ours_n4"),
        metavar="DIR",
        help="the trained bundle (default: bundles/ours_n4)",
    )
    add_output_options(parser, keep="coder.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record = {**header("coder", 1), "runs": args.runs}
        sets = _sets(args.bundle)
        results = [measure(*one, args.runs) for one in sets]
        record |= {"call_us": call_overhead(sets[0][1], args.runs), "results": results}
        if args.keep:
            write_record(RESULTS / "coder.json", record)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"coder: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(as_json(record))
        return 0
    processor, overhead = record["machine"]["processor"], record["call_us"]
    print(f"{processor}, 1 thread, {args.runs} runs in turn, medians; kernel {_coder.KERNELS[0]}\n")
    print(text(results))
    print(
        f"\na call with one symbol of each channel: {overhead['encode']:.1f} microseconds to "
        f"encode, {overhead['decode']:.1f} to decode"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
