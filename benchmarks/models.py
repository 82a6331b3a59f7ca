"""The models that are timed: their bundles, exported when missing, and their torch models.

Weights are trained where checkpoints/ has them (ours_n0 and ours_n8 use those of their `_enc`
form), else random, which the records say.
"""

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import PROJECT, BenchmarkError, progress
from runtime.codec import strict_json
from runtime.codec.bundle import EDGE_TABLES, EDGE_WEIGHTS, MANIFEST
from runtime.codec.manifest import SCHEMA
from training.registry import REGISTRY

if TYPE_CHECKING:
    from training.models import FeatureCompressionModel

# The model -> the checkpoint that its weights come from.
CHECKPOINTS = {
    "ours_n0": "ours_n0_enc",
    "ours_n4": "ours_n4",
    "ours_n8": "ours_n8_enc",
    "matsubara2022wacv": "matsubara2022wacv",
    "n4_lite2": "n4_lite2",
}


def weights_of(model: str) -> str:
    """`trained (CHECKPOINT)` or `random`, as records have it."""
    return f"trained ({CHECKPOINTS[model]})" if _trained(model) else "random"


def load_torch_model(model: str) -> "FeatureCompressionModel":
    """The model in torch, with the weights of its bundle."""
    from training.checkpoint import load_model
    from training.models import build_random_model

    if not _trained(model):
        return build_random_model(model)
    return load_model(_checkpoint(model), CHECKPOINTS[model])[0]


def make_bundle(model: str) -> Path:
    """The model's bundle; exported now if it is missing or of an older release.

    What the export prints goes to stderr: stdout is for the benchmark's own result, which may be
    JSON. Raises BenchmarkError.
    """
    folder = Path("bundles") / (CHECKPOINTS[model] if _trained(model) else f"random/{model}")
    if _is_current(folder):
        return folder
    if not find_spec("torch"):
        raise BenchmarkError(
            f"no bundle in {folder} and no torch to export one: pip install '.[export]'"
        )
    progress(f"exporting {folder}")
    with redirect_stdout(sys.stderr):
        if not _trained(model):
            _export_random(model, folder)
        elif _export_trained(model, folder):
            raise BenchmarkError(f"{folder} could not be exported")
    return folder


def _trained(model: str) -> bool:
    return _checkpoint(model).is_file()


def _checkpoint(model: str) -> Path:
    name = CHECKPOINTS[model]
    return PROJECT / "checkpoints" / name / f"lmb{REGISTRY[name].lmb}.safetensors"


def _is_current(folder: Path) -> bool:
    """Whether a bundle is of this release. Those of older ones lack files."""
    file = folder / MANIFEST
    if not file.is_file():
        return False
    manifest = strict_json.loads(file.read_text())
    files = manifest.get("files", {})
    return manifest.get("schema") == SCHEMA and (EDGE_TABLES in files) == (EDGE_WEIGHTS in files)


def _export_trained(model: str, folder: Path) -> int:
    from export.cli import main

    return main([CHECKPOINTS[model], "--out", str(folder)])


def _export_random(model: str, folder: Path) -> None:
    from export.stages import write_bundle
    from export.states import Inputs

    net = load_torch_model(model)
    labels = [f"class {index}" for index in range(net.classes)]
    write_bundle(
        Inputs(out=folder, name=model, model=net, lmb="none", labels=labels, weights="random")
    )
