"""benchmarks/budgets.py: sizes of real feature files at levels and budgets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from variable_bundle import make_variable_bundle

from benchmarks import budgets
from benchmarks.common import BenchmarkError
from export.images import synthetic_images
from runtime import EdgeEncoder
from runtime.codec.budget import LatentCoder

Capture = pytest.CaptureFixture[str]
COUNT = 3


@pytest.fixture(scope="module")
def variable(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_variable_bundle(random_bundle, tmp_path_factory.mktemp("bundles") / "variable")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(synthetic_images(COUNT, 96)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def test_its_record_is_of_the_files_that_an_encoder_writes(
    variable: Path, images: Path, capsys: Capture
) -> None:
    files = sorted(images.glob("*.png"))
    encoder = EdgeEncoder(variable, 1)
    lowest = [len(encoder.encode(file, as_is=True, rate=0)) for file in files]
    tight = max(lowest) - 1
    arguments = ["--data", str(images), "--bundle", str(variable), "--as-is"]
    arguments += ["--max-bytes", str(tight), "100000", "--target-bytes", str(tight)]
    assert budgets.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["images"], record["weights"]) == (COUNT, "random")
    assert [one["level"] for one in record["levels"]] == list(range(16))
    assert record["levels"][0]["bytes"]["mean"] == pytest.approx(np.mean(lowest))
    assert not any(one["smaller"] for one in record["levels"])
    cut, roomy = record["max_bytes"]
    expected = [len(encoder.encode(file, as_is=True, max_bytes=tight)) for file in files]
    assert cut["largest"] == max(expected) <= tight
    assert cut["mean"] == pytest.approx(np.mean(expected))
    assert cut["cut"] == sum(size > tight for size in lowest) >= 1
    assert (roomy["cut"], roomy["mean"]) == (0, record["levels"][15]["bytes"]["mean"])
    stream = EdgeEncoder(variable, 1, target_bytes=tight)
    sizes = [len(stream.encode(file, as_is=True)) for file in files]
    assert record["target_bytes"] == [{"target_bytes": tight, "mean": np.mean(sizes)}]
    assert budgets.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"| {tight} | {cut['largest']} | {cut['mean']:.0f} | {cut['cut']} |" in text
    assert f"mean bytes: {np.mean(sizes):.1f} for {tight}" in text


def test_a_file_that_is_too_large_or_wrong_stops_it(
    variable: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(images), "--bundle", str(variable), "--as-is"]
    with monkeypatch.context() as patched:
        patched.setattr(LatentCoder, "within", lambda coder, most: coder.at(240))
        assert budgets.main([*arguments, "--max-bytes", "20"]) == 1
        assert "where 20 were allowed" in capsys.readouterr().err
    encoder = EdgeEncoder(variable, 1)
    pixels = np.asarray(Image.open(images / "0.png"))
    latent = encoder.graph_output(pixels[None])[0]
    data = LatentCoder(encoder.bundle, latent, 96, 96, encoder.profile).at(240)
    found = budgets._Found()
    found.add(encoder.bundle, latent, data)
    with pytest.raises(BenchmarkError, match="does not hold the image's symbols"):
        found.add(encoder.bundle, latent + 3, data)
    assert found.sizes == [len(data)]


def test_a_bundle_with_one_rate_is_refused(
    random_bundle: Path, images: Path, capsys: Capture
) -> None:
    assert budgets.main(["--data", str(images), "--bundle", str(random_bundle)]) == 1
    assert "has one rate" in capsys.readouterr().err
