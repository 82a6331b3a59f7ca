"""benchmarks/accuracy.py: a variable-rate bundle at levels and byte budgets, in one record."""

import json
from pathlib import Path

import pytest
from PIL import Image
from variable_bundle import make_variable_bundle

from benchmarks import accuracy
from benchmarks.rate_accuracy import _points
from export.images import synthetic_images
from runtime import EdgeEncoder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def variable(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variable-rate bundle with the classes of the random bundle."""
    return make_variable_bundle(random_bundle, tmp_path_factory.mktemp("bundles") / "variable")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the random bundles, of two images each."""
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(synthetic_images(4, 96)):
        path = folder / f"thing {index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_one_record_has_all_levels(variable: Path, images: Path, capsys: Capture) -> None:
    arguments = ["--data", str(images), "--bundle", str(variable), "--as-is"]
    arguments += ["--threads", "1", "--workers", "1"]
    assert accuracy.main([*arguments, "--json", "--levels", "0", "7.51", "7.5", "15"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [point["level"] for point in record["points"]] == [0, 7.5, 15]
    assert record["images"] == 4
    sizes = [point["bytes"]["mean"] for point in record["points"]]
    assert sizes == sorted(sizes)
    files = sorted(images.rglob("*.png"))
    for level, size in zip((0, 7.5, 15), sizes, strict=True):
        encoder = EdgeEncoder(variable, 1, rate=level)
        assert sum(len(encoder.encode(file, as_is=True)) for file in files) / 4 == size
    drawn = list(_points(record))
    assert [name for name, _ in drawn] == [record["model"]] * 3
    assert [point.name for _, point in drawn] == ["level 0", "level 7.5", "level 15"]
    assert [point.bytes for _, point in drawn] == sizes
    # The default level alone, as text.
    assert accuracy.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("level ") == 1
    assert "level 8\n" in text


def test_byte_budgets_stand_beside_levels(variable: Path, images: Path, capsys: Capture) -> None:
    files = sorted(images.rglob("*.png"))
    encoder = EdgeEncoder(variable, 1)
    least = [len(encoder.encode(file, as_is=True, rate=0)) for file in files]
    tight = max(least) - 1  # one image at least does not fit, and is cut
    arguments = ["--data", str(images), "--bundle", str(variable), "--as-is"]
    arguments += ["--threads", "1", "--workers", "1", "--levels", "15", "0"]
    arguments += ["--max-bytes", str(tight), "100000", "--target-bytes", "100000"]
    assert accuracy.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    low, high, cut, roomy, target = record["points"]
    assert (low["level"], high["level"]) == (0, 15)
    assert cut["max_bytes"] == tight >= cut["bytes"]["p95"]
    assert cut["cut"] == sum(size > tight for size in least) >= 1
    assert roomy["cut"] == 0
    assert roomy["bytes"] == high["bytes"] == target["bytes"]
    assert roomy["top1"] == high["top1"] == target["top1"]
    assert [point.name for _, point in _points(record)] == ["level 0", "level 15"]
    assert accuracy.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"at most {tight} bytes: {cut['cut']} files are cut" in text
    assert "100000 bytes on average" in text


def test_levels_of_a_fixed_rate_are_refused(
    random_bundle: Path, images: Path, capsys: Capture
) -> None:
    arguments = ["--data", str(images), "--bundle", str(random_bundle), "--as-is"]
    for option in ("--levels", "--max-bytes", "--target-bytes"):
        assert accuracy.main([*arguments, option, "3"]) == 1
        assert "has one rate" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accuracy.main([*arguments, "--levels", "16"])
    assert accuracy.main([*arguments, "--json", "--threads", "1", "--workers", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "points" not in record
    assert 0 <= record["top1"]["share"] <= 1
