"""How much of the machine `edge-encode FOLDER -o FOLDER` puts to use.

    python benchmarks/folders.py [--data DIR] [--images N] [--workers N] [--json] [--keep]

Decode, resize, graph, coder and write are measured one image at a time in one thread. Their sum
in CPU seconds is what an image costs, and the cores divided by it are the most images a second
that the machine can do. The command's own loop over the whole folder, with its workers, is
compared with that:

    reached  =  images/s of the whole folder / (cores / CPU seconds of one image, alone)
             =  (CPU seconds of an image, alone / in the folder) x (share of the cores' time used)

The first factor is below 1 if there is other work, or if the same work is slower beside another
thread. The second is below 1 where threads wait: for a lock, for the disk, or because other
programs use the machine. Both are measured in turn, round by round.

Images are those of --data, or JPEGs of shifted copies of the demo's picture with noise added.

Always holds: after each round, every feature file is compared with the encoder's own.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    as_json,
    header,
    image_size,
    markdown,
    new_parser,
    progress,
    taken_evenly,
    width_and_height,
    write_record,
)
from benchmarks.machine import cores
from benchmarks.timing import quartiles, show
from runtime import EdgeEncoder
from runtime.cli.edge_encode import encode_all
from runtime.codec.bundle import Bundle, default_bundle
from runtime.engine.base import Choice
from runtime.engine.registry import candidates
from runtime.errors import EdgeCloudError
from runtime.files import write_atomically
from runtime.images.find import Job, find, to_files
from runtime.images.preprocess import load_image, preprocess
from runtime.options import number

# Timed where this device and the bundle have them.
ENGINES = (Choice("cpu", "fp32"), Choice("cpu", "int8"), Choice("openvino", "int8"))
STAGES = ("decode", "resize", "graph", "coder", "write")


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEGs of quality 90, no two alike."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.open(PICTURE).resize((width, height))).astype(np.int16)
    for index in range(count):
        noise = rng.integers(-6, 7, (height, width, 1), np.int16)
        pixels = np.roll(picture, rng.integers(width), 1) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / f"{index:05d}.jpg", quality=90
        )


def stage_seconds(encoder: EdgeEncoder, image: str, target: str) -> list[float]:
    """CPU seconds of each of the STAGES for one image."""
    clock = [time.process_time()]
    decoded = load_image(image, encoder.fast_jpeg)
    clock.append(time.process_time())
    pixels = preprocess(decoded)
    clock.append(time.process_time())
    symbols = encoder.symbols(pixels[None])[0]
    clock.append(time.process_time())
    data = encoder.encode_symbols(symbols, *pixels.shape[:2])
    clock.append(time.process_time())
    write_atomically(target, data)
    clock.append(time.process_time())
    return [after - before for before, after in itertools.pairwise(clock)]


def check(jobs: list[Job], expected: list[bytes]) -> None:
    """Compare all feature files, and remove them. Raises BenchmarkError."""
    for (image, target), data in zip(jobs, expected, strict=True):
        try:
            if Path(target).read_bytes() != data:
                raise BenchmarkError(f"{target} is not the feature file of {image}")
            Path(target).unlink()
        except FileNotFoundError as error:
            raise BenchmarkError(f"{image} has no feature file") from error


def measure(
    choice: Choice, images: list[str], workers: int, rounds: int, fast_jpeg: bool
) -> dict[str, Any]:
    """The record's row of an engine: one image at a time, and the whole folder, in turn."""
    one, whole = (
        EdgeEncoder(None, 1, None, choice.provider, choice.precision, fast_jpeg, count)
        for count in (1, workers)
    )
    stages: list[list[float]] = []  # each round's mean of each stage
    walls: list[float] = []  # seconds an image of the whole folder
    cpus: list[float] = []  # CPU seconds an image of the whole folder
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        jobs = to_files(images, [(image, Path(image).name) for image in images], place + "/")
        expected = [one.encode(image) for image in images]
        encode_all(whole, jobs, workers, nowhere)
        check(jobs, expected)
        for _ in range(rounds):
            each = [stage_seconds(one, *job) for job in jobs]
            check(jobs, expected)
            stages.append([statistics.mean(values) for values in zip(*each, strict=True)])
            wall, cpu = time.perf_counter(), time.process_time()
            encode_all(whole, jobs, workers, nowhere)
            walls.append((time.perf_counter() - wall) / len(jobs))
            cpus.append((time.process_time() - cpu) / len(jobs))
            check(jobs, expected)
    return {"engine": str(whole.engine.choice), "workers": workers, **_row(stages, walls, cpus)}


def _row(stages: list[list[float]], walls: list[float], cpus: list[float]) -> dict[str, Any]:
    """The figures of one row, from each round's seconds."""
    alone = [sum(means) for means in stages]
    medians = [statistics.median(values) for values in zip(*stages, strict=True)]
    return {
        "stage_cpu_ms": {name: 1e3 * value for name, value in zip(STAGES, medians, strict=True)},
        "single_cpu_ms": quartiles([1e3 * value for value in alone]),
        "whole_cpu_ms": quartiles([1e3 * value for value in cpus]),
        "images_a_second": quartiles([1 / value for value in walls]),
        "possible_images_a_second": quartiles([cores() / value for value in alone]),
        "reached": quartiles([a / cores() / w for a, w in zip(alone, walls, strict=True)]),
        "cpu_kept": quartiles([a / c for a, c in zip(alone, cpus, strict=True)]),
        "cores_used": quartiles([c / w / cores() for c, w in zip(cpus, walls, strict=True)]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    heads = ["engine", "workers", *(f"{stage} ms" for stage in STAGES), "sum ms"]
    heads += ["possible images/s", "images/s", "reached (quartiles)"]
    heads += ["CPU alone / in the folder", "cores used"]
    cells = [
        [
            row["engine"],
            str(row["workers"]),
            *(f"{row['stage_cpu_ms'][stage]:.2f}" for stage in STAGES),
            f"{row['single_cpu_ms']['median']:.2f}",
            f"{row['possible_images_a_second']['median']:.0f}",
            f"{row['images_a_second']['median']:.0f}",
            show(row["reached"], ".0%"),
            f"{row['cpu_kept']['median']:.0%}",
            f"{row['cores_used']['median']:.0%}",
        ]
        for row in rows
    ]
    return markdown(heads, cells)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", metavar="DIR", help="a folder of images (default: images that are made now)"
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        default=200,
        metavar="N",
        help="how many images; of a folder, evenly spread (default: 200)",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        default="640x480",
        metavar="WxH",
        help="of images that are made (default: 640x480)",
    )
    parser.add_argument(
        "--workers",
        type=number(int, 1, 1024),
        nargs="+",
        default=[cores() + 1],
        metavar="N",
        help="a row for each number (default: as the command)",
    )
    parser.add_argument(
        "--rounds",
        type=number(int, 2, 100_000),
        default=9,
        metavar="N",
        help="times that both are measured, in turn (default: 9)",
    )
    parser.add_argument(
        "--fast-jpeg", action="store_true", help="decode large JPEGs at a fraction of their size"
    )
    add_output_options(parser, keep="folders.json")
    return parser


def _measure_all(args: argparse.Namespace) -> dict[str, Any]:
    record = header("folders", 1)
    there = candidates(Bundle.load(default_bundle()), "edge")
    with tempfile.TemporaryDirectory() as made:
        if not args.data:
            make_images(Path(made), args.images, *width_and_height(args.size))
        images = taken_evenly([image for image, _ in find([args.data or made])], args.images)
        size = statistics.mean(Path(image).stat().st_size for image in images)
        rows = []
        for choice in (choice for choice in ENGINES if choice in there):
            for workers in args.workers:
                progress(f"timing {choice}, {workers} workers")
                rows.append(measure(choice, images, workers, args.rounds, args.fast_jpeg))
    return {
        **record,
        "images": len(images),
        "rounds": args.rounds,
        "size": None if args.data else args.size,
        "mean_file_bytes": size,
        "fast_jpeg": args.fast_jpeg,
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record = _measure_all(args)
        if args.keep:
            write_record(RESULTS / "folders.json", record)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"folders: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(as_json(record))
        return 0
    found = record["machine"]
    what = f"images of {args.data}" if args.data else f"JPEGs of {args.size}"
    print(
        f"{found['processor']}, {found['cores']} cores; {record['images']} {what}, "
        f"{record['mean_file_bytes']:,.0f} bytes on average; {args.rounds} rounds\n"
    )
    print(table(record["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
