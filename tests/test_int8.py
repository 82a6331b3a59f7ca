"""int8: ranges and whose they are, what is quantised, the gate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export import __main__ as command
from export.gate import GateError, changed_share, judge, reasons
from export.images import labelled_paths, synthetic_images
from export.quantise import Ranges, RangesError, quantise, take_ranges
from runtime.bundle import Bundle

Capture = pytest.CaptureFixture[str]
PROJECT = Path(__file__).resolve().parent.parent
RANGES = PROJECT / "checkpoints" / "ours_n4" / "lmb1.28.ranges.json"


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    return Ranges.from_json(RANGES.read_text(), RANGES.name)


def test_the_default_bundle_has_an_int8_graph_that_was_judged(bundle: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    assert manifest["precision"] == "auto"
    gate = manifest["precisions"]["int8"]["gate"]
    assert gate["images"] >= 300
    assert gate["labelled"]
    assert not reasons(gate)
    assert manifest["precisions"]["int8"]["milliseconds"] > 0
    assert manifest["precisions"]["fp32"]["milliseconds"] > 0


def test_all_convolutions_but_the_ends_are_quantised_and_gelu_is_whole(bundle: Path) -> None:
    nodes = onnx.load(bundle / "edge.int8.onnx").graph.node
    outputs = {output: node.op_type for node in nodes for output in node.output}
    inputs = [outputs.get(node.input[0]) for node in nodes if node.op_type == "Conv"]
    assert inputs == ["Cast", *["DequantizeLinear"] * 8, "Add"]
    plain = onnx.load(bundle / "edge.onnx").graph.node
    assert sum(node.op_type == "Gelu" for node in nodes) == sum(node.op_type == "Gelu" for node in plain) == 8


def test_ranges_survive_their_file(ranges: Ranges) -> None:
    assert Ranges.from_json(ranges.to_json(), "x") == ranges


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"sha256": "a", "images": 1, "source": "s", "operators": [["Conv", 1]]}',
        '{"sha256": "a", "images": 1, "source": "s", "operators": [["Conv", 2.0, 1.0]]}',
        '{"sha256": "a", "images": 1, "source": "s", "operators": [["Conv", NaN, 1.0]]}',
        '{"sha256": "a", "images": 1, "source": "s", "operators": [], "more": 1}',
        "[" * 10000,
    ],
)
def test_ranges_that_make_no_sense(text: str) -> None:
    with pytest.raises(RangesError, match=r"some\.json.*--calibrate DIR"):
        Ranges.from_json(text, "some.json")


def test_ranges_of_another_checkpoint_or_graph(bundle: Path, random_bundle: Path, ranges: Ranges, tmp_path: Path) -> None:
    with pytest.raises(RangesError, match="another checkpoint or graph"):
        quantise(bundle / "edge.onnx", ranges, "0" * 64, tmp_path / "int8.onnx")
    with pytest.raises(RangesError, match="another checkpoint or graph"):
        quantise(random_bundle / "edge.onnx", ranges, ranges.sha256, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_a_graph_of_two_convolutions_has_nothing_to_quantise(random_bundle: Path, tmp_path: Path) -> None:
    ranges = take_ranges(random_bundle / "edge.onnx", [synthetic_images(3, 16)] * 100, "a" * 64, "synthetic")
    assert ranges.images == 300
    with pytest.raises(RangesError, match="nothing between the first and the last"):
        quantise(random_bundle / "edge.onnx", ranges, "a" * 64, tmp_path / "int8.onnx")


def test_ranges_want_enough_images(random_bundle: Path) -> None:
    with pytest.raises(RangesError, match="6 images are too few"):
        take_ranges(random_bundle / "edge.onnx", [synthetic_images(3, 16)] * 2, "a" * 64, "synthetic")


def test_ranges_are_what_the_graph_computes(bundle: Path, ranges: Ranges) -> None:
    rows = take_ranges(bundle / "edge.onnx", [synthetic_images(3, 32)] * 100, "a" * 64, "synthetic").operators
    assert [row[0] for row in rows] == [row[0] for row in ranges.operators]
    gelus = [row for row in rows if row[0] == "Gelu"]
    assert len(gelus) == 8
    assert all(-0.171 < low <= 0 < high for _, low, high in gelus), "GELU has a least value"


def test_a_range_too_narrow_is_seen(bundle: Path, ranges: Ranges, tmp_path: Path) -> None:
    """The gate by symbols: ranges a hundredth as wide spoil the graph."""
    narrow = replace(ranges, operators=[(operator, low / 100, high / 100) for operator, low, high in ranges.operators])
    quantise(bundle / "edge.onnx", narrow, ranges.sha256, tmp_path / "int8.onnx")
    with pytest.raises(GateError, match="of the symbols are others in int8"):
        changed_share(bundle / "edge.onnx", tmp_path / "int8.onnx", synthetic_images(2))


def test_the_judge_counts_what_int8_wins_and_loses(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for index, image in enumerate(synthetic_images(10, 64)):
        (folder / f"class {index}").mkdir(parents=True)
        Image.fromarray(image).save(folder / f"class {index}" / "one.png")
    (folder / "class 3" / "two.png").write_bytes(b"no image")
    paths = labelled_paths(folder, 10)
    assert [label for _, label in paths] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert {label for _, label in labelled_paths(folder, 3)} == {None}
    loaded = Bundle.load(bundle)
    graphs = (bundle / "edge.onnx", bundle / "edge.int8.onnx", bundle / "cloud.onnx")
    same = judge(graphs[0], graphs[0], graphs[2], loaded.encode, paths, True, "synthetic")
    assert (same["images"], same["symbols_changed"], same["more_bytes"], same["lost"], same["won"]) == (10, 0, 0, 0, 0)
    assert same["labelled"]
    unlabelled = judge(*graphs, loaded.encode, labelled_paths(folder, 3), True, "synthetic")
    assert 0 < unlabelled["symbols_changed"] < 0.02
    assert unlabelled["won"] == 0
    assert not unlabelled["labelled"]
    with pytest.raises(GateError, match="no image could be read"):
        judge(*graphs, loaded.encode, [(folder / "class 3" / "two.png", 3)], True, "synthetic")


@pytest.mark.parametrize(
    ("top1", "more", "text"),
    [(-0.004, 0.0, "top-1 changes by -0.40%"), (0.0, 0.03, "files grow by 3.0%"), (float("nan"), 0.0, "top-1"), (-0.003, 0.02, None)],
)
def test_what_is_not_good_enough(top1: float, more: float, text: str | None) -> None:
    found = reasons({"top1_change": {"mean": top1}, "more_bytes": more})
    assert (text in found[0]) if text else not found


def test_no_ranges_and_int8_asked_for(random_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--checkpoint", str(random_checkpoint), "--out", str(tmp_path / "out")]
    assert command.main(["ours_n0", "--precision", "int8", *out]) == 1
    assert "give images to take them of with --calibrate DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_calibrate_to_bundle(tmp_path: Path, capsys: Capture) -> None:
    for index, image in enumerate(synthetic_images(340, 32)):
        folder = tmp_path / "images" / f"class {index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    kept, out = tmp_path / "ranges.json", tmp_path / "out"
    calibrate = ["--calibrate", str(tmp_path / "images"), "--as-is", "--ranges", str(kept)]
    status = command.main(["ours_n4", *calibrate, "--out", str(out)])
    record = json.loads(kept.read_text())
    assert status == 0, capsys.readouterr().err
    assert record["images"] == 306
    assert record["gate"]["images"] == 34
    # Pictures of noise are not what the model knows: int8 may or may not be good enough on them, and the bundle says which.
    good = not reasons(record["gate"])
    assert ("int8" in json.loads((out / "manifest.json").read_text())["precisions"]) is good
    assert (out / "edge.int8.onnx").exists() is good
    record["gate"]["top1_change"]["mean"] = -0.5
    kept.write_text(json.dumps(record))
    assert command.main(["ours_n4", "--precision", "int8", "--ranges", str(kept), "--out", str(tmp_path / "other")]) == 3
    assert "int8 is not good enough" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert np.isfinite(record["gate"]["more_bytes"])
