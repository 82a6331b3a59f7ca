"""Shared fixtures: the default bundle, small random bundles, both ends, and the reference data."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

# Threads that wait in a busy loop slow down other processes. Must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from PIL import Image
from shared_folder import made_once

from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.manifest import SCHEMA
from runtime.engine.registry import TUNED

# A background job of a shell ignores these, or nohup's does, and so would the commands under test.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

PROJECT = Path(__file__).resolve().parent.parent
GOLF_BALL = PROJECT / "docs" / "demo" / "golf_ball.jpg"
# No deadlines, because shared machines are slow at times.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained ours_n4: bundles/ours_n4 if it is up to date, otherwise exported now."""
    checkpoint = PROJECT / "checkpoints" / "ours_n4" / "lmb1.28.safetensors"
    made = PROJECT / "bundles" / "ours_n4"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    if (made / "manifest.json").is_file():
        manifest = json.loads((made / "manifest.json").read_text())
        if (
            manifest["schema"] == SCHEMA
            and manifest["checkpoint"]["sha256"] == digest
            and (manifest.get("int8") or {}).get("graphs") == ["edge", "cloud"]
            and "largest_embedding_difference" in manifest["parity"]
            and "edge.tables" in manifest["files"]
        ):
            if not (made / TUNED).exists():
                return made
            # The choice of engine on this machine must not change what is tested.
            copy = tmp_path_factory.mktemp("bundles") / "ours_n4"
            shutil.copytree(made, copy, ignore=shutil.ignore_patterns(TUNED))
            return copy
    from export.cli import main

    out = tmp_path_factory.mktemp("bundles") / "ours_n4"
    assert main(["ours_n4", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours_n0 with random weights and ten classes."""
    from training.checkpoint import save_model
    from training.models import build_random_model

    about = {"weights": "random", "labels": json.dumps([f"thing {index}" for index in range(10)])}
    return made_once(
        tmp_path_factory,
        "random.safetensors",
        lambda path: save_model(path, build_random_model("ours_n0", 10), about),
    )


@pytest.fixture(scope="session")
def random_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ours_n0 with random weights: a different bundle, and quick to export."""
    from export.cli import main

    def export(out: Path) -> None:
        assert main(["ours_n0", "--checkpoint", str(random_checkpoint), "--out", str(out)]) == 0

    return made_once(tmp_path_factory, "random", export)


@pytest.fixture(scope="session")
def variable_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variable-rate bundle made of `bundle`, with made-up rates."""
    from variable_bundle import make_variable_bundle

    return make_variable_bundle(bundle, tmp_path_factory.mktemp("bundles") / "variable")


@pytest.fixture(scope="session")
def broken_bundle(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_bundle`, but its logits are finite only if all symbols are zero."""
    import onnx
    from onnx import TensorProto, helper

    out = tmp_path_factory.mktemp("bundles") / "broken"
    shutil.copytree(random_bundle, out)
    model = onnx.load(out / "cloud.onnx")
    logits = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["sound" if name == logits.name else name for name in node.output]
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]))
    model.graph.initializer.append(
        helper.make_tensor("all_axes", TensorProto.INT64, [3], [1, 2, 3])
    )
    model.graph.initializer.append(helper.make_tensor("last_axis", TensorProto.INT64, [2], [-1, 1]))
    model.graph.node.extend(
        [
            helper.make_node("Cast", [model.graph.input[0].name], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Abs", ["floats"], ["sizes"]),
            helper.make_node("ReduceMax", ["sizes", "all_axes"], ["largest"]),
            helper.make_node("Sub", ["one", "largest"], ["rest"]),
            # 0 if all symbols are zero, otherwise minus infinity or NaN.
            helper.make_node("Log", ["rest"], ["nothing"]),
            helper.make_node("Reshape", ["nothing", "last_axis"], ["column"]),
            helper.make_node("Add", ["sound", "column"], [logits.name]),
        ]
    )
    onnx.save(model, out / "cloud.onnx")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["cloud.onnx"]["sha256"] = hashlib.sha256(
        (out / "cloud.onnx").read_bytes()
    ).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(bundle, threads=1)


@pytest.fixture(scope="session")
def decoder(bundle: Path) -> CloudDecoder:
    return CloudDecoder(bundle, threads=1)


@pytest.fixture(scope="session")
def golf_ball() -> NDArray[np.uint8]:
    """The demo's image, uint8 [480, 640, 3]."""
    return np.asarray(Image.open(GOLF_BALL))


@pytest.fixture(scope="session")
def feature_bytes(encoder: EdgeEncoder) -> bytes:
    """The feature file of the demo's image."""
    return encoder.encode(GOLF_BALL)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a bundle by hard links. Tests may replace the copy's files, not write into them."""

    def copy(source: Path) -> Path:
        target = tmp_path / "bundle"
        target.mkdir()
        for file in source.iterdir():
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copy(file, target / file.name)
        return target

    return copy


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data and real images, in a folder beside the project on developers' machines."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the reference data and images are not part of the project")
    return folder
