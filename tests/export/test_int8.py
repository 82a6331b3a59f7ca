"""int8: ranges and the graph they belong to, what is quantised, the gate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from export import cli as command
from export.graphs import Graphs
from export.images import Reading, labelled_paths, synthetic_images
from export.int8.gate import GateError, deviation, judge, reasons
from export.int8.quantise import NothingToQuantiseError, quantise
from export.int8.ranges import Calibration, RangesError, take_ranges
from export.tables import Coder
from runtime import EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.engine.onnxruntime import open_session

Capture = pytest.CaptureFixture[str]
PROJECT = Path(__file__).resolve().parents[2]
RANGES = PROJECT / "checkpoints" / "ours_n4" / "lmb1.28.ranges.json"


HEAD = '"images": 1, "source": "s"'
CLOUD = '"cloud": {"sha256": "a", "operators":'
ONE_EDGE = '"edge": {"sha256": "a", "operators": [["Conv", 0.0, 1.0]]}'


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.from_json(RANGES.read_text(), RANGES.name)


def graphs_of(bundle: Path) -> Graphs:
    return {
        "edge": {"fp32": bundle / "edge.onnx", "int8": bundle / "edge.int8.onnx"},
        "cloud": {"fp32": bundle / "cloud.onnx", "int8": bundle / "cloud.int8.onnx"},
    }


def coder_of(bundle: Path) -> Coder:
    loaded = Bundle.load(bundle)
    return Coder(loaded.fingerprint, loaded.tables, loaded.manifest.profile)


def test_the_default_bundle_has_int8_graphs_that_were_judged(bundle: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    assert manifest.precision == "auto"
    int8 = manifest.record["int8"]
    assert int8["graphs"] == ["edge", "cloud"]
    gate, validation = int8["gate"], int8["validation"]
    assert gate["images"] >= 300
    assert validation["images"] == 1966
    for record in (gate, validation):
        assert record["labelled"]
        assert not [why for what in ("edge", "cloud", "native") for why in reasons(record, what)]
        assert record["both"]["top1_change"]["mean"] > -0.005


def test_what_is_quantised_and_gelu_is_whole(bundle: Path) -> None:
    for end, inputs in (
        ("edge", ["DequantizeLinear"] * 9 + ["Add"]),
        ("cloud", ["DequantizeLinear"] * 46),
    ):
        nodes = onnx.load(bundle / f"{end}.int8.onnx").graph.node
        outputs = {output: node.op_type for node in nodes for output in node.output}
        assert [outputs.get(node.input[0]) for node in nodes if node.op_type == "Conv"] == inputs
        plain = onnx.load(bundle / f"{end}.onnx").graph.node
        assert (
            sum(node.op_type == "Gelu" for node in nodes)
            == sum(node.op_type == "Gelu" for node in plain)
            > 0
        )


def steps_around(graph: onnx.GraphProto, operator: str) -> list[list[tuple[float, int]]]:
    """Step and zero point before and after each operator that quantised values go into."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    read_by = {name: node for node in graph.node for name in node.input}
    return [
        [(float(values[one.input[1]]), int(values[one.input[2]])) for one in (before, after)]
        for node in graph.node
        if node.op_type == operator
        and (before := made_by[node.input[0]]).op_type == "DequantizeLinear"
        and (after := read_by[node.output[0]]).op_type == "QuantizeLinear"
    ]


def test_before_a_relu_values_have_the_eight_bits_that_they_have_after_it(bundle: Path) -> None:
    found = steps_around(onnx.load(bundle / "cloud.int8.onnx").graph, "Relu")
    assert len(found) == 26
    for before, after in found:
        assert before == after
        assert before[1] == 0, "the least value is 0"


def test_before_a_clip_too_within_its_bounds(tmp_path: Path) -> None:
    weights = np.ones((1, 1, 1, 1), np.float32)
    constants = {"weights": weights, "low": np.float32(0), "high": np.float32(6)}
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["first"]),
            helper.make_node("Conv", ["first", "weights"], ["wide"], "a"),
            helper.make_node("Clip", ["wide", "low", "high"], ["clipped"]),
            helper.make_node("Conv", ["clipped", "weights"], ["out"], "b"),
        ],
        "clipped",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 8, 8])],
        [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "cloud.onnx",
    )
    values = [np.linspace(0, 40, 64, dtype=np.float32).reshape(1, 1, 8, 8)] * 300
    ranges, _ = take_ranges(tmp_path / "cloud.onnx", values, "a" * 64, 1.25)
    assert ranges.operators[2] == ("Clip", 0.0, 7.5)
    quantise(tmp_path / "cloud.onnx", ranges, "a" * 64, tmp_path / "cloud.int8.onnx")
    ((before, after),) = steps_around(onnx.load(tmp_path / "cloud.int8.onnx").graph, "Clip")
    assert before == after == (pytest.approx(6 / 255), 0)


def test_pixels_and_symbols_are_taken_as_the_whole_numbers_that_they_are(bundle: Path) -> None:
    for end, zero in (("edge", 0), ("cloud", 128)):
        graph = onnx.load(bundle / f"{end}.int8.onnx").graph
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        made_by = {node.output[0]: node for node in graph.node}
        first = made_by[next(node for node in graph.node if node.op_type == "Conv").input[0]]
        assert values[first.input[1]] == 1.0
        assert values[first.input[2]] == zero
    assert first.op_type == "DequantizeLinear"


def test_for_arm_activations_are_signed_and_their_values_the_same(
    bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    graphs, images = graphs_of(bundle), synthetic_images(2)
    symbols = open_session(graphs["edge"]["int8"]).run(None, {"pixels": images})[0]
    for end, ranges, inputs in (
        ("edge", calibration.edge, {"pixels": images}),
        ("cloud", calibration.cloud, {"symbols": symbols}),
    ):
        quantise(graphs[end]["fp32"], ranges, ranges.sha256, tmp_path / end, signed=True)
        graph = onnx.load(tmp_path / end).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        steps = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
        assert steps == {onnx.TensorProto.INT8}
        found, expected = (
            open_session(path).run(None, inputs)[0]
            for path in (tmp_path / end, graphs[end]["int8"])
        )
        # A value halfway between two steps may fall either way: another zero point is added to it.
        assert (
            (found != expected).mean() < 2e-4
            if end == "edge"
            else np.allclose(found, expected, atol=0.1)
        )


def test_ranges_survive_their_file(calibration: Calibration) -> None:
    assert Calibration.from_json(calibration.to_json(), "x") == calibration


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        f"{{{HEAD}, {ONE_EDGE}}}",
        f'{{{HEAD}, {ONE_EDGE}, {CLOUD} [["Conv", 1]]}}}}',
        f'{{{HEAD}, {ONE_EDGE}, {CLOUD} [["Conv", 2.0, 1.0]]}}}}',
        f'{{{HEAD}, {ONE_EDGE}, {CLOUD} [["Conv", NaN, 1.0]]}}}}',
        f'{{{HEAD}, {ONE_EDGE}, {CLOUD} []}}, "more": 1}}',
        "[" * 10000,
    ],
)
def test_ranges_that_make_no_sense(text: str) -> None:
    with pytest.raises(RangesError, match=r"some\.json.*--calibrate DIR"):
        Calibration.from_json(text, "some.json")


def test_ranges_of_another_checkpoint_or_graph(
    bundle: Path, random_bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(RangesError, match="another checkpoint or graph"):
        quantise(bundle / "edge.onnx", calibration.edge, "0" * 64, tmp_path / "int8.onnx")
    with pytest.raises(RangesError, match="another checkpoint or graph"):
        quantise(
            random_bundle / "edge.onnx",
            calibration.edge,
            calibration.edge.sha256,
            tmp_path / "int8.onnx",
        )
    assert not (tmp_path / "int8.onnx").exists()


def test_of_an_encoder_of_two_convolutions_the_first_is_quantised(
    random_bundle: Path, tmp_path: Path
) -> None:
    ranges, images = take_ranges(
        random_bundle / "edge.onnx", [synthetic_images(3, 16)] * 100, "a" * 64, 1.25
    )
    assert images == 300
    quantise(random_bundle / "edge.onnx", ranges, "a" * 64, tmp_path / "edge.int8.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "edge.int8.onnx").graph.node]
    assert operators.count("Conv") == 2
    assert operators.count("QuantizeLinear") == 1


def test_a_graph_with_nothing_to_quantise(random_bundle: Path, tmp_path: Path) -> None:
    """Its only convolution is the one whose output is rounded to symbols."""
    model = onnx.load(random_bundle / "edge.onnx")
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    last.op_type = "Identity"
    del last.input[1:], last.attribute[:]
    onnx.save(model, tmp_path / "edge.onnx")
    ranges, _ = take_ranges(tmp_path / "edge.onnx", [synthetic_images(3, 16)] * 100, "a" * 64, 1.25)
    with pytest.raises(NothingToQuantiseError, match="no convolution to quantise"):
        quantise(tmp_path / "edge.onnx", ranges, "a" * 64, tmp_path / "edge.int8.onnx")


def test_ranges_want_enough_images(random_bundle: Path) -> None:
    with pytest.raises(RangesError, match="6 images are too few"):
        take_ranges(random_bundle / "edge.onnx", [synthetic_images(3, 16)] * 2, "a" * 64, 1.25)


def test_numbers_of_an_images_size_have_no_range(random_bundle: Path, tmp_path: Path) -> None:
    """A graph computes such numbers where its padding depends on the size, as EfficientNet's."""
    model = onnx.load(random_bundle / "edge.onnx")
    name = model.graph.input[0].name
    model.graph.node.extend(
        [
            helper.make_node("Shape", [name], ["sides"], start=1, end=2),
            helper.make_node("Squeeze", ["sides"], ["side"]),
            helper.make_node("Cast", ["side"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Ceil", ["number"], ["rounded"]),
        ]
    )
    onnx.save(model, tmp_path / "edge.onnx")
    rows = [synthetic_images(3, 16)] * 100
    ranges = take_ranges(tmp_path / "edge.onnx", rows, "a" * 64, 1.25)[0].operators
    own = take_ranges(random_bundle / "edge.onnx", rows, "a" * 64, 1.25)[0].operators
    numbers = [(kind, 0.0, 0.0) for kind in ("Shape", "Squeeze", "Cast", "Ceil")]
    assert list(ranges) == [*own, *numbers]


def test_ranges_are_what_the_graph_computes(bundle: Path, calibration: Calibration) -> None:
    images = [synthetic_images(3, 32)] * 100
    rows = take_ranges(bundle / "edge.onnx", images, "a" * 64, 1.25)[0].operators
    assert [row[0] for row in rows] == [row[0] for row in calibration.edge.operators]
    gelus = [row for row in rows if row[0] == "Gelu"]
    assert len(gelus) == 8
    assert all(-0.171 < low / 1.25 <= 0 < high for _, low, high in gelus), "GELU has a least value"


def test_a_range_too_narrow_is_seen(bundle: Path, calibration: Calibration, tmp_path: Path) -> None:
    """Ranges a hundredth as wide spoil a graph: its symbols or logits deviate too far."""
    graphs = graphs_of(bundle)
    for end, ranges, text in (
        ("edge", calibration.edge, "of the symbols are others"),
        ("cloud", calibration.cloud, "a logit moves by"),
    ):
        narrow = replace(
            ranges,
            operators=[
                (operator, low / 100, high / 100) for operator, low, high in ranges.operators
            ],
        )
        quantise(graphs[end]["fp32"], narrow, ranges.sha256, tmp_path / end)
        with pytest.raises(GateError, match=text):
            deviation(
                graphs | {end: {"fp32": graphs[end]["fp32"], "int8": tmp_path / end}},
                synthetic_images(2),
            )
    assert 0 < deviation(graphs, synthetic_images(2))["edge"] < 0.02


def test_the_judge_counts_what_int8_wins_and_loses(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for index, image in enumerate(synthetic_images(10, 64)):
        (folder / f"class {index}").mkdir(parents=True)
        Image.fromarray(image).save(folder / f"class {index}" / "one.png")
    (folder / "class 3" / "two.png").write_bytes(b"no image")
    labels = [f"class {index}" for index in range(10)]
    paths = labelled_paths(folder, labels)
    assert [label for _, label in paths] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert {label for _, label in labelled_paths(folder, labels[:3])} == {None}
    coder, graphs = coder_of(bundle), graphs_of(bundle)
    as_is = Reading(as_is=True)
    twice = {end: {"fp32": files["fp32"], "int8": files["fp32"]} for end, files in graphs.items()}
    same = judge(twice, coder, paths, "synthetic", as_is)
    assert (same["images"], same["symbols_changed"], same["more_bytes"]) == (10, 0, 0)
    assert [(same[way]["lost"], same[way]["won"]) for way in ("edge", "cloud", "both")] == [
        (0, 0)
    ] * 3
    assert same["labelled"]
    assert 0 <= same["top1"] <= 1
    unlabelled = judge(graphs, coder, labelled_paths(folder, labels[:3]), "synthetic", as_is)
    assert 0 < unlabelled["symbols_changed"] < 0.02
    assert unlabelled["both"]["won"] == 0
    assert unlabelled["top1"] is None
    assert not unlabelled["labelled"]
    only_cloud = judge(
        graphs | {"edge": {"fp32": graphs["edge"]["fp32"]}}, coder, paths[:2], "synthetic", as_is
    )
    assert {"edge", "both", "more_bytes"}.isdisjoint(only_cloud)
    assert (
        only_cloud["cloud"]["top1_change"]["mean"]
        == (only_cloud["cloud"]["won"] - only_cloud["cloud"]["lost"]) / 2
    )
    with pytest.raises(GateError, match="no image could be read"):
        judge(graphs, coder, [(folder / "class 3" / "two.png", 3)], "synthetic", as_is)


@pytest.mark.parametrize(
    ("top1", "more", "text"),
    [
        (-0.004, 0.0, "top-1 changes by -0.40%"),
        (0.0, 0.03, "files grow by 3.0%"),
        (float("nan"), 0.0, "top-1"),
        (-0.003, 0.02, None),
    ],
)
def test_what_is_not_good_enough(top1: float, more: float, text: str | None) -> None:
    record = {
        "edge": {"top1_change": {"mean": top1}},
        "cloud": {"top1_change": {"mean": top1}},
        "more_bytes": more,
    }
    found = reasons(record, "edge")
    assert (text in found[0]) if text else not found
    assert bool(reasons(record, "cloud")) == bool(text and "top-1" in text), (
        "the cloud writes no files"
    )


def test_no_ranges_and_int8_asked_for(
    random_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = ["--checkpoint", str(random_checkpoint), "--out", str(tmp_path / "out")]
    assert command.main(["ours_n0", "--precision", "int8", *out]) == 1
    assert "give images to take them of with --calibrate DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bundle_for_arm(bundle: Path, tmp_path: Path) -> None:
    assert command.main(["ours_n4", "--device", "arm", "--out", str(tmp_path / "out")]) == 0
    arm, x86 = Bundle.load(tmp_path / "out").manifest, Bundle.load(bundle).manifest
    assert (arm.record["int8"]["activations"], x86.record["int8"]["activations"]) == (
        "int8",
        "uint8",
    )
    assert arm.fingerprint == x86.fingerprint, "either end may be of either kind"
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    pixels = synthetic_images(2)
    found, expected = (
        EdgeEncoder(tmp_path / "out", 2, provider="openvino", precision=one).symbols(pixels)
        for one in ("int8", "fp32")
    )
    assert 0 < (found != expected).mean() < 0.01


@pytest.mark.slow
def test_calibrate_to_bundle(tmp_path: Path, capsys: Capture) -> None:
    for index, image in enumerate(synthetic_images(340, 32)):
        folder = tmp_path / "images" / f"class {index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    kept, out = tmp_path / "ranges.json", tmp_path / "out"
    calibrate = [
        "--calibrate",
        str(tmp_path / "images"),
        "--validate",
        str(tmp_path / "images"),
        "--as-is",
        "--ranges",
        str(kept),
    ]
    status = command.main(["ours_n4", *calibrate, "--out", str(out)])
    record = json.loads(kept.read_text())
    assert status == 0, capsys.readouterr().err
    assert record["images"] == 306
    assert record["gate"]["images"] == 34
    assert record["validation"]["images"] == 340
    # The model was not trained on synthetic images: int8 may or may not be good enough on them.
    good = [end for end in ("edge", "cloud") if not reasons(record["gate"], end)]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["int8"]["graphs"] if manifest["int8"] else []) == good
    assert [end for end in ("edge", "cloud") if (out / f"{end}.int8.onnx").exists()] == good
    record["gate"]["cloud"]["top1_change"]["mean"] = -0.5
    kept.write_text(json.dumps(record))
    assert (
        command.main(
            [
                "ours_n4",
                "--precision",
                "int8",
                "--ranges",
                str(kept),
                "--out",
                str(tmp_path / "other"),
            ]
        )
        == 3
    )
    assert "int8 is not good enough" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert np.isfinite(record["gate"]["more_bytes"])
