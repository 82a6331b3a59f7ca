"""A checkpoint with its tail in eight bits exports to a bundle that reads the other's files."""

import json
from pathlib import Path

import pytest

from export.cli import main
from runtime import CloudDecoder, EdgeEncoder
from training import shrink

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"


@pytest.mark.slow
def test_feature_files_of_the_whole_checkpoint_stay_valid(
    random_checkpoint: Path, random_bundle: Path, tmp_path: Path
) -> None:
    small, out = tmp_path / "small.safetensors", tmp_path / "bundle"
    assert shrink.main([str(random_checkpoint), "--out", str(small)]) == 0
    assert main(["ours_n0", "--checkpoint", str(small), "--out", str(out)]) == 0
    ours, theirs = (
        json.loads((folder / "manifest.json").read_text()) for folder in (random_bundle, out)
    )
    for key in ("fingerprint", "bottleneck_sha256", "weights", "lmb"):
        assert ours[key] == theirs[key], key
    assert ours["checkpoint"] != theirs["checkpoint"]
    assert (random_bundle / "tables.json").read_bytes() == (out / "tables.json").read_bytes()
    assert (random_bundle / "cloud.onnx").read_bytes() != (out / "cloud.onnx").read_bytes()
    data = EdgeEncoder(random_bundle, threads=1).encode(GOLF_BALL)
    assert EdgeEncoder(out, threads=1).encode(GOLF_BALL) == data
    found = CloudDecoder(out, threads=1).classify(data)
    assert len(found) == len(CloudDecoder(random_bundle, threads=1).classify(data))
