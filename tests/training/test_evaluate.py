"""training.evaluate: every checkpoint of a model, by feature files and by torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from training_runs import spoil

from export.images import synthetic_images
from training import evaluate
from training.checkpoint import save_model
from training.models import build_random_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """checkpoints/ours_n0/lmb0.5 and lmb2 with random weights; ten classes with an image each."""
    root = tmp_path_factory.mktemp("place")
    for index, image in enumerate(synthetic_images(10, side=96)):
        (root / "images" / f"class {index}").mkdir(parents=True)
        Image.fromarray(image).save(root / "images" / f"class {index}" / "one.png")
    (root / "checkpoints" / "ours_n0").mkdir(parents=True)
    for name in ("lmb2.safetensors", "lmb0.5.safetensors"):
        (root / "checkpoints" / "ours_n0" / name).write_bytes(random_checkpoint.read_bytes())
    return root


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "training.evaluate",
        "-d",
        "images",
        "-m",
        "ours_n0",
        "--out",
        "results",
        *arguments,
    ]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--as-is"]])
def test_feature_files_and_torch_give_the_same_predictions(place: Path, more: list[str]) -> None:
    real = run(place, "--json", "-b", "4", "-w", "1", "--predictions", "real", *more)
    assert real.returncode == 0, real.stderr
    records = [json.loads(line) for line in real.stdout.splitlines()]
    assert [record["lmb"] for record in records] == ["0.5", "2"]
    assert (
        json.loads((place / "results" / "accuracy_ours_n0_lmb0.5.json").read_text()) == records[0]
    )
    by_torch = run(
        place, "--json", "-b", "4", "-w", "1", "--torch", "--predictions", "torch", *more
    )
    assert by_torch.returncode == 0, by_torch.stderr
    for record, estimate in zip(
        records, map(json.loads, by_torch.stdout.splitlines()), strict=True
    ):
        name = f"ours_n0_lmb{record['lmb']}.txt"
        assert (place / "real" / name).read_text() == (place / "torch" / name).read_text()
        assert record["top1"]["share"] == estimate["top1"]["share"] <= record["top5"]["share"]
        assert record["images"] == estimate["images"] == 10
        assert record["weights"] == "random"
        # Whole files against what the entropy model expects.
        assert record["bpp"]["mean"] == pytest.approx(estimate["estimated_bpp"], rel=0.1)
    assert not list(place.glob("**/bundle")), "what was exported is left"


def test_operating_points_are_in_the_order_of_their_rates(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert [(model, lmb) for model, lmb, _ in evaluate.operating_points(["ours_n0"])] == [
        ("ours_n0", "0.5"),
        ("ours_n0", "2"),
    ]


def test_what_cannot_be_evaluated(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    data = ["-d", "images", "--out", "results"]
    assert evaluate.main([*data, "-m", "ours_n8"]) == 1
    assert "no checkpoint in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        evaluate.main([*data, "-m", "ours_n0", "-b", "0"])
    assert wrong.value.code == 2
    (place / "checkpoints" / "ours_n4").mkdir(exist_ok=True)
    (place / "checkpoints" / "ours_n4" / "lmb1.pt").write_bytes(b"none")
    assert evaluate.main([*data, "-m", "ours_n4"]) == 1
    assert "lmb1.pt" in capsys.readouterr().err
    with pytest.raises(evaluate.EvaluationError, match="ended with status 3"):
        evaluate._run([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """checkpoints/ours_n0 with one checkpoint of cat, cow and dog."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "ours_n0"
    save_model(
        folder / "lmb1.safetensors",
        build_random_model("ours_n0", 3),
        {"labels": '["dog", "cow", "cat"]'},
    )
    return folder


def test_evaluation_matches_folders_with_labels_and_leaves_out_what_is_damaged(
    root: Path, points: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (points / "lmb_old.pt").write_bytes(b"none")
    spoil(root)
    command = ["-d", str(root), "--torch", "--json", "-w", "0", "--predictions", "out"]
    assert evaluate.main(command) == 1
    assert "give --skip-damaged" in capsys.readouterr().err
    assert evaluate.main([*command, "--skip_damaged"]) == 0
    captured = capsys.readouterr()
    assert "passed over checkpoints/ours_n0/lmb_old.pt" in captured.err
    record = json.loads(captured.out)
    assert (record["images"], record["left_out"]) == (7, 3)
    classes = [int(line) for line in Path("out/ours_n0_lmb1.txt").read_text().split()]
    truth = [2] * 5 + [0] * 2
    assert record["top1"]["share"] == sum(a == b for a, b in zip(classes, truth, strict=True)) / 7


def test_data_of_other_classes_is_refused_before_anything_is_exported(
    root: Path, points: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "cat").rename(root / "hen")
    assert evaluate.main(["-d", str(root)]) == 1
    assert "hen is none of them" in capsys.readouterr().err
    assert evaluate.main(["-d", str(root.parent), "-m", "ours_n0"]) == 1
    assert "checkpoints, images are none of them" in capsys.readouterr().err
