"""How much of the machine `edge-encode FOLDER -o FOLDER` puts to use.

    python benchmarks/folders.py [--data DIR] [--images N] [--size WxH] [--workers N] [--rounds N] [--json] [--keep]

Decode, resize, graph, coder and write are measured singly, one image at a time in one thread: their sum in CPU seconds
is what an image costs, and the cores divided by it is the most that the machine can do. The command's own loop over the
whole folder, with its workers, is held against that:

    reached  =  images/s of the whole folder / (cores / CPU seconds of one image, measured singly)
             =  (CPU seconds an image, singly / in the whole folder)  x  (share of the cores' time that was used)

The first factor is lost to work that is done besides, or is slower beside other work, as on two threads of
one core; the second to waiting, for a lock, for the disk, or because others use the machine. Both are
measured in turn, round by round.

Images are JPEGs of noise over shifted copies of the demo's picture, or those of --data.

Always holds: after each round every feature file is compared with the one that the encoder gave before.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks.machine import commit, cores, describe, image_size
from runtime import EdgeEncoder, __version__
from runtime.cli.edge_encode import encode_all
from runtime.codec.bundle import Bundle, default_bundle
from runtime.engine.base import Choice
from runtime.engine.registry import candidates
from runtime.errors import EdgeCloudError
from runtime.files import write_atomically
from runtime.images.find import Job, find, to_files
from runtime.images.preprocess import load_image, preprocess
from runtime.options import number

PROJECT = Path(__file__).resolve().parent.parent
ENGINES = (
    Choice("cpu", "fp32"),
    Choice("cpu", "int8"),
    Choice("openvino", "int8"),
)  # timed where this device and the bundle have them
STAGES = ("decode", "resize", "graph", "coder", "write")


class BenchmarkError(RuntimeError):
    """A feature file is wrong, or missing."""


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """JPEGs, quality 90, no two alike."""
    rng = np.random.default_rng(0)
    picture = np.asarray(
        Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg").resize((width, height))
    ).astype(np.int16)
    for index in range(count):
        noise = rng.integers(-6, 7, (height, width, 1), np.int16)
        pixels = np.roll(picture, rng.integers(width), 1) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / f"{index:05d}.jpg", quality=90
        )


def singly(encoder: EdgeEncoder, image: str, target: str) -> list[float]:
    """CPU seconds of each stage for one image."""
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


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def measure(
    provider: str, precision: str, images: list[str], workers: int, rounds: int, fast_jpeg: bool
) -> dict[str, Any]:
    """A row: an engine, singly and over the whole folder in turn."""
    single = EdgeEncoder(None, 1, None, provider, precision, fast_jpeg)
    whole = EdgeEncoder(None, 1, None, provider, precision, fast_jpeg, workers)
    stages: list[list[float]] = []  # each round's mean by stage
    walls, cpus, reached, kept, used = [], [], [], [], []
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        jobs = to_files(images, [(image, Path(image).name) for image in images], place + "/")
        expected = [single.encode(image) for image in images]
        encode_all(whole, jobs, workers, nowhere)
        check(jobs, expected)
        for _ in range(rounds):
            means = [
                statistics.mean(values)
                for values in zip(*(singly(single, *job) for job in jobs), strict=True)
            ]
            check(jobs, expected)
            wall, cpu = time.perf_counter(), time.process_time()
            encode_all(whole, jobs, workers, nowhere)
            wall, cpu = (
                (time.perf_counter() - wall) / len(jobs),
                (time.process_time() - cpu) / len(jobs),
            )
            check(jobs, expected)
            stages.append(means)
            walls.append(wall)
            cpus.append(cpu)
            reached.append(sum(means) / cores() / wall)
            kept.append(sum(means) / cpu)
            used.append(cpu / wall / cores())
    return {
        "engine": str(whole.engine.choice),
        "workers": workers,
        "stage_cpu_ms": {
            name: 1e3 * statistics.median(values)
            for name, values in zip(STAGES, zip(*stages, strict=True), strict=True)
        },
        "single_cpu_ms": quartiles([1e3 * sum(means) for means in stages]),
        "whole_cpu_ms": quartiles([1e3 * value for value in cpus]),
        "images_a_second": quartiles([1 / value for value in walls]),
        "possible_images_a_second": quartiles([cores() / sum(means) for means in stages]),
        "reached": quartiles(reached),
        "cpu_kept": quartiles(kept),
        "cores_used": quartiles(used),
    }


def table(rows: list[dict[str, Any]]) -> str:
    heads = [
        "engine",
        "workers",
        *(f"{stage} ms" for stage in STAGES),
        "sum ms",
        "possible images/s",
        "images/s",
        "reached (quartiles)",
    ]
    heads += ["CPU singly / whole", "cores used"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for row in rows:
        cells = [
            row["engine"],
            str(row["workers"]),
            *(f"{row['stage_cpu_ms'][stage]:.2f}" for stage in STAGES),
        ]
        cells += [
            f"{row['single_cpu_ms']['median']:.2f}",
            f"{row['possible_images_a_second']['median']:.0f}",
        ]
        cells += [
            f"{row['images_a_second']['median']:.0f}",
            "{median:.0%} ({quartile_low:.0%} to {quartile_high:.0%})".format(**row["reached"]),
        ]
        cells += [f"{row['cpu_kept']['median']:.0%}", f"{row['cores_used']['median']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", metavar="DIR", help="a folder of images (default: some that are made now)"
    )
    parser.add_argument(
        "--images",
        type=number(int, 2, 10_000_000),
        default=200,
        metavar="N",
        help="so many, of a folder taken evenly (default: 200)",
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
        help="a row for each (default: as the command)",
    )
    parser.add_argument(
        "--rounds",
        type=number(int, 2, 100_000),
        default=9,
        metavar="N",
        help="singly and whole in turn, so many times (default: 9)",
    )
    parser.add_argument(
        "--fast-jpeg", action="store_true", help="decode large JPEGs at a fraction of their size"
    )
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/folders.json")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    width, _, height = args.size.partition("x")
    machine = describe(1)
    try:
        there = candidates(Bundle.load(default_bundle()), "edge")
        with tempfile.TemporaryDirectory() as made:
            if not args.data:
                make_images(Path(made), args.images, int(width), int(height))
            images = [image for image, _ in find([args.data or made])]
            images = [
                images[index * len(images) // args.images]
                for index in range(min(args.images, len(images)))
            ]
            size = statistics.mean(Path(image).stat().st_size for image in images)
            rows = []
            for choice in (choice for choice in ENGINES if choice in there):
                for workers in args.workers:
                    print(f"timing {choice}, {workers} workers", file=sys.stderr)
                    rows.append(
                        measure(
                            choice.provider,
                            choice.precision,
                            images,
                            workers,
                            args.rounds,
                            args.fast_jpeg,
                        )
                    )
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"folders: {error}", file=sys.stderr)
        return 1
    what = f"{len(images)} {'images of ' + args.data if args.data else 'JPEGs of ' + args.size}"
    result = {
        "benchmark": "folders",
        "machine": machine,
        "commit": commit(),
        "images": len(images),
        "rounds": args.rounds,
    }
    result |= {
        "size": None if args.data else args.size,
        "mean_file_bytes": size,
        "fast_jpeg": args.fast_jpeg,
        "rows": rows,
    }
    if args.keep:
        write_atomically(
            PROJECT / "benchmarks" / "results" / "folders.json",
            (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(),
        )
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return 0
    print(
        f"{machine['processor']}, {machine['cores']} cores; {what}, {size:,.0f} bytes on average; {args.rounds} rounds\n"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
