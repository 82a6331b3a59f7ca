"""What a million images a second take: processor time and bytes of one image at each step, and the sums of docs/SCALING.md.

    python benchmarks/scaling.py [--ray] [--requests N] [--batches N...] [--keep]

Each step is measured in processor time, user and system, of all threads of its process: what has to be bought, and
what other work on the machine changes least. The graph runs on one thread, in each engine that is installed here.
HTTP is measured with damaged feature files, which are refused before they come to a graph: in `cloud-serve` as a process of
its own, asked by some clients at once, and with --ray in a proxy and a replica of Ray Serve.

Feature files are of parts of the demo's picture; the bytes of one are those of the validation images' record.
Always holds: every answer, of a graph or of a service, is checked; a wrong one stops the benchmark.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import commit, describe
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec import strict_json
from runtime.codec.bundle import default_bundle
from runtime.engine.registry import candidates
from runtime.options import number
from runtime.tasks.classification import require_finite

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
CLIENTS = 16
RAY_PORT = 28_917
ROUNDS = 3
IMAGES_A_SECOND = 1_000_000


def parts() -> list[NDArray[np.uint8]]:
    """224x224 parts of the demo's picture."""
    picture = np.asarray(Image.open(PROJECT / "docs" / "demo" / "golf_ball.jpg"))
    return [
        picture[top : top + 224, left : left + 224]
        for top in range(0, 256, 128)
        for left in range(0, 416, 52)
    ]


def own_seconds(work: Any, times: int) -> float:
    """Processor time of one of `times` calls."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def process_seconds(pids: list[int]) -> float:
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_graphs(
    bundle: str, files: list[bytes], batches: list[int]
) -> tuple[float, list[dict[str, Any]], NDArray[np.intp]]:
    """Seconds of the coder; of each engine and batch, seconds an image; the classes of `files`."""
    rows: list[dict[str, Any]] = []
    first = CloudDecoder(bundle, 1, "cpu", "fp32")
    symbols = np.stack([first.symbols(data) for data in files])
    logits = np.concatenate([first.logits_of_symbols(one[None]) for one in symbols])
    classes = require_finite(logits).argmax(1)
    coder = min(
        own_seconds(lambda: [first.symbols(data) for data in files], 20) / len(files)
        for _ in range(ROUNDS)
    )
    for choice in candidates(first.bundle, "cloud"):
        decoder = CloudDecoder(bundle, 1, choice.provider, choice.precision)
        for batch in batches:
            own = np.concatenate([symbols] * -(-batch // len(symbols)))[:batch]
            found = require_finite(decoder.logits_of_symbols(own)).argmax(1)
            agreed = float((found == np.resize(classes, batch)).mean())
            if not agreed >= 0.9:
                raise SystemExit(
                    f"{choice} in batches of {batch} gives other classes: {agreed:.0%} are the same"
                )
            seconds = [
                own_seconds(lambda run=decoder.logits_of_symbols, own=own: run(own), 1) / batch
                for _ in range(ROUNDS)
            ]
            rows.append(
                {
                    "engine": str(choice),
                    "batch": batch,
                    "seconds": statistics.median(seconds),
                    "spread": max(seconds) / min(seconds),
                }
            )
            print(
                f"  {choice}, batches of {batch}: {1e3 * rows[-1]['seconds']:.1f} ms an image",
                file=sys.stderr,
            )
    return coder, rows, classes


@contextmanager
def cloud_serve(bundle: str) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Its URL and process."""
    command = [
        sys.executable,
        "-m",
        "runtime.cli.cloud_serve",
        "--bundle",
        bundle,
        "--port",
        "0",
        "--threads",
        "1",
        "--deadline-ms",
        "60000",
    ]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [*command, "--log", "failures"], stdout=subprocess.PIPE, stderr=nowhere, text=True
        )
    try:
        assert process.stdout
        yield process.stdout.readline().split()[-1], {"cloud-serve": [process.pid]}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def ray_serve(bundle: str) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """The URL of a Ray Serve application with one replica, and the processes of its proxy and replica."""
    import ray
    from ray import serve

    from runtime.cluster.app import app

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])
    )
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": RAY_PORT})
        serve.run(
            app({"bundle": bundle, "replicas": 1, "deadline-ms": 60_000, "log": "failures"}),
            route_prefix="/",
        )
        pids = {
            "Ray's proxy": processes("ProxyActor"),
            "a replica behind Ray's proxy": processes("ServeReplica"),
        }
        yield f"http://127.0.0.1:{RAY_PORT}", pids
        serve.shutdown()
    finally:
        ray.shutdown()


def processes(title: str) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", f"^ray::{title}"], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in found.stdout.split()]


def measure_service(
    url: str,
    pids: dict[str, list[int]],
    files: list[bytes],
    classes: NDArray[np.intp],
    requests: int,
) -> tuple[dict[str, float], dict[str, int]]:
    """Processor seconds of one request in each process of a service; bytes of a request's head and of a whole answer."""
    sizes: dict[str, int] = {}
    damaged = [data[:-1] + bytes([data[-1] ^ 1]) for data in files]

    def head_bytes(message: httpx.Request | httpx.Response) -> int:
        line = (
            len("POST /v1/classify HTTP/1.1\r\n")
            if isinstance(message, httpx.Request)
            else len("HTTP/1.1 200 OK\r\n")
        )
        return line + sum(len(name) + len(value) + 4 for name, value in message.headers.raw) + 2

    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as client,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):

        def ask(index: int) -> None:
            response = client.post(f"{url}/v1/classify", content=files[index])
            if (
                response.status_code != 200
                or response.json()["classes"][0]["class_index"] != classes[index]
            ):
                raise SystemExit(f"a wrong answer: {response.status_code} {response.text[:200]}")
            sizes["request head"] = head_bytes(response.request)
            sizes["answer"] = head_bytes(response) + len(response.content)

        def ask_damaged(index: int) -> None:
            response = client.post(f"{url}/v1/classify", content=damaged[index % len(files)])
            if response.status_code != 400 or response.json()["code"] != "damaged_feature_file":
                raise SystemExit(
                    f"a damaged file was not refused as such: {response.status_code} {response.text[:200]}"
                )

        list(clients.map(ask, range(len(files))))
        list(clients.map(ask_damaged, range(requests // 4)))
        start = {name: process_seconds(own) for name, own in pids.items()}
        list(clients.map(ask_damaged, range(requests)))
        return {
            name: (process_seconds(own) - start[name]) / requests for name, own in pids.items()
        }, sizes


def table(result: dict[str, Any]) -> str:
    """Markdown: each step's processor time, and cores for a million images a second."""
    lines = ["| step | processor time an image | cores for 1,000,000 images/s |", "|---|--:|--:|"]

    def row(name: str, seconds: float) -> None:
        lines.append(f"| {name} | {1e3 * seconds:.3f} ms | {IMAGES_A_SECOND * seconds:,.0f} |")

    row("entropy decoding", result["coder_seconds"])
    for engine in dict.fromkeys(entry["engine"] for entry in result["graphs"]):
        best = min(
            (entry for entry in result["graphs"] if entry["engine"] == engine),
            key=lambda entry: entry["seconds"],
        )
        row(f"cloud graph, {engine}, batches of {best['batch']}", best["seconds"])
    for name, seconds in result["http_seconds"].items():
        row(f"HTTP, in {name}", seconds)
    incoming = result["file_bytes"] + result["bytes"]["request head"]
    lines += ["", "| bytes an image | | bit/s for 1,000,000 images/s |", "|---|--:|--:|"]
    for name, size in (
        ("feature file and HTTP head, in", incoming),
        ("answer of 5 classes, out", result["bytes"]["answer"]),
    ):
        lines.append(f"| {name} | {size:,.0f} | {8 * size * IMAGES_A_SECOND / 1e9:.1f} Gbit/s |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Processor time and bytes of one image at each step of the cloud."
    )
    parser.add_argument("--bundle", default=str(default_bundle()), metavar="DIR")
    parser.add_argument(
        "--ray", action="store_true", help="measure a replica and a proxy of Ray Serve too"
    )
    parser.add_argument(
        "--requests",
        type=number(int, 1, 10_000_000),
        default=2000,
        metavar="N",
        help="to each service (default: 2000)",
    )
    parser.add_argument(
        "--batches",
        type=number(int, 1, 1024),
        nargs="+",
        default=[1, 4, 8, 16],
        metavar="N",
        help="(default: 1 4 8 16)",
    )
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/scaling.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    bundle = str(Path(args.bundle).resolve())
    encoder = EdgeEncoder(bundle, threads=1)
    files = [encoder.encode(part) for part in parts()]
    coder, graphs, classes = measure_graphs(bundle, files, args.batches)
    http_seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for service in [cloud_serve, *([ray_serve] if args.ray else [])]:
        with service(bundle) as (url, pids):
            seconds, found = measure_service(url, pids, files, classes, args.requests)
        http_seconds |= seconds
        sizes = sizes or found
    record = strict_json.loads((RESULTS / "accuracy_ours_n4_lmb1.28.json").read_text())
    result = {
        "machine": describe(1),
        "commit": commit(),
        "coder_seconds": coder,
        "graphs": graphs,
        "http_seconds": http_seconds,
        "bytes": sizes,
        "file_bytes": record["bytes"]["mean"],
    }
    if args.keep:
        from runtime.files import write_atomically

        write_atomically(
            RESULTS / "scaling.json",
            (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(),
        )
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
