"""Load on cloud-serve at a fixed rate: what it answers, how soon, what it refuses, and what memory it takes.

    python benchmarks/serving.py [--images DIR] [--seconds N] [--soak SECONDS] [--no-reference] [--json] [--keep]

cloud-serve runs in a process of its own, as the command starts it. First the cloud graph alone, at several batch sizes, and the
service under as many requests at a time as keep it busy take turns: the best of the first and the capacity
that is the second, and their ratio. Then requests at 0.5, 0.9, 1.2 and 2 times the capacity, then a soak at 0.9 times,
in which every twentieth request is a damaged file. All but the soak once more in int8, where the
bundle has that. Beside it, a plain service as one would build it with
FastAPI, torch and CompressAI (reference_server.py), under the same loads of its own capacity.

Loads are open: requests are sent when their time has come, whatever has been answered, at intervals of a
Poisson process, and a latency counts from that time (no coordinated omission). Goodput counts right answers that came while the load
lasted. The generator shares the cores with the server and is not pinned; its share of their time, and how late it sent, are
recorded.

Always holds: a 200 has the class that CloudDecoder gives, whatever else comes is a refusal with a code, and nothing
hangs; else the benchmark stops.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import commit, cores, describe
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.codec.bundle import Bundle, default_bundle
from runtime.engine.registry import candidates
from runtime.errors import EdgeCloudError
from runtime.images.find import find
from runtime.images.preprocess import preprocess
from runtime.options import number

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
LOADS = (0.5, 0.9, 1.2, 2.0)
BATCHES = (1, 2, 4, 8, 16)
IN_FLIGHT = 16  # two of the service's batches: one that runs and one that waits
IMAGES = 64
HANG = 20.0  # seconds after which a request counts as never answered; cloud-serve's own bounds are far below
PATIENCE = (
    120.0  # seconds that a capacity may take longer than it was to, until there are answers enough
)
DAMAGED_EVERY = 20
TIMELY = 3.0  # seconds, of an answer that is of use: cloud-serve's deadline, and a graph call
INT8 = "cloud-serve, int8"
SERVICES = ("cloud-serve", INT8, "reference")

T = TypeVar("T")


class BenchmarkError(RuntimeError):
    """An output is wrong, or something that the benchmark needs is missing."""


class Sample(NamedTuple):
    """What is posted, and the class that must come; None for a damaged file, which must be refused."""

    data: bytes
    class_index: int | None


class Shot(NamedTuple):
    """One request: when it was to be sent, was sent and was answered, in seconds; `code` is 200 or the refusal's."""

    intended: float
    sent: float
    done: float
    status: int
    code: str


@dataclass
class Target:
    """A server that is measured."""

    name: str
    url: str
    pid: int
    log: Path


def pictures(folder: str | None) -> list[NDArray[np.uint8]]:
    """IMAGES pixel arrays uint8 [224, 224, 3]: of the folder, or places of the demo's picture."""
    if folder is not None:
        files = [file for file, _ in find([folder])]
        return [preprocess(file) for file in files[:: max(1, len(files) // IMAGES)][:IMAGES]]
    picture = np.asarray(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"))
    return [
        np.ascontiguousarray(picture[10 * row :, 10 * column :][:224, :224])
        for row in range(8)
        for column in range(8)
    ]


def samples_of(
    bundle: str | None, images: Sequence[NDArray[np.uint8]], precision: str
) -> tuple[list[Sample], CloudDecoder]:
    """Feature files, and what CloudDecoder says of each."""
    encoder, decoder = (
        EdgeEncoder(bundle, provider="cpu", precision="fp32"),
        CloudDecoder(bundle, provider="cpu", precision=precision),
    )
    files = [
        encoder.encode_symbols(encoder.symbols(pixels[None])[0], *pixels.shape[:2])
        for pixels in images
    ]
    return [Sample(data, decoder.classify(data, 1)[0].class_index) for data in files], decoder


def damaged(sample: Sample) -> Sample:
    data = bytearray(sample.data)
    data[len(data) // 2] ^= 0x40
    return Sample(bytes(data), None)


@contextlib.contextmanager
def serving(name: str, command: list[str]) -> Iterator[Target]:
    """A server process, from its line that it listens to its end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            environment = os.environ | {"PYTHONPATH": str(PROJECT)}
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
            )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().decode().split()
            if not words:
                raise BenchmarkError(f"{name} does not start: {log.read_text()[-1000:]}")
            yield Target(name, words[-1], process.pid, log)
            if process.poll() is not None:
                raise BenchmarkError(
                    f"{name} ended with status {process.returncode}: {log.read_text()[-1000:]}"
                )
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def resident_mb(pid: int) -> float:
    """Memory that a process holds now."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def processor_seconds(pid: int | str = "self") -> float:
    """Time that a process has used of all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def post(
    session: aiohttp.ClientSession, target: Target, sample: Sample, intended: float
) -> Shot:
    """Send one file and check the answer. Raises BenchmarkError for one that is wrong, no refusal, or does not come."""
    sent = time.perf_counter()
    try:
        async with session.post(f"{target.url}/v1/classify", data=sample.data) as response:
            content = json.loads(await response.read())
            status = response.status
    except TimeoutError:
        raise BenchmarkError(f"{target.name} gave no answer in {HANG:g} seconds") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise BenchmarkError(f"{target.name} gave no answer that can be read: {error!r}") from error
    done = time.perf_counter()
    if status == 200:
        found = (
            content["classes"][0]["class_index"] if "classes" in content else content["class_index"]
        )
        if found != sample.class_index:
            raise BenchmarkError(
                f"{target.name} answers class {found}, CloudDecoder gives {sample.class_index}"
            )
        return Shot(intended, sent, done, status, "200")
    expected = (429, 503, 504) if sample.class_index is not None else (400, 429, 503, 504)
    if status not in expected or "code" not in content:
        raise BenchmarkError(
            f"{target.name} answers {status} {content}, which is no refusal that was due"
        )
    return Shot(intended, sent, done, status, f"{status} {content['code']}")


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(HANG)
    )


def run(load: Coroutine[Any, Any, T]) -> T:
    """Raises the first BenchmarkError of a load's requests as itself."""
    try:
        return asyncio.run(load)
    except ExceptionGroup as group:
        errors, others = group.split(BenchmarkError)
        if errors is None or others is not None:
            raise
        raise errors.exceptions[0] from None


async def closed_load(
    target: Target, samples: Sequence[Sample], seconds: float, in_flight: int
) -> float:
    """Right answers a second with so many requests under way at any time."""
    end = time.perf_counter() + seconds
    turn = random.Random(0)
    right: list[float] = []

    async def client(client: aiohttp.ClientSession) -> None:
        while (now := time.perf_counter()) < end or (
            len(right) < 3 * in_flight and now < end + PATIENCE
        ):
            shot = await post(client, target, turn.choice(samples), now)
            if shot.status == 200:
                right.append(shot.done)
            else:
                await asyncio.sleep(0.02)

    async with session() as shared, asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(client(shared))
    # Answers come a batch at a time: the slope of their number over time is steadier than their number in a window. The first come
    # while batches fill, the last while they empty.
    steady = right[in_flight : max(2 * in_flight, len(right) - in_flight)]
    if len(steady) < in_flight:
        raise BenchmarkError(
            f"{target.name} gave {len(right)} answers in {seconds + PATIENCE:g} seconds, too few to know its capacity"
        )
    return float(np.polyfit(steady, np.arange(len(steady)), 1)[0])


async def open_load(
    target: Target,
    samples: Sequence[Sample],
    rate: float,
    seconds: float,
    memory: list[tuple[float, float]] | None = None,
) -> list[Shot]:
    """Requests at intervals of a Poisson process of that rate a second; `memory` gets (seconds, MB of the server), once a second."""
    turn = random.Random(1)
    shots: list[Shot] = []
    start = time.perf_counter() + 0.1

    async def one(client: aiohttp.ClientSession, sample: Sample, intended: float) -> None:
        shots.append(await post(client, target, sample, intended))

    async def watch() -> None:
        while memory is not None:
            memory.append(
                (round(time.perf_counter() - start, 1), round(resident_mb(target.pid), 1))
            )
            await asyncio.sleep(1)

    async with session() as client, asyncio.TaskGroup() as group:
        watching = asyncio.ensure_future(watch())
        intended = start
        for number in range(1, sys.maxsize):
            intended += turn.expovariate(rate)
            if intended >= start + seconds:
                break
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            sample = turn.choice(samples)
            group.create_task(
                one(
                    client,
                    damaged(sample)
                    if memory is not None and number % DAMAGED_EVERY == 0
                    else sample,
                    intended,
                )
            )
        await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
        watching.cancel()
    return shots


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and high percentiles."""
    if not seconds:
        return None
    values = 1e3 * np.percentile(seconds, (50, 95, 99, 100))
    return {
        name: round(float(value), 1)
        for name, value in zip(("p50", "p95", "p99", "most"), values, strict=True)
    }


def load_row(
    target: Target, samples: Sequence[Sample], load: float, capacity: float, seconds: float
) -> dict[str, Any]:
    """One open load, and what came of it."""
    own, servers = processor_seconds(), processor_seconds(target.pid)
    begin = time.perf_counter()
    shots = run(open_load(target, samples, load * capacity, seconds))
    wall = time.perf_counter() - begin
    row = describe_shots(shots, seconds)
    return {
        "load": load,
        "rate": round(load * capacity, 2),
        **row,
        "goodput_of_capacity": round(row["goodput"] / capacity, 3),
        "generator_share_of_cores": round((processor_seconds() - own) / wall / cores(), 4),
        "server_share_of_cores": round(
            (processor_seconds(target.pid) - servers) / wall / cores(), 3
        ),
    }


def describe_shots(shots: Sequence[Shot], seconds: float) -> dict[str, Any]:
    start = min(shot.intended for shot in shots)
    right = [shot for shot in shots if shot.status == 200]
    refused = [shot for shot in shots if shot.status not in (200, 400)]
    timely = sum(
        shot.done < start + seconds and shot.done - shot.intended <= TIMELY for shot in right
    )
    return {
        "seconds": seconds,
        "sent": len(shots),
        "answers": dict(Counter(shot.code for shot in shots)),
        "throughput": round(sum(shot.done < start + seconds for shot in right) / seconds, 2),
        "goodput": round(timely / seconds, 2),
        "right_ms": milliseconds([shot.done - shot.intended for shot in right]),
        "refused_ms": milliseconds([shot.done - shot.intended for shot in refused]),
        "refused_in_50_ms": round(
            sum(shot.done - shot.intended <= 0.05 for shot in refused) / len(refused), 4
        )
        if refused
        else None,
        "sent_late_ms": milliseconds([shot.sent - shot.intended for shot in shots]),
    }


def graph_rates(
    decoder: CloudDecoder, symbols: NDArray[np.int16], seconds: float
) -> dict[int, float]:
    """Images a second of the cloud graph alone, by batch size, which take turns."""
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[BATCHES[-1]]) < 2:
        for batch, found in times.items():
            stack = np.ascontiguousarray(symbols[:batch])
            start = time.perf_counter()
            decoder.logits_of_symbols(stack)
            found.append((time.perf_counter() - start) / batch)
    return {batch: 1 / float(np.median(found)) for batch, found in times.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = (round(float(value), 3) for value in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "quartile_low": low, "quartile_high": high}


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
    """cloud-serve: capacity beside the graph alone, the loads, the soak if that has any seconds."""
    samples, decoder = samples_of(args.bundle, images, precision)
    symbols = np.stack([decoder.symbols(sample.data) for sample in samples])
    command = [
        "-m",
        "runtime.cli.cloud_serve",
        "--port",
        "0",
        *(["--bundle", args.bundle] if args.bundle else []),
    ]
    command += ["--max-batch", str(args.max_batch)] if args.max_batch else []
    command += ["--provider", "cpu", "--precision", precision]
    with serving(name, command) as target:
        graphs, capacities = [], []
        for turn in range(args.turns):
            say(f"capacity of {name}, turn {turn + 1} of {args.turns}")
            graphs.append(graph_rates(decoder, symbols, args.seconds / 4))
            capacities.append(run(closed_load(target, samples, args.seconds / 4, IN_FLIGHT)))
        rates = {
            batch: round(float(np.median([graph[batch] for graph in graphs])), 2)
            for batch in BATCHES
        }
        best = max(rates, key=rates.__getitem__)
        capacity = float(np.median(capacities))
        result: dict[str, Any] = {
            "engine": str(decoder.engine.choice),
            "bytes": round(float(np.mean([len(sample.data) for sample in samples]))),
            "graph_images_per_second": rates,
            "best_batch": best,
            "capacity": round(capacity, 2),
            "capacity_of_graph": spread(
                [
                    found / max(graph.values())
                    for found, graph in zip(capacities, graphs, strict=True)
                ]
            ),
            "capacity_in_flight": IN_FLIGHT,
        }
        result["loads"] = []
        for load in LOADS:
            say(f"{name} at {load:g} times its capacity of {capacity:.1f} images a second")
            result["loads"].append(load_row(target, samples, load, capacity, args.seconds))
        if soak:
            say(f"soak, {soak:g} seconds")
            memory: list[tuple[float, float]] = []
            shots = run(open_load(target, samples, 0.9 * capacity, soak, memory))
            result["soak"] = {
                "load": 0.9,
                **describe_shots(shots, soak),
                "memory": memory_row(memory),
            }
    return result


def measure_reference(
    args: argparse.Namespace, images: Sequence[NDArray[np.uint8]]
) -> dict[str, Any]:
    """The reference under the same loads of its own capacity, which one request at a time per core keeps busy."""
    from benchmarks.latency import reference_pipelines
    from benchmarks.reference_server import classify, load

    model = load()
    encode = reference_pipelines(model, cores())["torch"]
    streams = [encode(pixels)[0] for pixels in images]
    samples = [Sample(stream, classify(model, stream)) for stream in streams]
    with serving("the reference", ["benchmarks/reference_server.py", "--port", "0"]) as target:
        capacity = run(closed_load(target, samples, args.seconds / 2, cores()))
        result: dict[str, Any] = {
            "bytes": round(float(np.mean(list(map(len, streams))))),
            "capacity": round(capacity, 2),
            "loads": [],
        }
        for load_of_capacity in LOADS:
            say(
                f"the reference at {load_of_capacity:g} times its capacity of {capacity:.1f} images a second"
            )
            # Nothing bounds its queue: at twice its capacity it is behind by the time that the load has lasted.
            seconds = min(args.seconds, HANG / 2)
            result["loads"].append(load_row(target, samples, load_of_capacity, capacity, seconds))
    return result


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    """The loads as a Markdown table."""
    heads = [
        "",
        "load",
        "images/s",
        "right/s",
        "of capacity",
        "p50 ms",
        "p95",
        "p99",
        "refused",
        "refusal p50 ms",
        "p99",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for name in SERVICES:
        for row in result.get(name, {}).get("loads", ()):
            refused = sum(count for code, count in row["answers"].items() if code != "200")
            right, refusal = row["right_ms"] or {}, row["refused_ms"] or {}
            cells = [
                name,
                f"{row['load']:g}",
                f"{row['rate']:.1f}",
                f"{row['goodput']:.1f}",
                f"{row['goodput_of_capacity']:.0%}",
            ]
            cells += [f"{right.get(key, float('nan')):.0f}" for key in ("p50", "p95", "p99")]
            cells += [
                f"{refused / row['sent']:.0%}",
                *(f"{refusal[key]:.1f}" if refusal else "-" for key in ("p50", "p99")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    lines = []
    for name in ("cloud-serve", INT8):
        if not (ours := result.get(name)):
            continue
        share = ours["capacity_of_graph"]
        rates = ", ".join(
            f"{rate:.1f}/s at {batch}" for batch, rate in ours["graph_images_per_second"].items()
        )
        lines.append(
            f"{name}: capacity {ours['capacity']:.1f} images/s, {share['median']:.1%} ({share['quartile_low']:.1%} to "
            f"{share['quartile_high']:.1%}) of the cloud graph alone at its best batch, {ours['best_batch']} ({ours['engine']}: {rates})"
        )
    if reference := result.get("reference"):
        lines.append(f"reference: capacity {reference['capacity']:.1f} images/s")
    if soak := result["cloud-serve"].get("soak"):
        memory = soak["memory"]
        lines.append(
            f"soak of {soak['seconds']:g} s at {soak['load']:g} times capacity: {soak['sent']} requests, {soak['answers']}; memory "
            f"{memory['first_quarter_mb']:.0f} MB in the first quarter, {memory['last_quarter_mb']:.0f} in the last, "
            f"{memory['slope_mb_per_hour']:+.1f} MB an hour over the second half"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], file: Path, title: str) -> None:
    """Latency and goodput against load, and memory over the soak, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    latency, goodput, memory = figure.subplots(1, 3)
    for name, line in zip(SERVICES, ("-", "--", ":"), strict=True):
        rows = result.get(name, {}).get("loads", ())
        for index, key in enumerate(("p50", "p95", "p99")):
            found = [(row["load"], row["right_ms"][key]) for row in rows if row["right_ms"]]
            latency.plot(
                *zip(*found, strict=True), f"{line}o", color=f"C{index}", label=f"{name}, {key}"
            ) if found else None
        if rows:
            goodput.plot(
                [row["load"] for row in rows],
                [row["goodput"] for row in rows],
                f"{line}o",
                label=name,
            )
    refused = [
        (row["load"], row["refused_ms"]["p99"])
        for row in result["cloud-serve"]["loads"]
        if row["refused_ms"]
    ]
    if refused:
        latency.plot(
            *zip(*refused, strict=True), "-x", color="black", label="cloud-serve, refusals' p99"
        )
    latency.set(xlabel="load, times capacity", ylabel="ms from the intended time", yscale="log")
    goodput.set(
        xlabel="load, times capacity", ylabel="right answers in time a second", ylim=(0, None)
    )
    soak = result["cloud-serve"].get("soak")
    if soak:
        memory.plot(*zip(*soak["memory"]["samples"], strict=True))
        memory.set(xlabel="seconds of soak", ylabel="MB held by cloud-serve", ylim=(0, None))
    for axes in (latency, goodput):
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="real images (default: places of the demo's picture)"
    )
    parser.add_argument(
        "--seconds",
        type=number(float, 2, 600),
        default=60,
        metavar="N",
        help="each load lasts (default: 60)",
    )
    parser.add_argument(
        "--turns",
        type=number(int, 1, 50),
        default=5,
        metavar="N",
        help="of graph and capacity, a quarter of --seconds each (default: 5)",
    )
    parser.add_argument(
        "--soak",
        type=number(float, 0, 3600),
        default=0,
        metavar="SECONDS",
        help="memory over so long a load; 600 for the record (default: none)",
    )
    parser.add_argument(
        "--max-batch",
        type=number(int, 1, 1024),
        metavar="N",
        help="of cloud-serve (default: its own)",
    )
    parser.add_argument(
        "--no-reference",
        action="store_true",
        help="leave out the service of FastAPI, torch and CompressAI",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few seconds of everything, to see that all is in place",
    )
    parser.add_argument(
        "--keep", action="store_true", help="write benchmarks/results/serving.json and .png"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.smoke:
        args.seconds, args.turns, args.soak = 4.0, 1, 4.0
    machine = describe(cores())
    try:
        images = pictures(args.images)
        result: dict[str, Any] = {
            "benchmark": "serving",
            "machine": machine,
            "commit": commit(),
            "arrivals": "Poisson",
            "seconds": args.seconds,
        }
        result["images"] = len(images)
        result["cloud-serve"] = measure_service(args, images, "cloud-serve", "fp32", args.soak)
        if any(
            choice.precision == "int8"
            for choice in candidates(Bundle.load(args.bundle or default_bundle()), "cloud")
        ):
            result[INT8] = measure_service(args, images, INT8, "int8", 0)
        if not args.no_reference and find_spec("fastapi") and find_spec("compressai"):
            result["reference"] = measure_reference(args, images)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    instructions = ", ".join(machine["instructions"])  # type: ignore[arg-type]
    where = f"{machine['processor']} ({instructions}), {machine['cores']} cores, shared by server and generator"
    if args.keep:
        (RESULTS / "serving.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        draw(result, RESULTS / "serving.png", where)
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return 0
    print(
        f"{where}\n{args.seconds:g} s a load, Poisson arrivals, latencies from the intended time\n"
    )
    print(table(result))
    print(f"\n{summary(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
