"""What `edge-encode --fast-jpeg` saves and changes.

    python benchmarks/jpeg.py [--data DIR] [--images N] [--enlarged WxH] [--json] [--keep]

The option decodes large JPEGs at a fraction of their size.

Time: two JPEGs of the demo's picture, 1920x1080 and 4000x3000, are decoded and resized to
224x224 by every decoder in turn, in one thread, in CPU time. Accuracy, with --data (a folder of
images for each class): each image as it is, and enlarged and saved as a JPEG, since such sets
have no photographs of the usual size. What is counted is how its symbols, the bytes of its
feature file and its class differ from the default's.

The decoders are Pillow at full size, the default; `--fast-jpeg`, which is Pillow's Image.draft
to no less than 512 pixels a side; the same to 256; and simplejpeg at full size and at a
fraction, where it is installed.

Always holds: every decoder's pixels are compared with the default's, and a mean deviation of
more than 12 levels stops the benchmark.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.accuracy import labelled_images
from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    add_threads_option,
    as_json,
    header,
    image_size,
    markdown,
    new_parser,
    width_and_height,
    write_record,
)
from benchmarks.shares import paired
from benchmarks.timing import ratios, show
from runtime import CloudDecoder, EdgeEncoder
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import FAST_SIDE, load_image, preprocess
from runtime.options import number

SIZES = ((1920, 1080), (4000, 3000))
MAX_DEVIATION = 12.0  # levels, on average
DEFAULT, FAST = "Pillow", f"Pillow, {FAST_SIDE} at least (--fast-jpeg)"
AS_THEY_ARE = "as they are"
Decoder = Callable[[bytes], Image.Image]


def drafted(data: bytes, side: int) -> Image.Image:
    """A JPEG, decoded by Pillow to no less than `side` pixels a side."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, (side, side))
    image.load()
    return image


def decoders() -> dict[str, Decoder]:
    """From a JPEG's bytes to an image, by name, the default first."""
    found: dict[str, Decoder] = {
        DEFAULT: lambda data: load_image(io.BytesIO(data)),
        FAST: lambda data: load_image(io.BytesIO(data), fast_jpeg=True),
        "Pillow, 256 at least": lambda data: drafted(data, 256),
    }
    if not find_spec("simplejpeg"):
        return found
    from simplejpeg import decode_jpeg

    def reduced(side: int) -> Decoder:
        fast = {"min_height": side, "min_width": side, "fastdct": True, "fastupsample": True}
        return lambda data: Image.fromarray(decode_jpeg(data, "RGB", **fast))

    return found | {
        "simplejpeg": lambda data: Image.fromarray(decode_jpeg(data, "RGB")),
        **{f"simplejpeg, {side} at least": reduced(side) for side in (FAST_SIDE, 256)},
    }


def as_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    """The image resized to (width, height) and saved at quality 90."""
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def deviation(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Mean absolute difference in levels. Raises BenchmarkError for one above MAX_DEVIATION."""
    mean = float(np.abs(found.astype(np.int16) - expected).mean())
    if not mean <= MAX_DEVIATION:
        raise BenchmarkError(f"two decoders give images that differ by {mean:.1f} levels")
    return mean


def measure_time(runs: int) -> list[dict[str, Any]]:
    """A row for each size and decoder: CPU milliseconds to decode, and to decode and resize."""
    rows = []
    for width, height in SIZES:
        data = as_jpeg(Image.open(PICTURE), (width, height))
        expected = preprocess(load_image(io.BytesIO(data)))
        decode_ms: dict[str, list[float]] = {name: [] for name in decoders()}
        total_ms: dict[str, list[float]] = {name: [] for name in decoders()}
        sizes, deviations = {}, {}
        for _ in range(runs):
            for name, decode in decoders().items():
                start = time.process_time()
                image = decode(data)
                decoded = time.process_time()
                pixels = preprocess(image)
                end = time.process_time()
                decode_ms[name].append(1e3 * (decoded - start))
                total_ms[name].append(1e3 * (end - start))
                sizes[name], deviations[name] = image.size, deviation(pixels, expected)
        rows += [
            {
                "way": name,
                "width": width,
                "height": height,
                "file_bytes": len(data),
                "decoded": sizes[name],
                "decode_ms": statistics.median(decode_ms[name]),
                "total_ms": statistics.median(total_ms[name]),
                "times_faster": ratios(total_ms[DEFAULT], total_ms[name]),
                "levels_apart": deviations[name],
            }
            for name in decode_ms
        ]
    return rows


def measure_accuracy(
    data: Path, count: int, size: tuple[int, int], threads: int
) -> list[dict[str, Any]]:
    """A row for each decoder, with the images as they are and enlarged: what differs."""
    encoder, decoder = EdgeEncoder(threads=threads), CloudDecoder(threads=threads)
    images = labelled_images(data, decoder.labels, count)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path, label in tqdm(images, unit="image", disable=not sys.stderr.isatty()):
        files = {
            AS_THEY_ARE: path.read_bytes(),
            f"enlarged to {size[0]}x{size[1]}": as_jpeg(load_image(path).convert("RGB"), size),
        }
        for source, file in files.items():
            for name, entry in _entries(encoder, decoder, file, label).items():
                found.setdefault((source, name), []).append(entry)
    return [
        _accuracy_row(source, name, entries, found[source, DEFAULT])
        for (source, name), entries in found.items()
    ]


def _entries(
    encoder: EdgeEncoder, decoder: CloudDecoder, file: bytes, label: int
) -> dict[str, dict[str, Any]]:
    """What comes of one JPEG by each decoder."""
    classes: dict[bytes, int] = {}  # equal feature files are classified once
    entries: dict[str, dict[str, Any]] = {}
    expected: tuple[NDArray[np.uint8], NDArray[np.int16]] | None = None
    for name, decode in decoders().items():
        pixels = preprocess(decode(file))
        symbols = encoder.symbols(pixels[None])[0]
        expected = expected or (pixels, symbols)
        packed = encoder.encode_symbols(symbols, *pixels.shape[:2])
        if packed not in classes:
            classes[packed] = int(decoder.logits([packed])[0].argmax())
        entries[name] = {
            "bytes": len(packed),
            "correct": classes[packed] == label,
            "changed": float((symbols != expected[1]).mean()),
            "levels": deviation(pixels, expected[0]),
        }
    return entries


def _accuracy_row(
    source: str, name: str, entries: list[dict[str, Any]], default: list[dict[str, Any]]
) -> dict[str, Any]:
    correct, before = (np.array([one["correct"] for one in some]) for some in (entries, default))
    size, size_before = (
        statistics.mean(one["bytes"] for one in some) for some in (entries, default)
    )
    return {
        "images": source,
        "way": name,
        "count": len(entries),
        "symbols_changed": statistics.mean(one["changed"] for one in entries),
        "levels_apart": statistics.mean(one["levels"] for one in entries),
        "bytes": size,
        "more_bytes": size / size_before - 1,
        "top1": float(correct.mean()),
        "lost": int((before & ~correct).sum()),
        "won": int((correct & ~before).sum()),
        "top1_change": paired(correct, before),
    }


def time_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of each size and decoder, as a Markdown table."""
    heads = ["JPEG", "decoder", "decoded at", "decode ms", "with resize ms"]
    heads += ["times faster (quartiles)"]
    cells = [
        [
            f"{row['width']}x{row['height']}",
            row["way"],
            f"{row['decoded'][0]}x{row['decoded'][1]}",
            f"{row['decode_ms']:.1f}",
            f"{row['total_ms']:.1f}",
            show(row["times_faster"], ".2f"),
        ]
        for row in rows
    ]
    return markdown(heads, cells, align="ll")


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """What differs from the default, as a Markdown table."""
    heads = ["images", "decoder", "deviation, levels", "symbols changed", "bytes", "top-1"]
    heads += ["lost, won", "change, 95 % interval"]
    cells = [
        [
            f"{row['count']} {row['images']}",
            row["way"],
            f"{row['levels_apart']:.2f}",
            f"{row['symbols_changed']:.2%}",
            f"{row['bytes']:.1f} ({row['more_bytes']:+.2%})",
            f"{row['top1']:.2%}",
            f"{row['lost']}, {row['won']}",
            "{mean:+.2%}, {low:+.2%} to {high:+.2%}".format(**row["top1_change"]),
        ]
        for row in rows
    ]
    return markdown(heads, cells, align="ll")


def text(record: dict[str, Any]) -> str:
    """Both tables; accuracy if it was measured."""
    tables = [time_table(record["times"])]
    tables += [accuracy_table(record["accuracy"])] if record["accuracy"] else []
    return "\n\n".join(tables)


def fast_jpeg_times(record: dict[str, Any]) -> str:
    """Pillow's decoders alone, for the page that says when to use --fast-jpeg."""
    return time_table([row for row in record["times"] if row["way"].startswith(DEFAULT)])


def fast_jpeg_accuracy(record: dict[str, Any]) -> str:
    """The same of accuracy, on the enlarged images alone."""
    rows = [row for row in record["accuracy"] if row["images"] != AS_THEY_ARE]
    return accuracy_table([row for row in rows if row["way"].startswith(DEFAULT)])


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="measure accuracy too, on a folder of images for each class",
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        default=400,
        metavar="N",
        help="how many of them, evenly spread (default: 400)",
    )
    parser.add_argument(
        "--enlarged",
        type=image_size,
        default="1792x1344",
        metavar="WxH",
        help="what they are enlarged to (default: 1792x1344)",
    )
    add_runs_option(parser, "decoder", default=40, least=2)
    add_threads_option(parser, "the graphs")
    add_output_options(parser, keep="jpeg.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    size = width_and_height(args.enlarged)
    try:
        record = {**header("jpeg", args.threads), "runs": args.runs}
        record["times"] = measure_time(args.runs)
        record["accuracy"] = []
        if args.data:
            record["accuracy"] = measure_accuracy(args.data, args.images, size, args.threads)
        if args.keep:
            write_record(RESULTS / "jpeg.json", record)
    except (BenchmarkError, EdgeCloudError, ValueError, OSError) as error:
        print(f"jpeg: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
