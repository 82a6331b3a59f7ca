"""Speed and size of the entropy coder on 64x28x28 symbols, against CompressAI and constriction.

    python benchmarks/coder.py [--runs N] [--json]

Single thread, through the Python calls, from numpy arrays to bytes and back. Symbols: those of the
demo's picture under the trained ours_n4, and random ones drawn from discrete Laplacians of 0.1,
0.4, 1.0 and 2.0 bits a symbol, coded under tables of those. All coders are under the same tables,
and take turns within a run, a few calls in a row each. CompressAI is timed as its EntropyBottleneck
calls it, from a tensor, and its native coder alone, with the lists that it takes ready made;
constriction with one call a channel, its models ready made. Small payloads are beside them: of the
picture under the bundle's context tables, of random symbols, which have no context to be told by,
under 25 tables a channel that all say the same, so that their time is that of a model whose 64
channels all have context tables.

Always holds: whatever was timed is decoded and compared with the symbols; a benchmark whose output
is wrong stops. Without the bench extra, ours is timed alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from runtime import EdgeEncoder, __version__
from runtime.codec import _coder
from runtime.codec.coder import CONTEXTS, LEVELS, Contexts, Tables
from runtime.codec.feature_file import Profile
from runtime.options import number

PROJECT = Path(__file__).resolve().parent.parent
CHANNELS, SIDE = 64, 28
BITS = (0.1, 0.4, 1.0, 2.0)
WARM_UP, CALLS = 3, 5

Symbols = NDArray[np.int16]


class BenchmarkError(RuntimeError):
    """A coder did not give back the symbols."""


class Coder(NamedTuple):
    """encode gives something that decode makes the symbols of; size is what of it would be sent."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    symbols: Callable[[Any], NDArray[np.int64]]
    size: Callable[[Any], int]


def laplacian(bits: float, reach: int = 20) -> NDArray[np.float64]:
    """The discrete Laplacian on -reach..reach of that entropy, in bits, by bisection."""
    values = np.arange(-reach, reach + 1)
    low, high = 0.02, 20.0
    for _ in range(60):
        scale = (low + high) / 2
        weights = np.exp(-np.abs(values) / scale)
        weights /= weights.sum()
        entropy = -(weights * np.log2(np.maximum(weights, 1e-300))).sum()
        low, high = (scale, high) if entropy < bits else (low, scale)
    return weights


def tables_of(probabilities: NDArray[np.float64]) -> Tables:
    """The same table for all channels and contexts, with an escape of the least frequency."""
    frequencies = np.maximum(1, (probabilities * 65000).astype(int))
    frequencies[len(frequencies) // 2] += 65535 - frequencies.sum()
    cdf = [0, *np.cumsum([*frequencies, 1]).tolist()]
    contexts = {channel: Contexts([-1, 0, 1, 2], [cdf] * CONTEXTS) for channel in range(CHANNELS)}
    return Tables([cdf] * CHANNELS, [-(len(frequencies) // 2)] * CHANNELS, contexts)


def ideal_bits(tables: Tables, symbols: Symbols, small: bool = False) -> float:
    """Sum of -log2 p, and for an escaped symbol its digits' bits."""
    total = 0.0
    for channel, (cdf, offset) in enumerate(zip(tables.cdfs, tables.offsets.tolist(), strict=True)):
        plane = symbols[channel].astype(np.int64)
        frequencies, context = np.diff(cdf.astype(np.int64))[None], np.zeros_like(plane)
        if small and channel in tables.contexts:
            thresholds, cdfs = tables.contexts[channel]
            frequencies, level = (
                np.diff(np.stack(cdfs).astype(np.int64)),
                np.digitize(np.pad(plane, ((1, 0), (1, 0))), thresholds),
            )
            context = LEVELS * level[:-1, 1:] + level[1:, :-1]
        index = plane - offset
        inside = (index >= 0) & (index < len(cdf) - 2)
        total -= np.log2(frequencies[context, np.where(inside, index, -1)] / 65536).sum()
        distance = np.where(index < 0, -2 * index - 1, 2 * (index - len(cdf) + 2))[~inside]
        total += 8 * (1 + (distance >= 128) + (distance >= 128 * 128)).sum()
    return float(total)


def ours_small(tables: Tables, symbols: Symbols) -> Coder:
    return Coder(
        "ours, small",
        lambda: tables.encode(symbols, Profile.CONTEXT),
        lambda data: tables.decode(data, (SIDE, SIDE), Profile.CONTEXT),
        np.asarray,
        len,
    )


def ours(tables: Tables, symbols: Symbols, kernel: str) -> Coder:
    if kernel == _coder.KERNELS[0]:
        return Coder(
            "ours",
            lambda: tables.encode(symbols),
            lambda data: tables.decode(data, (SIDE, SIDE)),
            np.asarray,
            len,
        )
    native, rows, out = (
        _coder.Tables(*tables.flat(), kernel),
        symbols.reshape(CHANNELS, -1),
        np.empty((CHANNELS, SIDE * SIDE), np.int16),
    )

    def decode(data: bytes) -> Symbols:
        if native.decode(data, out) is not None:
            raise BenchmarkError(f"the {kernel} kernel refuses what it wrote")
        return out

    return Coder(f"ours, {kernel}", lambda: native.encode(rows), decode, np.asarray, len)


def compressai_coders(tables: Tables, symbols: Symbols) -> list[Coder]:
    import torch
    from compressai.ans import RansDecoder, RansEncoder
    from compressai.entropy_models import EntropyBottleneck

    torch.set_num_threads(1)
    width = max(len(cdf) for cdf in tables.cdfs)
    entropy = EntropyBottleneck(CHANNELS).eval()
    with torch.no_grad():
        entropy.quantiles[:, :, 1] = 0
    cdfs = [cdf.tolist() + [0] * (width - len(cdf)) for cdf in tables.cdfs]
    lengths, offsets = [len(cdf) for cdf in tables.cdfs], tables.offsets.tolist()
    entropy._quantized_cdf = torch.tensor(cdfs, dtype=torch.int32)
    entropy._cdf_length, entropy._offset = (
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
    )
    latent = torch.from_numpy(symbols.astype(np.float32))[None]
    values, indexes = (
        symbols.reshape(-1).tolist(),
        np.repeat(np.arange(CHANNELS), SIDE * SIDE).tolist(),
    )
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
    import constriction

    # Its symbols begin at 0, and it has no escape: only symbols that the tables hold.
    models = [
        constriction.stream.model.Categorical(
            np.diff(cdf.astype(np.float64)) / 65536, perfect=False
        )
        for cdf in tables.cdfs
    ]
    rows = [
        row.astype(np.int32) - offset
        for row, offset in zip(symbols.reshape(CHANNELS, -1), tables.offsets, strict=True)
    ]
    count, offsets = SIDE * SIDE, tables.offsets[:, None]

    def ans_encode() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        for row, model in zip(reversed(rows), reversed(models), strict=True):
            coder.encode_reverse(row, model)
        return coder.get_compressed()

    def range_encode() -> Any:
        coder = constriction.stream.queue.RangeEncoder()
        for row, model in zip(rows, models, strict=True):
            coder.encode(row, model)
        return coder.get_compressed()

    def ans_decode(data: Any) -> Any:
        coder = constriction.stream.stack.AnsCoder(data)
        return [coder.decode(model, count) for model in models]

    def range_decode(data: Any) -> Any:
        coder = constriction.stream.queue.RangeDecoder(data)
        return [coder.decode(model, count) for model in models]

    def back(out: Any) -> NDArray[np.int64]:
        return np.stack(out) + offsets

    return [
        Coder("constriction, ANS", ans_encode, ans_decode, back, lambda data: 4 * len(data)),
        Coder(
            "constriction, range coder",
            range_encode,
            range_decode,
            back,
            lambda data: 4 * len(data),
        ),
    ]


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, the mean of CALLS in a row after one that is not timed, and its result.

    The untimed one brings back what the coder before it drove from the caches.
    """
    result = call()
    start = time.perf_counter()
    for _ in range(CALLS):
        result = call()
    return (time.perf_counter() - start) / CALLS, result


def measure(name: str, tables: Tables, symbols: Symbols, runs: int) -> dict[str, Any]:
    """All coders on one set of symbols, in turn within each run."""
    coders = [
        *(ours(tables, symbols, kernel) for kernel in _coder.KERNELS),
        ours_small(tables, symbols),
    ]
    if find_spec("compressai"):
        coders += compressai_coders(tables, symbols)
    if find_spec("constriction"):
        coders += constriction_coders(tables, symbols)
    times: dict[str, tuple[list[float], list[float]]] = {coder.name: ([], []) for coder in coders}
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
                times[coder.name][0].append(encode)
                times[coder.name][1].append(decode)
    first = coders[0].name
    rows = []
    for coder in coders:
        encodes, decodes = times[coder.name]
        rows.append(
            {
                "coder": coder.name,
                "bytes": sizes[coder.name],
                "over_ideal": sizes[coder.name]
                - ideal_bits(tables, symbols, "small" in coder.name) / 8,
                "encode_ms": 1e3 * statistics.median(encodes),
                "decode_ms": 1e3 * statistics.median(decodes),
                "encode_ratio": _ratio(encodes, times[first][0]),
                "decode_ratio": _ratio(decodes, times[first][1]),
            }
        )
    return {
        "symbols": name,
        "bits_per_symbol": ideal_bits(tables, symbols) / symbols.size,
        "ideal_bytes": ideal_bits(tables, symbols) / 8,
        "rows": rows,
    }


def call_overhead(tables: Tables, runs: int) -> dict[str, float]:
    """Microseconds of a call that has one symbol a channel to code: medians."""
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


def _ratio(theirs: list[float], own: list[float]) -> dict[str, float]:
    """Of times taken in the same run: median and quartiles."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(theirs, own, strict=True)], n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def text(results: list[dict[str, Any]]) -> str:
    lines = [
        "| symbols | coder | bytes | over the ideal | encode ms | decode ms | times ours, encode (quartiles) | decode |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        for row in result["rows"]:
            ratios = [
                "{median:.1f} ({quartile_low:.1f} to {quartile_high:.1f})".format(**row[key])
                for key in ("encode_ratio", "decode_ratio")
            ]
            lines.append(
                f"| {result['symbols']} | {row['coder']} | {row['bytes']} | {row['over_ideal']:+.1f} "
                f"| {row['encode_ms']:.4f} | {row['decode_ms']:.4f} | {ratios[0]} | {ratios[1]} |"
            )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--runs",
        type=number(int, 4, 1_000_000),
        default=200,
        metavar="N",
        help="timed runs of each coder (default: 200)",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=Path("bundles/ours_n4"),
        metavar="DIR",
        help="the trained bundle",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from PIL import Image

    from runtime.errors import EdgeCloudError
    from runtime.images.preprocess import preprocess

    try:
        encoder = EdgeEncoder(args.bundle, 1)
        picture = preprocess(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"))
        sets = [
            (
                "ours_n4, the demo's picture",
                encoder.bundle.tables,
                encoder.symbols(picture[None])[0],
            )
        ]
        for bits in BITS:
            probabilities = laplacian(bits)
            drawn = np.random.default_rng(0).choice(
                np.arange(-20, 21), (CHANNELS, SIDE, SIDE), p=probabilities
            )
            sets.append(
                (f"Laplacian, {bits} bits", tables_of(probabilities), drawn.astype(np.int16))
            )
        results = [measure(*one, args.runs) for one in sets]
        overhead = call_overhead(sets[0][1], args.runs)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"coder: {error}", file=sys.stderr)
        return 1
    machine = describe(1)
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "coder",
                    "machine": machine,
                    "runs": args.runs,
                    "call_us": overhead,
                    "results": results,
                },
                indent=1,
                allow_nan=False,
            )
        )
    else:
        print(
            f"{machine['processor']}, 1 thread, {args.runs} runs in turn, medians; kernel {_coder.KERNELS[0]}\n\n{text(results)}"
        )
        print(
            "\na call with one symbol a channel: {encode:.1f} microseconds to encode, {decode:.1f} to decode".format(
                **overhead
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
