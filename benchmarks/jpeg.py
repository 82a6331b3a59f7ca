"""What decoding large JPEGs at a fraction of their size (`edge-encode --fast-jpeg`) saves, and what it changes.

    python benchmarks/jpeg.py [--data DIR] [--images N] [--enlarged WxH] [--runs N] [--json] [--keep]

Time: two JPEGs of the demo's picture, 1920x1080 and 4000x3000, decoded and resized to 224x224 in every way in turn, in one
thread. Accuracy, with --data (one folder of images a class): every image as it is, and enlarged and saved as a
JPEG again, since photographs of the usual size are not part of such sets; what becomes of its symbols, of the bytes
of its feature file, and of its class, against the way that is the default.

The ways are Pillow at full size, the default; `--fast-jpeg`, which is Pillow's Image.draft down to no less than 512 pixels a
side; the same down to 256; and the package simplejpeg at full size and at a fraction, where it is installed.

Always holds: every way's pixels are compared with the default's, and what strays by more than 12 levels on average stops
the benchmark; equal feature files are classified once.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.accuracy import labelled_images, paired
from benchmarks.machine import commit, cores, describe, image_size
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.errors import EdgeCloudError
from runtime.files import write_atomically
from runtime.images.preprocess import FAST_SIDE, load_image, preprocess
from runtime.options import number

PROJECT = Path(__file__).resolve().parent.parent
SIZES = ((1920, 1080), (4000, 3000))
MAX_STRAYS = 12.0  # levels, on average
Way = Callable[[bytes], Image.Image]


class BenchmarkError(RuntimeError):
    """Two ways give different pictures."""


def drafted(data: bytes, side: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (side, side))
    image.load()
    return image


def ways() -> dict[str, Way]:
    """From a JPEG file's bytes to an image, by name, the default first."""
    found: dict[str, Way] = {
        "Pillow": lambda data: load_image(io.BytesIO(data)),
        f"Pillow, {FAST_SIDE} at least (--fast-jpeg)": lambda data: load_image(
            io.BytesIO(data), fast_jpeg=True
        ),
        "Pillow, 256 at least": lambda data: drafted(data, 256),
    }
    if find_spec("simplejpeg"):
        from simplejpeg import decode_jpeg

        found["simplejpeg"] = lambda data: Image.fromarray(decode_jpeg(data, "RGB"))
        for side in (FAST_SIDE, 256):
            found[f"simplejpeg, {side} at least"] = lambda data, side=side: Image.fromarray(  # type: ignore[misc]
                decode_jpeg(
                    data, "RGB", min_height=side, min_width=side, fastdct=True, fastupsample=True
                )
            )
    return found


def as_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    """Enlarged, and saved at quality 90."""
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def strays(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Mean difference in levels. Raises BenchmarkError."""
    mean = float(np.abs(found.astype(np.int16) - expected).mean())
    if not mean <= MAX_STRAYS:
        raise BenchmarkError(f"two ways to decode an image are {mean:.1f} levels apart")
    return mean


def measure_time(runs: int) -> list[dict[str, Any]]:
    """Milliseconds to decode, and to decode and resize, for each size and way."""
    rows = []
    for size in SIZES:
        data = as_jpeg(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"), size)
        expected = preprocess(load_image(io.BytesIO(data)))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways()}
        away, decoded = {}, {}
        for _ in range(runs):
            for name, decode in ways().items():
                start = time.process_time()
                image = decode(data)
                middle = time.process_time()
                pixels = preprocess(image)
                end = time.process_time()
                times[name].append((1e3 * (middle - start), 1e3 * (end - start)))
                away[name], decoded[name] = strays(pixels, expected), image.size
        whole = {name: [total for _, total in values] for name, values in times.items()}
        for name, values in times.items():
            ratios = sorted(a / b for a, b in zip(whole["Pillow"], whole[name], strict=True))
            low, middle_ratio, high = statistics.quantiles(ratios, n=4)
            rows.append(
                {
                    "way": name,
                    "width": size[0],
                    "height": size[1],
                    "file_bytes": len(data),
                    "decoded": decoded[name],
                    "decode_ms": statistics.median(value for value, _ in values),
                    "total_ms": statistics.median(whole[name]),
                    "times_faster": {
                        "median": middle_ratio,
                        "quartile_low": low,
                        "quartile_high": high,
                    },
                    "levels_apart": away[name],
                }
            )
    return rows


def measure_accuracy(
    data: Path, count: int, size: tuple[int, int], threads: int
) -> list[dict[str, Any]]:
    """For the images as they are and enlarged, and for each way: what changes against the default."""
    encoder, decoder = EdgeEncoder(threads=threads), CloudDecoder(threads=threads)
    images = labelled_images(data, decoder.labels, count)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path, label in tqdm(images, unit="image", disable=not sys.stderr.isatty()):
        files = {
            "as they are": path.read_bytes(),
            f"enlarged to {size[0]}x{size[1]}": as_jpeg(load_image(path).convert("RGB"), size),
        }
        for source, file in files.items():
            classes: dict[bytes, int] = {}
            first: tuple[NDArray[np.uint8], NDArray[np.int16]] | None = None
            for name, decode in ways().items():
                pixels = preprocess(decode(file))
                symbols = encoder.symbols(pixels[None])[0]
                first = first or (pixels, symbols)
                packed = encoder.encode_symbols(symbols, *pixels.shape[:2])
                if packed not in classes:
                    classes[packed] = int(decoder.logits([packed])[0].argmax())
                entry = {
                    "bytes": len(packed),
                    "right": classes[packed] == label,
                    "changed": float((symbols != first[1]).mean()),
                }
                entry["levels"] = strays(pixels, first[0])
                found.setdefault((source, name), []).append(entry)
    rows = []
    for (source, name), entries in found.items():
        default = found[source, "Pillow"]
        right, before = (
            np.array([entry["right"] for entry in values]) for values in (entries, default)
        )
        rows.append(
            {
                "images": source,
                "way": name,
                "count": len(entries),
                "symbols_changed": statistics.mean(entry["changed"] for entry in entries),
                "levels_apart": statistics.mean(entry["levels"] for entry in entries),
                "bytes": statistics.mean(entry["bytes"] for entry in entries),
                "more_bytes": sum(entry["bytes"] for entry in entries)
                / sum(entry["bytes"] for entry in default)
                - 1,
                "top1": float(right.mean()),
                "lost": int((before & ~right).sum()),
                "won": int((right & ~before).sum()),
                "top1_change": paired(right, before),
            }
        )
    return rows


def text(times: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> str:
    lines = [
        "| JPEG | way | decoded at | decode ms | with resize ms | times faster (quartiles) |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in times:
        ratio = "{median:.2f} ({quartile_low:.2f} to {quartile_high:.2f})".format(
            **row["times_faster"]
        )
        lines.append(
            f"| {row['width']}x{row['height']} | {row['way']} | {row['decoded'][0]}x{row['decoded'][1]} | {row['decode_ms']:.1f} | "
            f"{row['total_ms']:.1f} | {ratio} |"
        )
    if accuracy:
        lines += [
            "",
            "| images | way | levels apart | symbols changed | bytes | top-1 | lost, won | change, 95 % interval |",
        ]
        lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for row in accuracy:
        change = "{mean:+.2%}, {low:+.2%} to {high:+.2%}".format(**row["top1_change"])
        lines.append(
            f"| {row['count']} {row['images']} | {row['way']} | {row['levels_apart']:.2f} | {row['symbols_changed']:.2%} | "
            f"{row['bytes']:.1f} ({row['more_bytes']:+.2%}) | {row['top1']:.2%} | {row['lost']}, {row['won']} | {change} |"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="measure accuracy too: one folder of images a class",
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        default=400,
        metavar="N",
        help="so many of them, taken evenly (default: 400)",
    )
    parser.add_argument(
        "--enlarged",
        type=image_size,
        default="1792x1344",
        metavar="WxH",
        help="what they are enlarged to (default: 1792x1344)",
    )
    parser.add_argument(
        "--runs",
        type=number(int, 2, 1_000_000),
        default=40,
        metavar="N",
        help="timed runs of each way (default: 40)",
    )
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help="of the graphs (default: one a core)",
    )
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/jpeg.json")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    width, _, height = args.enlarged.partition("x")
    try:
        times = measure_time(args.runs)
        accuracy = (
            measure_accuracy(args.data, args.images, (int(width), int(height)), args.threads)
            if args.data
            else []
        )
    except (BenchmarkError, EdgeCloudError, ValueError, OSError) as error:
        print(f"jpeg: {error}", file=sys.stderr)
        return 1
    result = {
        "benchmark": "jpeg",
        "machine": describe(args.threads),
        "commit": commit(),
        "runs": args.runs,
        "times": times,
    }
    result |= {"accuracy": accuracy}
    if args.keep:
        write_atomically(
            PROJECT / "benchmarks" / "results" / "jpeg.json",
            (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(),
        )
    print(json.dumps(result, indent=1, allow_nan=False) if args.json else text(times, accuracy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
