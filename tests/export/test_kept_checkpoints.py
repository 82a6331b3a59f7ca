"""The weights in checkpoints/ load as they lie there, and stay small enough to clone."""

import hashlib
from pathlib import Path

import pytest

from export.counts import Counts
from export.int8.ranges import Calibration
from export.levels import LevelCounts
from export.tables import bottleneck_sha256, weights_sha256
from training.checkpoint import load_model
from training.labels import stored_labels

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
KEPT = sorted(CHECKPOINTS.glob("*/*.safetensors"))
CARDS = sorted(CHECKPOINTS.glob("*/README.md"))
LARGEST = 70_000_000  # bytes of all files together


def test_there_are_kept_weights_and_they_are_small() -> None:
    assert KEPT
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*.safetensors")) < LARGEST


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.parent.name)
def test_each_loads_with_its_backbone_counts_and_ranges(file: Path) -> None:
    model, metadata = load_model(file, file.parent.name)
    assert metadata["model"] == file.parent.name
    assert len(stored_labels(metadata, model.classes) or ()) in (10, 1000)
    bottleneck = bottleneck_sha256(model)
    kind = LevelCounts if "-" in metadata["lmb"] else Counts
    kind.read(file.with_name(f"{file.stem}.counts.json"), bottleneck)
    ranges = file.with_name(f"{file.stem}.ranges.json")
    if ranges.exists():
        kept = Calibration.from_json(ranges.read_text(encoding="utf-8"), str(ranges))
        assert (kept.edge.sha256, kept.cloud.sha256) == (bottleneck, weights_sha256(model))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_a_model_card_has_the_digest_and_size_of_its_file(card: Path) -> None:
    (file,) = card.parent.glob("*.safetensors")
    text = card.read_text(encoding="utf-8")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in text
    assert f"{file.stat().st_size:,} bytes" in text
