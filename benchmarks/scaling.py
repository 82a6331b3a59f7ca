"""Processor time and bytes of one image at each step of the cloud.

    python benchmarks/scaling.py [--ray] [--requests N] [--batches N...] [--json] [--keep]

Each step is measured in processor time, user and system, of all threads of its process: that is
what has to be bought, and what other programs on the machine change least. The graph runs on one
thread, in each engine that is installed here. HTTP is measured with damaged feature files, which
are refused before they reach a graph: in `cloud-serve` as a process of its own, and with --ray
in a proxy and a replica of Ray Serve.

Feature files are those of crops of the demo's picture; the bytes of one are the mean of the
validation images' record.

Always holds: every answer, of a graph or of a service, is checked; a wrong one stops the
benchmark.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    PICTURE,
    PROJECT,
    RESULTS,
    BenchmarkError,
    add_output_options,
    as_json,
    header,
    markdown,
    new_parser,
    progress,
    read_record,
    write_record,
)
from benchmarks.machine import processor_seconds
from benchmarks.serving_load import serving
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import default_bundle
from runtime.engine.registry import candidates
from runtime.errors import EdgeCloudError
from runtime.options import number
from runtime.tasks.classification import require_finite

CLIENTS = 16
RAY_PORT = 28_917
ROUNDS = 3
CODER_CALLS = 20
MIN_AGREEMENT = 0.9  # of an engine's classes with float32's
IMAGES_A_SECOND = 1_000_000
# What docs/SCALING.md assumes of the cores that are bought.
SHARE_USED = 0.7
USD_PER_CORE_HOUR = 0.04

# The ids of a service's processes, by the name of what they do.
Processes = dict[str, list[int]]


def crops() -> list[NDArray[np.uint8]]:
    """224x224 crops of the demo's picture, uint8 [224, 224, 3]."""
    picture = np.asarray(Image.open(PICTURE))
    return [
        picture[top : top + 224, left : left + 224]
        for top in range(0, 256, 128)
        for left in range(0, 416, 52)
    ]


def own_seconds(work: Callable[[], Any], times: int = 1) -> float:
    """Processor time of one of `times` calls, of all threads of this process."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def measure_graphs(
    bundle: str, files: list[bytes], batches: list[int]
) -> tuple[float, list[dict[str, Any]], NDArray[np.intp]]:
    """Seconds an image of the coder, and of each engine and batch size; the classes of `files`.

    Raises BenchmarkError.
    """
    first = CloudDecoder(bundle, 1, "cpu", "fp32")
    symbols = np.stack([first.symbols(data) for data in files])
    logits = np.concatenate([first.logits_of_symbols(one[None]) for one in symbols])
    classes = require_finite(logits).argmax(1)

    def decode_all() -> None:
        for data in files:
            first.symbols(data)

    coder = min(own_seconds(decode_all, CODER_CALLS) / len(files) for _ in range(ROUNDS))
    rows = []
    for choice in candidates(first.bundle, "cloud"):
        decoder = CloudDecoder(bundle, 1, choice.provider, choice.precision)
        for batch in batches:
            row = _graph_row(decoder, symbols, classes, batch)
            rows.append(row)
            progress(f"  {choice}, batches of {batch}: {1e3 * row['seconds']:.1f} ms an image")
    return coder, rows, classes


def _graph_row(
    decoder: CloudDecoder, symbols: NDArray[np.int16], classes: NDArray[np.intp], batch: int
) -> dict[str, Any]:
    choice = str(decoder.engine.choice)
    stack = np.concatenate([symbols] * -(-batch // len(symbols)))[:batch]
    found = require_finite(decoder.logits_of_symbols(stack)).argmax(1)
    agreed = float((found == np.resize(classes, batch)).mean())
    if not agreed >= MIN_AGREEMENT:
        raise BenchmarkError(
            f"{choice} in batches of {batch} gives other classes: {agreed:.0%} are the same"
        )
    seconds = [own_seconds(lambda: decoder.logits_of_symbols(stack)) / batch for _ in range(ROUNDS)]
    return {
        "engine": choice,
        "batch": batch,
        "seconds": statistics.median(seconds),
        "spread": max(seconds) / min(seconds),
    }


@contextmanager
def cloud_serve(bundle: str) -> Iterator[tuple[str, Processes]]:
    """The URL and the process of a cloud-serve."""
    command = ["-m", "runtime.cli.cloud_serve", "--bundle", bundle, "--port", "0"]
    command += ["--threads", "1", "--deadline-ms", "60000", "--log", "failures"]
    with serving("cloud-serve", command) as target:
        yield target.url, {"cloud-serve": [target.pid]}


@contextmanager
def ray_serve(bundle: str) -> Iterator[tuple[str, Processes]]:
    """The URL of a Ray Serve application of one replica; its proxy's and replica's processes."""
    import ray
    from ray import serve

    from runtime.cluster.app import app

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    paths = filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": RAY_PORT})
        options = {"bundle": bundle, "replicas": 1, "deadline-ms": 60_000, "log": "failures"}
        serve.run(app(options), route_prefix="/")
        pids = {
            "Ray's proxy": _ray_processes("ProxyActor"),
            "a replica behind Ray's proxy": _ray_processes("ServeReplica"),
        }
        yield f"http://127.0.0.1:{RAY_PORT}", pids
        serve.shutdown()
    finally:
        ray.shutdown()


def _ray_processes(title: str) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", f"^ray::{title}"], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in found.stdout.split()]


def measure_service(
    url: str, pids: Processes, files: list[bytes], classes: NDArray[np.intp], requests: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Processor seconds of a request in each process; bytes of a request's head and of an answer.

    Raises BenchmarkError.
    """
    sizes: dict[str, int] = {}
    damaged = [data[:-1] + bytes([data[-1] ^ 1]) for data in files]

    def used(some: list[int]) -> float:
        return sum(processor_seconds(pid) for pid in some)

    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as client,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):

        def ask(index: int) -> None:
            response = client.post(f"{url}/v1/classify", content=files[index])
            content = response.json() if response.status_code == 200 else None
            if content is None or content["classes"][0]["class_index"] != classes[index]:
                answer = f"{response.status_code} {response.text[:200]}"
                raise BenchmarkError(f"a wrong answer: {answer}")
            sizes["request head"] = _head_bytes(response.request)
            sizes["answer"] = _head_bytes(response) + len(response.content)

        def ask_damaged(index: int) -> None:
            response = client.post(f"{url}/v1/classify", content=damaged[index % len(files)])
            if response.status_code != 400 or response.json()["code"] != "damaged_feature_file":
                answer = f"{response.status_code} {response.text[:200]}"
                raise BenchmarkError(f"a damaged file was not refused as such: {answer}")

        list(clients.map(ask, range(len(files))))
        list(clients.map(ask_damaged, range(requests // 4)))
        start = {name: used(some) for name, some in pids.items()}
        list(clients.map(ask_damaged, range(requests)))
        seconds = {name: (used(some) - start[name]) / requests for name, some in pids.items()}
    return seconds, sizes


def _head_bytes(message: httpx.Request | httpx.Response) -> int:
    """Bytes of the first line, the headers and the empty line, as they travel."""
    request = isinstance(message, httpx.Request)
    line = "POST /v1/classify HTTP/1.1\r\n" if request else "HTTP/1.1 200 OK\r\n"
    return len(line) + sum(len(name) + len(value) + 4 for name, value in message.headers.raw) + 2


def _best_graphs(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fastest batch size of each engine."""
    best: dict[str, dict[str, Any]] = {}
    for row in record["graphs"]:
        known = best.get(row["engine"])
        if known is None or row["seconds"] < known["seconds"]:
            best[row["engine"]] = row
    return best


def table(record: dict[str, Any]) -> str:
    """Each step's processor time, an image's bytes, and both for a million images a second."""
    steps = {"entropy decoding": record["coder_seconds"]}
    for engine, row in _best_graphs(record).items():
        steps[f"cloud graph, {engine}, batches of {row['batch']}"] = row["seconds"]
    for name, seconds in record["http_seconds"].items():
        steps[f"HTTP, in {name}"] = seconds
    sizes = {
        "feature file and HTTP head, in": record["file_bytes"] + record["bytes"]["request head"],
        "answer of 5 classes, out": record["bytes"]["answer"],
    }
    return "\n\n".join(
        [
            markdown(
                ["step", "processor time an image", "cores for 1,000,000 images/s"],
                [
                    [name, f"{1e3 * seconds:.3f} ms", f"{IMAGES_A_SECOND * seconds:,.0f}"]
                    for name, seconds in steps.items()
                ],
            ),
            markdown(
                ["bytes an image", "", "bit/s for 1,000,000 images/s"],
                [
                    [name, f"{size:,.0f}", f"{8 * size * IMAGES_A_SECOND / 1e9:.1f} Gbit/s"]
                    for name, size in sizes.items()
                ],
            ),
        ]
    )


def cost_table(record: dict[str, Any]) -> str:
    """Cores and US dollars for a million images a second, by where the graph runs."""
    http, best = record["http_seconds"], _best_graphs(record)
    services = {"`cloud-serve`": http["cloud-serve"]}
    ray = [seconds for name, seconds in http.items() if name != "cloud-serve"]
    services |= {"on Ray": sum(ray)} if ray else {}
    rows = []
    for service, overhead in services.items():
        for engine, row in best.items():
            seconds = record["coder_seconds"] + row["seconds"] + overhead
            cores = IMAGES_A_SECOND * seconds / SHARE_USED
            hour = cores * USD_PER_CORE_HOUR
            rows.append(
                [
                    f"{service}, {engine}",
                    f"{1e3 * seconds:.1f} ms",
                    f"{round(cores, -2):,.0f}",
                    f"{round(hour, -1):,.0f}",
                    f"{hour / 3600:.2f}",
                ]
            )
    heads = ["service", "processor time, all steps", "cores to buy", "USD an hour"]
    return markdown([*heads, "USD for a million images"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--bundle",
        default=str(default_bundle()),
        metavar="DIR",
        help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4",
    )
    parser.add_argument(
        "--ray", action="store_true", help="measure a replica and a proxy of Ray Serve too"
    )
    parser.add_argument(
        "--requests",
        type=number(int, 1, 10_000_000),
        default=2000,
        metavar="N",
        help="requests to each service (default: 2000)",
    )
    parser.add_argument(
        "--batches",
        type=number(int, 1, 1024),
        nargs="+",
        default=[1, 4, 8, 16],
        metavar="N",
        help="batch sizes of the graph (default: 1 4 8 16)",
    )
    add_output_options(parser, keep="scaling.json")
    return parser


def _measure_all(args: argparse.Namespace) -> dict[str, Any]:
    record = header("scaling", 1)
    bundle = str(Path(args.bundle).resolve())
    encoder = EdgeEncoder(bundle, threads=1)
    files = [encoder.encode(crop) for crop in crops()]
    coder, graphs, classes = measure_graphs(bundle, files, args.batches)
    http_seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for service in [cloud_serve, *([ray_serve] if args.ray else [])]:
        with service(bundle) as (url, pids):
            seconds, found = measure_service(url, pids, files, classes, args.requests)
        http_seconds |= seconds
        sizes = sizes or found
    return {
        **record,
        "coder_seconds": coder,
        "graphs": graphs,
        "http_seconds": http_seconds,
        "bytes": sizes,
        "file_bytes": read_record("accuracy_ours_n4_lmb1.28")["bytes"]["mean"],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    try:
        record = _measure_all(args)
        if args.keep:
            write_record(RESULTS / "scaling.json", record)
    except (BenchmarkError, EdgeCloudError, OSError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
