"""Load on cloud-serve: what it answers, how soon, what it refuses, and its memory.

    python benchmarks/serving.py [--images DIR] [--seconds N] [--soak SECONDS] [--json] [--keep]
    python benchmarks/serving.py --draw        # the figure again, from the kept record

cloud-serve runs as a process of its own. First its capacity is measured, under as many requests
at a time as keep it busy, in turn with the cloud graph alone at several batch sizes. Then
requests come at 0.5, 0.9, 1.2 and 2 times that capacity, and, in a soak, at 0.9 times, where
every twentieth is a damaged file. All but the soak is measured in int8 too if the bundle has it,
and on a plain service of FastAPI, torch and CompressAI (reference_server.py) under the same
multiples of its own capacity.

Goodput counts correct answers that came while the load lasted and soon enough to be of use. The
generator (serving_load.py) shares the cores with the server and is not pinned; its share of
their time, and how late it sent, are recorded.

Always holds: every answer is checked; a wrong class, an unexpected refusal, or no answer at all
stops the benchmark.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    PICTURE,
    RESULTS,
    BenchmarkError,
    add_output_options,
    as_json,
    header,
    new_parser,
    progress,
    read_record,
    write_record,
)
from benchmarks.machine import cores, processor_seconds
from benchmarks.reference import reference_pipelines
from benchmarks.serving_load import (
    ANSWER_TIMEOUT,
    Outcome,
    Sample,
    Target,
    closed_load,
    open_load,
    run,
    serving,
)
from benchmarks.serving_report import FP32, INT8, REFERENCE, draw, summary, table, where
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle, default_bundle
from runtime.engine.registry import candidates
from runtime.errors import EdgeCloudError
from runtime.images.find import find
from runtime.images.preprocess import preprocess
from runtime.options import number

LOADS = (0.5, 0.9, 1.2, 2.0)
SOAK_LOAD = 0.9
BATCHES = (1, 2, 4, 8, 16)
IN_FLIGHT = 16  # two of the service's batches: one in the graph and one waiting
IMAGES = 64
USEFUL_SECONDS = (
    3.0  # an answer later than this is of no use: cloud-serve's deadline and a graph call
)


def pictures(folder: str | None) -> list[NDArray[np.uint8]]:
    """IMAGES pixel arrays uint8 [224, 224, 3]: of the folder, or crops of the demo's picture."""
    if folder is not None:
        files = [file for file, _ in find([folder])]
        return [preprocess(file) for file in files[:: max(1, len(files) // IMAGES)][:IMAGES]]
    picture = np.asarray(Image.open(PICTURE))
    return [
        np.ascontiguousarray(picture[10 * row :, 10 * column :][:224, :224])
        for row in range(8)
        for column in range(8)
    ]


def samples_of(
    bundle: str | None, images: Sequence[NDArray[np.uint8]], precision: str
) -> tuple[list[Sample], CloudDecoder]:
    """Feature files with the class that CloudDecoder gives each, and that decoder."""
    encoder = EdgeEncoder(bundle, provider="cpu", precision="fp32")
    decoder = CloudDecoder(bundle, provider="cpu", precision=precision)
    files = [
        encoder.encode_symbols(encoder.symbols(pixels[None])[0], *pixels.shape[:2])
        for pixels in images
    ]
    return [Sample(data, decoder.classify(data, 1)[0].class_index) for data in files], decoder


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th and 99th percentile and the largest, in milliseconds."""
    if not seconds:
        return None
    values = 1e3 * np.percentile(seconds, (50, 95, 99, 100))
    return {
        name: round(float(value), 1)
        for name, value in zip(("p50", "p95", "p99", "most"), values, strict=True)
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of one or more values."""
    low, middle, high = (round(float(value), 3) for value in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def load_row(
    target: Target, samples: Sequence[Sample], load: float, capacity: float, seconds: float
) -> dict[str, Any]:
    """The record's row of one open load of `load` times the capacity, in images a second."""
    own, server = processor_seconds(), processor_seconds(target.pid)
    begin = time.perf_counter()
    outcomes = run(open_load(target, samples, load * capacity, seconds))
    available = (time.perf_counter() - begin) * cores()
    row = describe_outcomes(outcomes, seconds)
    return {
        "load": load,
        "rate": round(load * capacity, 2),
        **row,
        "goodput_of_capacity": round(row["goodput"] / capacity, 3),
        "generator_share_of_cores": round((processor_seconds() - own) / available, 4),
        "server_share_of_cores": round((processor_seconds(target.pid) - server) / available, 3),
    }


def describe_outcomes(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Throughput, goodput and latencies of a load that lasted so many seconds."""
    end = min(one.due for one in outcomes) + seconds
    correct = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status not in (200, 400)]
    in_time = [one for one in correct if one.done < end]
    useful = sum(one.done - one.due <= USEFUL_SECONDS for one in in_time)
    soon = sum(one.done - one.due <= 0.05 for one in refused)
    return {
        "seconds": seconds,
        "sent": len(outcomes),
        "answers": dict(Counter(one.code for one in outcomes)),
        "throughput": round(len(in_time) / seconds, 2),
        "goodput": round(useful / seconds, 2),
        "right_ms": percentiles([one.done - one.due for one in correct]),
        "refused_ms": percentiles([one.done - one.due for one in refused]),
        "refused_in_50_ms": round(soon / len(refused), 4) if refused else None,
        "sent_late_ms": percentiles([one.sent - one.due for one in outcomes]),
    }


def graph_rates(
    decoder: CloudDecoder, symbols: NDArray[np.int16], seconds: float
) -> dict[int, float]:
    """Images a second of the cloud graph alone, by batch size; the sizes take turns."""
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[BATCHES[-1]]) < 2:
        for batch, found in times.items():
            stack = np.ascontiguousarray(symbols[:batch])
            start = time.perf_counter()
            decoder.logits_of_symbols(stack)
            found.append((time.perf_counter() - start) / batch)
    return {batch: 1 / float(np.median(found)) for batch, found in times.items()}


def memory_row(memory: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The server's memory over a soak; the slope is of its second half, by least squares."""
    seconds, held = np.array(memory).T
    half = seconds >= seconds[-1] / 2
    slope = float(np.polyfit(seconds[half], held[half], 1)[0]) if half.sum() > 2 else 0.0
    quarter = seconds[-1] / 4
    return {
        "first_quarter_mb": round(float(np.median(held[seconds <= quarter])), 1),
        "last_quarter_mb": round(float(np.median(held[seconds >= 3 * quarter])), 1),
        "most_mb": round(float(held.max()), 1),
        "slope_mb_per_hour": round(3600 * slope, 2),
        "samples": [list(pair) for pair in memory],
    }


def measure_service(
    args: argparse.Namespace,
    images: Sequence[NDArray[np.uint8]],
    name: str,
    precision: str,
    soak: float,
) -> dict[str, Any]:
    """cloud-serve: its capacity, the loads, and a soak if that has any seconds."""
    samples, decoder = samples_of(args.bundle, images, precision)
    command = ["-m", "runtime.cli.cloud_serve", "--port", "0"]
    command += ["--provider", "cpu", "--precision", precision]
    command += ["--bundle", args.bundle] if args.bundle else []
    command += ["--max-batch", str(args.max_batch)] if args.max_batch else []
    with serving(name, command) as target:
        result = _measure_capacity(args, target, samples, decoder)
        capacity = result["capacity"]
        result["loads"] = []
        for load in LOADS:
            progress(f"{name} at {load:g} times its capacity of {capacity:.1f} images a second")
            result["loads"].append(load_row(target, samples, load, capacity, args.seconds))
        if soak:
            progress(f"soak, {soak:g} seconds")
            memory: list[tuple[float, float]] = []
            outcomes = run(open_load(target, samples, SOAK_LOAD * capacity, soak, memory))
            result["soak"] = {
                "load": SOAK_LOAD,
                **describe_outcomes(outcomes, soak),
                "memory": memory_row(memory),
            }
    return result


def _measure_capacity(
    args: argparse.Namespace, target: Target, samples: Sequence[Sample], decoder: CloudDecoder
) -> dict[str, Any]:
    """What cloud-serve and the cloud graph alone can do, in turn."""
    symbols = np.stack([decoder.symbols(sample.data) for sample in samples])
    graphs: list[dict[int, float]] = []
    capacities: list[float] = []
    for turn in range(args.turns):
        progress(f"capacity of {target.name}, turn {turn + 1} of {args.turns}")
        graphs.append(graph_rates(decoder, symbols, args.seconds / 4))
        capacities.append(run(closed_load(target, samples, args.seconds / 4, IN_FLIGHT)))
    rates = {
        batch: round(float(np.median([graph[batch] for graph in graphs])), 2) for batch in BATCHES
    }
    return {
        "engine": str(decoder.engine.choice),
        "bytes": round(float(np.mean([len(sample.data) for sample in samples]))),
        "graph_images_per_second": rates,
        "best_batch": max(rates, key=rates.__getitem__),
        "capacity": round(float(np.median(capacities)), 2),
        "capacity_of_graph": spread(
            [found / max(graph.values()) for found, graph in zip(capacities, graphs, strict=True)]
        ),
        "capacity_in_flight": IN_FLIGHT,
    }


def measure_reference(
    args: argparse.Namespace, images: Sequence[NDArray[np.uint8]]
) -> dict[str, Any]:
    """The reference under the same multiples of its own capacity, with a request for each core."""
    from benchmarks.reference_server import classify, load

    model = load()
    encode = reference_pipelines(model, cores())["torch"]
    streams = [encode(pixels)[0] for pixels in images]
    samples = [Sample(stream, classify(model, stream)) for stream in streams]
    # Nothing bounds its queue: at twice its capacity the last request waits as long as the load
    # has lasted, which must stay below the time at which it would count as unanswered.
    seconds = min(args.seconds, ANSWER_TIMEOUT / 2)
    with serving("the reference", ["benchmarks/reference_server.py", "--port", "0"]) as target:
        capacity = run(closed_load(target, samples, args.seconds / 2, cores()))
        rows = []
        for multiple in LOADS:
            progress(f"the reference at {multiple:g} times its capacity of {capacity:.1f} images/s")
            rows.append(load_row(target, samples, multiple, capacity, seconds))
    return {
        "bytes": round(float(np.mean(list(map(len, streams))))),
        "capacity": round(capacity, 2),
        "loads": rows,
    }


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="real images (default: crops of the demo's picture)"
    )
    parser.add_argument(
        "--seconds",
        type=number(float, 2, 600),
        default=60,
        metavar="N",
        help="how long each load lasts (default: 60)",
    )
    parser.add_argument(
        "--turns",
        type=number(int, 1, 50),
        default=5,
        metavar="N",
        help="times that graph and capacity are measured, a quarter of --seconds each (default: 5)",
    )
    parser.add_argument(
        "--soak",
        type=number(float, 0, 3600),
        default=0,
        metavar="SECONDS",
        help="length of a load during which memory is watched; 600 for the record (default: none)",
    )
    parser.add_argument(
        "--max-batch",
        type=number(int, 1, 1024),
        metavar="N",
        help="cloud-serve's option (default: its own)",
    )
    parser.add_argument("--no-reference", action="store_true", help="leave the reference out")
    parser.add_argument(
        "--smoke", action="store_true", help="a few seconds of everything, to see that it works"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw serving.png again, from serving.json"
    )
    add_output_options(parser, keep="serving.json and .png")
    return parser


def _measure_all(args: argparse.Namespace) -> dict[str, Any]:
    images = pictures(args.images)
    record = {
        **header("serving", cores()),
        "arrivals": "Poisson",
        "seconds": args.seconds,
        "images": len(images),
    }
    record[FP32] = measure_service(args, images, FP32, "fp32", args.soak)
    choices = candidates(Bundle.load(args.bundle or default_bundle()), "cloud")
    if any(choice.precision == "int8" for choice in choices):
        record[INT8] = measure_service(args, images, INT8, "int8", 0)
    if not args.no_reference and find_spec("fastapi") and find_spec("compressai"):
        record[REFERENCE] = measure_reference(args, images)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    if args.smoke:
        args.seconds, args.turns, args.soak = 4.0, 1, 4.0
    try:
        record = read_record("serving") if args.draw else _measure_all(args)
        if args.keep:
            write_record(RESULTS / "serving.json", record)
        if args.keep or args.draw:
            draw(record, RESULTS / "serving.png")
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(as_json(record))
        return 0
    print(
        f"{where(record)}\n{record['seconds']:g} s a load, latencies from when requests were due\n"
    )
    print(table(record))
    print("", *summary(record), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
