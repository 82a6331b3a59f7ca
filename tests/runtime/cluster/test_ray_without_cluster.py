"""What the Ray commands refuse, and their config files; no cluster is needed."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.cloud_decode import EXIT_FAILURE, main
from runtime.errors import RayArgumentsError, SameOutputError

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

import pyarrow as pa  # noqa: E402
import yaml  # noqa: E402
from packs import write_packs  # noqa: E402
from ray_load import Sample  # noqa: E402

from runtime.cluster.bulk import _Classifier, _own_sigterm, plan_targets  # noqa: E402

PROJECT = Path(__file__).resolve().parents[3]
# A warning of Ray itself.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


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
    # The output is another input, by another name.
    (tmp_path / "in.parquet").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pack.parquet").hardlink_to(tmp_path / "in.parquet")
    with pytest.raises(SameOutputError, match="would replace the input"):
        plan_targets(["a/pack.parquet", tmp_path / "in.parquet"], tmp_path / "out")


def test_sigterm_stays_with_the_command() -> None:
    """Ray sets a handler that ends the process with status 15, without a message."""
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


# The fields of a RayService, by the API reference of KubeRay (ray.io/v1), without those of pods.
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
    """Both files fit Ray's schema and the application's options, and have the same config.

    The manifest for Kubernetes has only fields that exist.
    """
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
