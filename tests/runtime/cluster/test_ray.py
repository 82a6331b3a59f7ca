"""The service and bulk decoding on a real Ray cluster of two nodes, on loopback addresses.

The cluster is started once, for all tests of this file. An actor, a driver, a replica and a node
are killed with SIGKILL while they work, and the outcome of each row, request and image is counted.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli.cloud_decode import EXIT_DONE, EXIT_REFUSED, main
from runtime.cli.edge_send import main as send
from runtime.codec.bundle import Bundle

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

from packs import check_predictions, write_packs  # noqa: E402
from ray_cluster import HEAD, Nodes, patient, wait_until  # noqa: E402
from ray_load import HANG_SECONDS, Device, Load, Sample  # noqa: E402

from runtime.bulk.parquet import is_classified  # noqa: E402
from runtime.cluster.bulk import classify_packs, plan_packs, plan_targets  # noqa: E402

PROJECT = Path(__file__).resolve().parents[3]
# A warning of Ray itself.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
cluster = pytest.mark.cluster
# A driver must name the loopback address of a node, because Ray would take the machine's address in
# its network.
IN_CLUSTER = """
import sys, ray
from runtime.cli.cloud_decode import main
address, node, *command = sys.argv[1:]
ray.init(address=address, _node_ip_address=node, log_to_driver=False)
sys.exit(main(command))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "300")
        # Ray gives a node 30 seconds to start, which is too short on a busy machine.
        patch.setattr("ray._private.services.get_node", patient(ray._private.services.get_node))
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
        )
        started = Nodes()
        try:
            yield started
        finally:
            started.stop()


@cluster
def test_packs_are_classified_though_an_actor_is_killed(
    nodes: Nodes, samples: list[Sample], bundle: Path, decoder: CloudDecoder, tmp_path: Path
) -> None:
    sources = write_packs(tmp_path / "packs", samples)
    damaged = tmp_path / "packs" / "damaged.parquet"
    content = bytearray(sources[0].read_bytes())
    # A bit within a feature file, which the page's checksum covers.
    content[content.index(samples[0].data) + 20] ^= 1
    damaged.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    loaded = Bundle.load(bundle)
    packs, results = plan_packs(plan_targets([sources[0], damaged, *sources[1:]], out), loaded)
    assert [pack.rows for pack in packs] == [24, 24, 24, 24]
    assert results == []
    for result in classify_packs(packs, loaded):
        if not results:
            (actor, *_) = nodes.processes("MapWorker")
            os.kill(actor, signal.SIGKILL)
        results.append(result)
    assert [(result.decoded, result.refused, result.failure is None) for result in results] == [
        (24, 0, True),
        (0, 0, False),
        (22, 2, True),
        (24, 0, True),
    ]
    assert "damaged.parquet" in str(results[1].failure)
    assert sorted(path.name for path in out.iterdir()) == [
        "pack0.parquet",
        "pack1.parquet",
        "pack2.parquet",
    ]
    for source in sources:
        check_predictions(source, out / source.name, decoder)


@cluster
def test_a_run_that_is_killed_continues_where_it_was(
    nodes: Nodes,
    samples: list[Sample],
    bundle: Path,
    decoder: CloudDecoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = write_packs(tmp_path / "packs", samples)
    out = tmp_path / "out"
    command = ["--ray", *map(str, sources), "-o", str(out), "--bundle", str(bundle), "--json"]
    driver = subprocess.Popen(
        [sys.executable, "-c", IN_CLUSTER, nodes.cluster.address, HEAD, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: (out / "pack0.parquet").exists() or driver.poll() is not None)
    driver.kill()
    driver.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert "pack0.parquet" in kept
    assert len(kept) < 3
    for name in kept:
        assert is_classified(out / name, decoder.bundle, 24)

    assert main(command) == EXIT_REFUSED
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(result["target"]).name for result in results if result["skipped"]} == set(kept)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    for source in sources:
        check_predictions(source, out / source.name, decoder)

    assert main(command) == EXIT_DONE
    assert all(json.loads(line)["skipped"] for line in capsys.readouterr().out.splitlines())


@pytest.fixture(scope="module")
def url(nodes: Nodes, bundle: Path) -> Iterator[str]:
    """Three replicas with a CPU each on the two nodes, and a proxy on each."""
    from ray import serve

    from runtime.cluster.app import app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
    serve.run(
        app(
            {
                "bundle": [str(bundle)],
                "replicas": "3",
                "max-queue": 8,
                "deadline-ms": 20_000,
                "log": "refusals",
            }
        ),
        route_prefix="/",
    )
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def replicas() -> int:
    from ray import serve

    from runtime.cluster.app import DEPLOYMENT

    states = serve.status().applications["default"].deployments[DEPLOYMENT].replica_states
    return int(states.get("RUNNING", 0))


@cluster
def test_the_same_answers_and_refusals_as_without_ray(
    url: str, bundle: Path, samples: list[Sample]
) -> None:
    from runtime.service.app import Settings, create_app

    good = samples[0].data
    requests: list[tuple[str, str, bytes | None]] = [
        ("POST", "/v1/classify", good),
        ("POST", "/v1/classify?top_k=2", good),
        ("POST", "/v1/classify?top_k=none", good),
        ("POST", "/v1/classify", b""),
        ("POST", "/v1/classify", b"no feature file"),
        ("POST", "/v1/classify", good[:-1]),
        ("POST", "/v1/classify", bytes(1 << 20)),
        (
            "POST",
            "/v1/classify/batch",
            b"".join(len(one.data).to_bytes(4, "little") + one.data for one in samples[:3]),
        ),
        ("GET", "/v1/classify", None),
        ("GET", "/nothing", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/v2/models", None),
        ("GET", "/v2/models/another", None),
        ("GET", "/openapi.json", None),
    ]

    def seen(response: httpx.Response) -> Any:
        """Status and content of an answer, without times and probabilities, which differ."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {
                    key: plain(entry)
                    for key, entry in value.items()
                    if key not in ("milliseconds", "probability")
                }
            return [plain(entry) for entry in value] if isinstance(value, list) else value

        return response.status_code, plain(response.json())

    async def without_ray() -> list[Any]:
        application = create_app(Settings(bundles=(bundle,), threads=1, max_queue=8))
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(application), base_url="http://127.0.0.1"
            ) as client,
        ):
            return [
                seen(await client.request(method, path, content=content))
                for method, path, content in requests
            ]

    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as client:
        answers = [
            seen(client.request(method, path, content=content))
            for method, path, content in requests
        ]
    assert answers == asyncio.run(without_ray())


@cluster
def test_a_full_queue_is_refused_by_the_application(url: str, samples: list[Sample]) -> None:
    """Four times as many requests as three queues hold.

    Some are answered. The application refuses the others at once.
    """
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(
            httpx.post(f"{url}/v1/classify", content=samples[0].data, timeout=HANG_SECONDS)
        )

    threads = [threading.Thread(target=send) for _ in range(96)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS + 5)
    assert len(answers) == 96
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1


def check_results(results: list[dict[str, Any]], device: Device, decoder: CloudDecoder) -> None:
    """Each picture has one result, which is the class that this process finds."""
    assert sorted(result["key"] for result in results) == sorted(device.sent)
    for result in results:
        best = decoder.classify(device.sent[result["key"]], 1)[0]
        assert result["status"] == "delivered"
        assert result["classes"][0]["class_index"] == best.class_index
        assert abs(result["classes"][0]["probability"] - best.probability) < 1e-4


@cluster
def test_a_replica_and_a_node_are_killed_under_load(
    url: str,
    nodes: Nodes,
    samples: list[Sample],
    bundle: Path,
    golf_ball: NDArray[np.uint8],
    encoder: EdgeEncoder,
    decoder: CloudDecoder,
    tmp_path: Path,
) -> None:
    wait_until(lambda: replicas() == 3)
    spool = tmp_path / "spool"
    with Device(url, spool, golf_ball, encoder) as device, Load(url, samples) as load:
        wait_until(lambda: load.count("right", "before") >= 50)

        load.phase = "replica killed"
        (first, *_) = nodes.processes("ServeReplica")
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: len(set(nodes.processes("ServeReplica")) - {first}) == 3 and replicas() == 3
        )
        wait_until(lambda: load.count("right", "replica killed") >= 50)

        load.phase = "node killed"
        assert nodes.processes("ServeReplica", nodes.worker)
        nodes.kill_worker()
        wait_until(lambda: load.count("right", "node killed") >= 150)

        load.phase = "node back"
        nodes.add_worker()
        wait_until(lambda: replicas() == 3)
        before = load.count("right", "node back")
        wait_until(lambda: load.count("right", "node back") >= before + 50)
    # The next run delivers what is still in the spool, if anything.
    assert send(["--url", url, "--spool", str(spool)]) == EXIT_DONE
    results = [json.loads(line) for line in (spool / "results.jsonl").read_text().splitlines()]
    check_results(results, device, decoder)
    print(
        f"requests {dict(load.outcomes)}, slowest {load.slowest:.2f} s; "
        f"images through edge-send: {len(results)} of {len(device.sent)}"
    )
    assert not load.wrong
    assert load.count("hung") == 0
    errors = {what for _, what in load.outcomes} - {"right", "429"}
    # Ray answers 500 and 503 to requests that died with their replica, or that came before the loss
    # was known. The other errors are connections that ended.
    assert errors <= {
        "500",
        "503",
        "504",
        "ReadError",
        "RemoteProtocolError",
        "ConnectError",
        "WriteError",
    }, load.outcomes
    lost = sum(number for (_, what), number in load.outcomes.items() if what in errors)
    # About what was under way: in each phase one request of each client.
    assert lost <= 4 * 6, load.outcomes
    assert load.count("right", "node killed") > 0
