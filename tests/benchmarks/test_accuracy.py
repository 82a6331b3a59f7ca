"""benchmarks/accuracy.py: a variable-rate bundle at several levels, in one record."""

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
    assert accuracy.main([*arguments, "--json", "--levels", "0", "7.5", "15"]) == 0
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


def test_levels_of_a_fixed_rate_are_refused(
    random_bundle: Path, images: Path, capsys: Capture
) -> None:
    arguments = ["--data", str(images), "--bundle", str(random_bundle), "--as-is"]
    assert accuracy.main([*arguments, "--levels", "3"]) == 1
    assert "has one rate: leave out --levels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accuracy.main([*arguments, "--levels", "16"])
    assert accuracy.main([*arguments, "--json", "--threads", "1", "--workers", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "points" not in record
    assert 0 <= record["top1"]["share"] <= 1
