"""training.average: the mean of tails that share a bottleneck, with new batch norm statistics."""

import json
from pathlib import Path

import pytest
import torch

from export.tables import bottleneck_sha256
from training import average
from training.checkpoint import load_model, save_model
from training.data import training_images
from training.folders import class_folder
from training.models import build_random_model


@pytest.fixture
def two_tails(tmp_path: Path) -> list[str]:
    """Checkpoints of one bottleneck and two random tails."""
    files = []
    for seed in (0, 1):
        model = build_random_model("ours_n0", 2)
        model.tail.layer4.load_state_dict(
            build_random_model("ours_n0", 2, seed).tail.layer4.state_dict()
        )
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_model(
            files[-1], model, {"labels": '["dark", "light"]', "lmb": "0.5", "recipe": '{"lr": "1"}'}
        )
    return files


def test_tails_of_one_bottleneck_are_averaged(
    two_tails: list[str], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "average.safetensors"
    more = [
        "--data",
        str(data),
        "--out",
        str(out),
        "--train_size",
        "64",
        "--held_out",
        "4",
        "--workers",
        "0",
    ]
    assert average.main(["ours_n0", *two_tails, *more]) == 0
    first, second = (load_model(file, "ours_n0")[0] for file in two_tails)
    model, metadata = load_model(out, "ours_n0")
    assert bottleneck_sha256(model) == bottleneck_sha256(first)
    weight = (first.tail.layer4[0].conv1.weight + second.tail.layer4[0].conv1.weight) / 2
    assert torch.allclose(model.tail.layer4[0].conv1.weight, weight, atol=1e-4)
    # The statistics were measured with the averaged weights: layer2's first batch norm normalises
    # the images' features to mean 0 and deviation 1.
    images = training_images(class_folder(data).files, 64)
    with torch.no_grad():
        features = model.bottleneck_layer(torch.stack([images[index][0] for index in range(24)]))[0]
        normalised = model.tail.layer2[0].bn1(model.tail.layer2[0].conv1(features))
        before = first.tail.layer2[0].bn1(first.tail.layer2[0].conv1(features))
    assert (normalised.mean().abs(), normalised.std()) == (
        pytest.approx(0, abs=0.2),
        pytest.approx(1, abs=0.2),
    )
    assert (before.std() - 1).abs() > 0.3
    assert json.loads(metadata["labels"]) == ["dark", "light"]
    assert json.loads(metadata["recipe"]) == {
        "average_of": [{"lr": "1"}] * 2,
        "images": 20,
        "train_size": 64,
        "crop_area": 0.08,
    }


def test_checkpoints_without_an_average_are_refused(
    two_tails: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, wide = tmp_path / "other.safetensors", tmp_path / "wide.safetensors"
    save_model(other, build_random_model("ours_n0", 2, seed=1), {})
    model = build_random_model("ours_n0", 2)
    model.tail.fc = torch.nn.Linear(2048, 3)
    save_model(wide, model, {})
    out = tmp_path / "average.safetensors"
    for more, text in (
        ([two_tails[0]], "two or more"),
        ([two_tails[0], str(other)], "another bottleneck"),
        ([two_tails[0], str(wide)], "has 3 classes"),
        ([*two_tails, "--held_out", "24"], "cannot hold out"),
        ([two_tails[0], "/nowhere.pt"], "/nowhere.pt"),
    ):
        assert average.main(["ours_n0", *more, "--data", str(data), "--out", str(out)]) == 1
        assert text in capsys.readouterr().err
    assert not out.exists()


def test_a_recipe_that_is_not_json_is_kept_as_text() -> None:
    assert average._recipe({"recipe": "by hand"}) == "by hand"
    assert average._recipe({"recipe": '{"lr": 1}'}) == {"lr": 1}
    assert average._recipe({}) is None
