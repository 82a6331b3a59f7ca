"""The service and bulk decoding on a real Ray cluster of two nodes, on this machine's loopback addresses.

The cluster is started once. An actor, a driver, a replica and a node are killed with SIGKILL while they work, and what
comes of each row, request and image is counted.
"""

import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli.cloud_decode import EXIT_DONE, EXIT_FAILURE, EXIT_REFUSED, main
from runtime.cli.edge_send import main as send
from runtime.codec.bundle import Bundle
from runtime.delivery.sender import Encoded, Endpoint, deliver
from runtime.delivery.spool import Spool, key_of
from runtime.errors import RayArgumentsError, SameOutputError, ServerAwayError

PROJECT = Path(__file__).resolve().parents[3]

# Ray's own.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
cluster = pytest.mark.cluster

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402

from runtime.bulk.parquet import PACK, PREDICTIONS, classify, is_classified  # noqa: E402
from runtime.cluster.bulk import _Classifier, _own_sigterm, classify_packs, plan_packs, plan_targets  # noqa: E402

HEAD, WORKER = "127.0.0.2", "127.0.0.3"
NODE: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 100 << 20,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}
HANG_SECONDS = 30.0


# A driver joins the cluster by the address of a node, which is not the one that this machine has in its network.
IN_CLUSTER = """
import sys, ray
from runtime.cli.cloud_decode import main
address, node, *command = sys.argv[1:]
ray.init(address=address, _node_ip_address=node, log_to_driver=False)
sys.exit(main(command))
"""


class Nodes:
    """A head and a worker, each with two CPUs as far as Ray knows."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "node_ip_address": HEAD}
        )
        self.worker: Any = None
        self.add_worker()
        ray.init(address=self.cluster.address, _node_ip_address=HEAD, log_to_driver=False)

    def add_worker(self) -> None:
        self.worker = self.cluster.add_node(**NODE, node_ip_address=WORKER)

    def kill_worker(self) -> None:
        self.cluster.remove_node(self.worker, allow_graceful=False)

    def processes(self, title: str, node: Any = None) -> list[int]:
        """Of the cluster, or of one node: those that Ray calls so."""
        nodes = [node] if node is not None else self.cluster.list_all_nodes()
        raylets = {entry.process.pid for one in nodes for entry in one.all_processes["raylet"]}
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if (folder / "cmdline").read_bytes().startswith(f"ray::{title}".encode()):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    found += [int(folder.name)] if parent in raylets else []
            except (OSError, ValueError):
                continue
        return found

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Asks again while it fails, for three minutes."""

    def ask_again(*arguments: Any) -> Any:
        end = time.monotonic() + 180
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    return ask_again


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "300")
        # Ray gives a node 30 seconds to start, in which a busy machine asks it in vain; here it may take longer.
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


class Sample(NamedTuple):
    data: bytes
    class_index: int
    probability: float


@pytest.fixture(scope="module")
def samples(
    golf_ball: NDArray[np.uint8], encoder: EdgeEncoder, decoder: CloudDecoder
) -> list[Sample]:
    """Feature files of parts of the demo's picture, and what they are classified as in this process: no two alike."""
    parts = [
        golf_ball[top : top + 224, left : left + 224]
        for top in range(0, 256, 64)
        for left in range(0, 416, 104)
    ]
    files = [encoder.encode(part) for part in parts]
    best = [decoder.classify(data, 1)[0] for data in files]
    found = [
        Sample(data, one.class_index, one.probability)
        for data, one in zip(files, best, strict=True)
    ]
    unlike = {(one.class_index, round(one.probability, 3)): one for one in found}
    assert len(unlike) >= 12
    return list(unlike.values())


def wait_until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about in time"
        time.sleep(0.25)


def write_packs(folder: Path, samples: list[Sample]) -> list[Path]:
    """Three packs of 24 rows in 6 row groups; two rows of the second are no feature files."""
    folder.mkdir()
    paths = []
    for number in range(3):
        rows = [
            {"key": f"{number}/{row}", "feature_file": samples[(number + row) % len(samples)].data}
            for row in range(24)
        ]
        if number == 1:
            rows[5]["feature_file"], rows[9]["feature_file"] = rows[5]["feature_file"][:-2], None
        paths.append(folder / f"pack{number}.parquet")
        columns = [
            pa.array([row.get(name) for row in rows], PACK.field(name).type)
            for name in ("key", "feature_file")
        ]
        sizes = [pa.array([224] * 24, pa.int32())] * 2
        pq.write_table(
            pa.table(columns + sizes, PACK),
            paths[-1],
            row_group_size=4,
            compression="none",
            write_page_checksum=True,
        )
    return paths


def check_predictions(source: Path, target: Path, decoder: CloudDecoder) -> None:
    """As one process classifies the pack, row by row."""
    found = pq.read_table(target)
    wanted = classify(pq.read_table(source), decoder)
    assert found.schema.equals(PREDICTIONS)
    for name in ("key", "label", "class_index", "error"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for one, other in zip(
        found["probability"].to_pylist(), wanted["probability"].to_pylist(), strict=True
    ):
        assert one is other or abs(one - other) < 1e-4


@cluster
def test_packs_are_classified_though_an_actor_is_killed(
    nodes: Nodes, samples: list[Sample], bundle: Path, decoder: CloudDecoder, tmp_path: Path
) -> None:
    sources = write_packs(tmp_path / "packs", samples)
    damaged = tmp_path / "packs" / "damaged.parquet"
    content = bytearray(sources[0].read_bytes())
    content[content.index(samples[0].data) + 20] ^= (
        1  # within a feature file, which a page's checksum covers
    )
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
def test_a_run_that_is_killed_goes_on_where_it_was(
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


def test_an_actor_that_cannot_load_its_bundle_says_so(
    samples: list[Sample], bundle: Path, tmp_path: Path
) -> None:
    (source, *_) = write_packs(tmp_path / "packs", samples)
    unit = pa.table({"unit": [7], "source": [str(source)], "row_group": [0]})
    for arguments, reason in (
        ((str(tmp_path), b"", 1, "auto", "auto"), "no bundle"),
        ((str(bundle), b"another", 1, "auto", "auto"), "another bundle"),
    ):
        (row,) = _Classifier(*arguments)(unit).to_pylist()
        assert row["unit"] == 7
        assert reason in row["failure"]


def test_outputs_that_would_be_one_or_an_input_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SameOutputError, match="both become"):
        plan_targets(["a/pack.parquet", "b/pack.parquet"], tmp_path)
    with pytest.raises(SameOutputError, match="replace it"):
        plan_targets([tmp_path / "pack.parquet"], tmp_path)
    assert len(plan_targets(["a/pack.parquet", "a/pack.parquet"], tmp_path)) == 1
    # Another input, by another name.
    (tmp_path / "in.parquet").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pack.parquet").hardlink_to(tmp_path / "in.parquet")
    with pytest.raises(SameOutputError, match="would replace the input"):
        plan_targets(["a/pack.parquet", tmp_path / "in.parquet"], tmp_path / "out")


def test_sigterm_stays_with_the_command() -> None:
    """Ray sets a handler that ends the process with status 15, and one that says nothing."""
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        received.append(number)

    def start_ray(work: Callable[[], None]) -> None:
        with _own_sigterm():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
            work()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        start_ray(lambda: None)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert received == []
        with pytest.raises(SystemExit):
            start_ray(lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_is_not_there(
    samples: list[Sample],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not ray.is_initialized()
    sources = write_packs(tmp_path / "packs", samples)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert (
        main(["--ray", *map(str, sources), "-o", str(tmp_path / "out"), "--bundle", str(bundle)])
        == EXIT_FAILURE
    )
    assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"max-batch": "many"}, "max-batch"),
        ({"max-batch": 0}, "max-batch: '0' is not a whole number from 1"),
        ({"batch": 8}, "batch=8"),
        ({"port": 8000}, "port"),
        ({"replicas": 0}, "replicas: '0' is not a whole number from 1"),
        ({"log": "all"}, "log"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], reason: str) -> None:
    from runtime.cluster.app import app

    with pytest.raises(RayArgumentsError, match=reason):
        app(arguments)


# What a RayService may have, by the API reference of KubeRay (ray.io/v1); fields of pods are those of Kubernetes.
KUBERAY = {
    "RayService": {"apiVersion", "kind", "metadata", "spec"},
    "RayServiceSpec": {
        "serveConfigV2",
        "rayClusterConfig",
        "upgradeStrategy",
        "serveService",
        "excludeHeadPodFromServeSvc",
    },
    "RayClusterSpec": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "workerGroupSpecs",
        "headServiceAnnotations",
        "suspend",
        "managedBy",
    },
    "AutoscalerOptions": {
        "resources",
        "image",
        "idleTimeoutSeconds",
        "upscalingMode",
        "version",
        "env",
        "envFrom",
        "volumeMounts",
    },
    "GcsFaultToleranceOptions": {
        "redisUsername",
        "redisPassword",
        "externalStorageNamespace",
        "redisAddress",
    },
    "HeadGroupSpec": {"template", "headService", "enableIngress", "rayStartParams", "serviceType"},
    "WorkerGroupSpec": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "idleTimeoutSeconds",
        "rayStartParams",
        "template",
    },
}


def test_the_config_files_are_understood() -> None:
    """By Ray's own schema, and the application's; and the manifest for Kubernetes has the same config, and fields that exist."""
    from ray.serve.schema import ServeDeploySchema

    from runtime.cluster.app import DEPLOYMENT, app

    config = yaml.safe_load((PROJECT / "docs" / "ray" / "serve.yaml").read_text())
    manifest = yaml.safe_load((PROJECT / "docs" / "ray" / "rayservice.yaml").read_text())
    cluster = manifest["spec"]["rayClusterConfig"]
    embedded = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    embedded["applications"][0]["args"]["token-file"] = config["applications"][0]["args"][
        "token-file"
    ]
    assert embedded == config
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    assert [deployment.name for deployment in application.deployments] == [DEPLOYMENT]
    app(application.args)
    for kind, part in (
        ("RayService", manifest),
        ("RayServiceSpec", manifest["spec"]),
        ("RayClusterSpec", cluster),
        ("AutoscalerOptions", cluster["autoscalerOptions"]),
        ("GcsFaultToleranceOptions", cluster["gcsFaultToleranceOptions"]),
        ("HeadGroupSpec", cluster["headGroupSpec"]),
        *(("WorkerGroupSpec", group) for group in cluster["workerGroupSpecs"]),
    ):
        assert set(part) <= KUBERAY[kind], kind
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


class Load:
    """Clients that send feature files one after another, and note what became of each."""

    def __init__(self, url: str, samples: list[Sample], clients: int = 6):
        self.url, self.samples = url, samples
        self.phase = "before"
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._lock, self._end = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS + 10)
        assert not any(thread.is_alive() for thread in self._threads)

    def count(self, outcome: str, phase: str | None = None) -> int:
        return sum(
            number
            for (when, what), number in self.outcomes.items()
            if what == outcome and phase in (None, when)
        )

    def _client(self, number: int) -> None:
        with httpx.Client(timeout=HANG_SECONDS) as client:
            while not self._end.is_set():
                sample = self.samples[number % len(self.samples)]
                number += 1
                start = time.monotonic()
                outcome = self._send(client, sample)
                with self._lock:
                    self.outcomes[self.phase, outcome] += 1
                    self.slowest = max(self.slowest, time.monotonic() - start)

    def _send(self, client: httpx.Client, sample: Sample) -> str:
        try:
            response = client.post(f"{self.url}/v1/classify", content=sample.data)
        except httpx.TimeoutException:
            return "hung"
        except httpx.TransportError as error:
            return type(error).__name__
        if response.status_code != 200:
            return str(response.status_code)
        best = response.json()["classes"][0]
        if (
            best["class_index"] != sample.class_index
            or not abs(best["probability"] - sample.probability) <= 1e-4
        ):
            self.wrong.append(response.text)
            return "wrong"
        return "right"


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
        """But for what takes how long, and rounding."""

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
    """Four times what three queues hold: some are answered, the others refused at once, with the application's own words."""
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


class Device:
    """edge-send's delivery of one picture after another, until it is told to end; each is another part of the demo's picture."""

    def __init__(self, url: str, spool: Path, picture: NDArray[np.uint8], encoder: EdgeEncoder):
        self.sent: dict[str, bytes] = {}
        self._url, self._spool, self._picture, self._encoder = url, spool, picture, encoder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._deliver)

    def __enter__(self) -> "Device":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _pictures(self) -> Iterator[Encoded]:
        while not self._end.wait(0.2):
            top, left = divmod(3 * len(self.sent), 400)
            data = self._encoder.encode(self._picture[top : top + 224, left : left + 224])
            self.sent[key_of(data)] = data
            yield Encoded(f"picture {len(self.sent)}", data)

    def _deliver(self) -> None:
        with contextlib.suppress(ServerAwayError), Spool(self._spool) as spool:
            for _ in deliver(spool, Endpoint(self._url, in_flight=2), self._pictures()):
                pass


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
    # What the kills left in the spool, if anything, is delivered by the next run.
    assert send(["--url", url, "--spool", str(spool)]) == EXIT_DONE
    results = [json.loads(line) for line in (spool / "results.jsonl").read_text().splitlines()]
    assert sorted(result["key"] for result in results) == sorted(device.sent)
    for result in results:
        best = decoder.classify(device.sent[result["key"]], 1)[0]
        assert result["status"] == "delivered"
        assert result["classes"][0]["class_index"] == best.class_index
        assert abs(result["classes"][0]["probability"] - best.probability) < 1e-4
    print(
        f"requests {dict(load.outcomes)}, slowest {load.slowest:.2f} s; images through edge-send: {len(results)} of {len(device.sent)}"
    )
    assert not load.wrong
    assert load.count("hung") == 0
    errors = {what for _, what in load.outcomes} - {"right", "429"}
    # 500 and 503 are Ray's, of requests that died with their replica or came before it was known; the others are connections that ended.
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
    assert lost <= 4 * 6, load.outcomes  # about what was under way: one request a client each time
    assert load.count("right", "node killed") > 0
