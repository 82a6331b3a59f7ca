"""edge.weights and edge.tables: what export writes, how near to float32, and what is refused."""

import hashlib
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import integer_encoder as oracle
import numpy as np
import onnx
import pytest
from PIL import Image
from variable_bundle import end_in_latent

from export import stages
from export.graphs import export_edge
from export.images import Reading, labelled_paths, synthetic_images
from export.int8.gate import GateError, deviation, judge, reasons
from export.int8.native import NotNativeError, write_weights
from export.int8.ranges import Calibration, Ranges, RangesError, take_ranges
from export.link import Link
from export.states import Quantised
from export.tables import Coder
from runtime.codec.bundle import EDGE_TABLES, EDGE_WEIGHTS, Bundle
from runtime.engine.native import _encoder
from runtime.engine.onnxruntime import open_session
from training.models import build_random_model

PROJECT = Path(__file__).resolve().parents[2]
RANGES = PROJECT / "checkpoints" / "ours_n4" / "lmb1.28.ranges.json"
PRINT = bytes(range(32))


def ranges_of(graph: Path, side: int = 16) -> Ranges:
    return take_ranges(graph, [synthetic_images(3, side)] * 100, "a" * 64)[0]


def changed(graph: Path, out: Path, **replaced: Any) -> Path:
    """The graph with functions applied to weights (`weight_N`) and biases (`bias_N`) by layer."""
    model = onnx.load(graph)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    names = {
        f"{kind}_{index}": node.input[1 + place]
        for index, node in enumerate(convolutions)
        for place, kind in enumerate(("weight", "bias"))
        if 1 + place < len(node.input)
    }
    change = {names[name]: function for name, function in replaced.items()}
    for tensor in model.graph.initializer:
        if tensor.name in change:
            values = change[tensor.name](onnx.numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, out)
    return out


def test_edge_tables_says_what_manifest_and_tables_say(bundle: Path, random_bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    data = loaded.read(EDGE_TABLES)
    manifest = loaded.manifest
    shape, rule = manifest.shape, manifest.preprocessing
    assert struct.unpack_from("<8s8I", data) == (
        b"EDGETABL",
        1,
        *(shape.channels, shape.stride, shape.shrink, manifest.max_symbols),
        *(rule.resize, rule.crop, manifest.profile.value),
    )
    assert data[40:72].hex() == manifest.bottleneck_sha256
    assert data[72:104] == manifest.fingerprint
    assert data[104:136].hex() == manifest.files[EDGE_WEIGHTS].sha256
    assert hashlib.sha256(data[136:-4]).digest() == loaded.tables.digest()
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    assert EDGE_TABLES not in Bundle.load(random_bundle).manifest.files, "it has no edge.weights"


def test_edge_tables_of_a_variable_rate_bundle(variable_bundle: Path) -> None:
    """Made by export.edge_tables.variable_bytes: rates, the gain of each step, and each level."""
    loaded = Bundle.load(variable_bundle)
    variable, data = loaded.variable, loaded.read(EDGE_TABLES)
    assert variable is not None
    assert struct.unpack_from("<8sI", data) == (b"EDGETABL", 2)
    (default,) = struct.unpack_from("<I", data, 136)
    assert default == loaded.default_step
    rates = variable.rates
    known = rates.to_bytes()
    at = 140 + len(known)
    assert data[140:at] == known
    gains = np.frombuffer(data, "<f4", 241 * rates.channels, at).reshape(241, rates.channels)
    assert np.array_equal(gains, [rates.gain(step).ravel() for step in range(241)])
    at += gains.nbytes
    for tables in variable.levels:
        (size,) = struct.unpack_from("<I", data, at)
        assert hashlib.sha256(data[at + 4 : at + 4 + size]).digest() == tables.digest()
        at += 4 + size
    assert at == len(data) - 4


def of_latent(graph: Path, out: Path) -> Path:
    """The graph cut at its latent, as that of a variable-rate model."""
    model = onnx.load(graph)
    end_in_latent(model)
    onnx.save(model, out)
    return out


def test_an_encoder_that_gives_the_latent(random_bundle: Path, tmp_path: Path) -> None:
    graph, out = of_latent(random_bundle / "edge.onnx", tmp_path / "edge.onnx"), tmp_path / "w"
    ranges = ranges_of(graph, 64)
    low, high = ranges.operators[-1][1:]
    write_weights(graph, ranges, "a" * 64, PRINT, out)
    weights = oracle.read(out.read_bytes())
    fraction = weights.latent_fraction
    assert fraction is not None
    largest = max(-low, high)
    assert 2 * largest < 2.0 ** (15 - fraction) <= 4 * largest, "room for twice the range"
    images = synthetic_images(4)
    expected = open_session(graph).run(None, {"pixels": images})[0]
    found = _encoder.Encoder(out.read_bytes()).encode(images) / 2**fraction
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 0.002 * np.abs(expected).max()


def test_a_latent_without_a_range_or_too_large(random_bundle: Path, tmp_path: Path) -> None:
    graph, out = of_latent(random_bundle / "edge.onnx", tmp_path / "edge.onnx"), tmp_path / "w"
    ranges = ranges_of(graph)
    for high, text in (
        (0.0, "lack that of the latent: take them again with --calibrate"),
        (1e5, "a latent of 1e[+]05 is too large for the native encoder"),
    ):
        changed = replace(ranges, operators=[*ranges.operators[:-1], ("Conv", 0.0, high)])
        with pytest.raises(NotNativeError, match=text):
            write_weights(graph, changed, "a" * 64, PRINT, out)
        assert not out.exists()


def test_the_default_bundle_has_one_that_is_near_to_float32(bundle: Path) -> None:
    data = (bundle / EDGE_WEIGHTS).read_bytes()
    assert len(data) <= 700_000
    loaded = Bundle.load(bundle)
    assert loaded.read(EDGE_WEIGHTS) == data
    weights = oracle.read(data)
    assert weights.fingerprint == loaded.fingerprint
    assert len(weights.layers) == 10
    images = synthetic_images(4)
    expected = open_session(bundle / "edge.onnx").run(None, {"pixels": images})[0]
    int8 = open_session(bundle / "edge.int8.onnx").run(None, {"pixels": images})[0]
    found = _encoder.Encoder(data).encode(images)
    assert (found != expected).mean() < 0.002
    assert (found != expected).sum() < (int8 != expected).sum(), "it rounds less than the graph"
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_it_is_the_same_at_each_export(bundle: Path, tmp_path: Path) -> None:
    calibration = Calibration.from_json(RANGES.read_text(), RANGES.name)
    edge, out = calibration.edge, tmp_path / "edge.weights"
    fingerprint = Bundle.load(bundle).fingerprint
    write_weights(bundle / "edge.onnx", edge, edge.sha256, fingerprint, out)
    assert out.read_bytes() == (bundle / EDGE_WEIGHTS).read_bytes()
    assert oracle.write(oracle.read(out.read_bytes())) == out.read_bytes()


def test_an_encoder_without_blocks(random_bundle: Path, tmp_path: Path) -> None:
    graph, out = random_bundle / "edge.onnx", tmp_path / "edge.weights"
    write_weights(graph, ranges_of(graph, 64), "a" * 64, PRINT, out)
    images = synthetic_images(4)
    expected = open_session(graph).run(None, {"pixels": images})[0]
    found = _encoder.Encoder(out.read_bytes()).encode(images)
    assert (expected != 0).mean() > 0.1
    assert (found != expected).mean() < 0.003
    assert np.abs(found.astype(int) - expected).max() == 1


def test_weights_of_any_size_are_accepted_by_the_reader(
    random_bundle: Path, tmp_path: Path
) -> None:
    """Channels without weights and with a large bias, and outputs of thousands."""

    def dead(values: np.ndarray) -> np.ndarray:
        values[:3] = 0
        return values

    def large(values: np.ndarray) -> np.ndarray:
        values[:2] = 100
        return values

    graph = changed(
        random_bundle / "edge.onnx",
        tmp_path / "edge.onnx",
        weight_0=dead,
        bias_0=large,
        weight_1=lambda values: 300 * values,
    )
    out = tmp_path / "edge.weights"
    write_weights(graph, ranges_of(graph), "a" * 64, PRINT, out)
    weights = oracle.read(out.read_bytes())
    assert weights.fraction == 8, "a value of 125 needs seven bits before the point"
    images = synthetic_images(2, 64)
    expected = open_session(graph).run(None, {"pixels": images})[0].astype(int)
    found = _encoder.Encoder(out.read_bytes()).encode(images)
    assert np.abs(expected).max() > 1000
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()


def test_values_that_are_too_large(random_bundle: Path, tmp_path: Path) -> None:
    graph = changed(
        random_bundle / "edge.onnx", tmp_path / "edge.onnx", bias_0=lambda values: values + 1000
    )
    with pytest.raises(NotNativeError, match="between its layers are too large"):
        write_weights(graph, ranges_of(graph), "a" * 64, PRINT, tmp_path / "edge.weights")
    assert not (tmp_path / "edge.weights").exists()


def test_ranges_of_another_checkpoint(random_bundle: Path, tmp_path: Path) -> None:
    graph = random_bundle / "edge.onnx"
    with pytest.raises(RangesError, match="another checkpoint or graph"):
        write_weights(graph, ranges_of(graph), "b" * 64, PRINT, tmp_path / "edge.weights")


def _other_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Gelu").op_type = "Abs"


def _other_chain(graph: onnx.GraphProto) -> None:
    last = [node for node in graph.node if node.op_type == "Conv"][-1]
    gelu = next(node for node in graph.node if node.op_type == "Gelu")
    last.input[0] = gelu.input[0]


def _other_sizes(graph: onnx.GraphProto) -> None:
    last = [node for node in graph.node if node.op_type == "Conv"][-1]
    for tensor in graph.initializer:
        if tensor.name in last.input[1:]:
            values = onnx.numpy_helper.to_array(tensor)
            half = onnx.numpy_helper.from_array(values[:32].copy(), tensor.name)
            tensor.CopyFrom(half)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_other_operator, "its operators are Transpose, Cast, Conv, Abs, Clip, Round"),
        (_other_chain, "operators in another order"),
        (_other_sizes, "other sizes than the native encoder knows"),
    ],
)
def test_another_encoder_is_refused(
    random_bundle: Path, tmp_path: Path, change: Any, text: str
) -> None:
    """An Abs is the beginning of a GDN."""
    model = onnx.load(random_bundle / "edge.onnx")
    change(model.graph)
    onnx.save(model, tmp_path / "edge.onnx")
    ranges = Ranges("a" * 64, [(node.op_type, -1.0, 1.0) for node in model.graph.node])
    with pytest.raises(NotNativeError, match=text):
        write_weights(tmp_path / "edge.onnx", ranges, "a" * 64, PRINT, tmp_path / "out")


def test_matsubara_has_gdn_and_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "edge.onnx"
    export_edge(build_random_model("matsubara2022wacv", 10), graph)
    operators = [(node.op_type, -1.0, 1.0) for node in onnx.load(graph).graph.node]
    with pytest.raises(NotNativeError, match="no encoder of convolutions and GELU alone") as error:
        write_weights(graph, Ranges("a" * 64, operators), "a" * 64, PRINT, tmp_path / "out")
    assert "Abs, " in str(error.value)
    assert "the native encoder cannot compute it" in str(error.value)


def test_without_weights_the_export_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise NotNativeError("edge.onnx is no encoder of convolutions and GELU alone")

    monkeypatch.setattr(stages, "write_weights", refuse)
    monkeypatch.setattr(stages, "_graph_hashes", lambda state: {"edge": ""})
    known: dict[str, Any] = dict.fromkeys(Quantised.__dataclass_fields__)
    known |= {"work": tmp_path, "graphs": {"edge": {"fp32": tmp_path}, "cloud": {}}}
    coder = SimpleNamespace(fingerprint=PRINT, link=Link())
    known |= {"coder": coder, "calibration": SimpleNamespace(edge=0)}
    state: Any = SimpleNamespace(**known)
    assert stages.write_native(state).graphs == state.graphs
    assert "no edge.weights is written: edge.onnx is no encoder" in capsys.readouterr().err


def test_the_gate_judges_it(bundle: Path, tmp_path: Path) -> None:
    for index, image in enumerate(synthetic_images(3, 64)):
        (tmp_path / f"class {index}").mkdir()
        Image.fromarray(image).save(tmp_path / f"class {index}" / "one.png")
    paths = labelled_paths(tmp_path, [f"class {index}" for index in range(10)])
    graphs = {
        "edge": {"fp32": bundle / "edge.onnx", "native": bundle / EDGE_WEIGHTS},
        "cloud": {"fp32": bundle / "cloud.onnx"},
    }
    loaded = Bundle.load(bundle)
    coder = Coder(loaded.fingerprint, loaded.tables, loaded.manifest.profile)
    record = judge(graphs, coder, paths, "synthetic", Reading(as_is=True))
    assert {"edge", "cloud", "both", "bpp"}.isdisjoint(record)
    native = record["native"]
    assert 0 < native["symbols_changed"] < 0.003
    assert abs(native["more_bytes"]) < 0.02
    assert native["top1_change"]["mean"] == (native["won"] - native["lost"]) / 3
    for key, value, text in (
        ("more_bytes", 0.021, "files grow by 2.1%"),
        ("more_bytes", float("nan"), "files grow"),
        ("top1_change", {"mean": -0.004}, "top-1 changes by -0.40%"),
    ):
        why = reasons({"native": native | {"top1_change": {"mean": 0.0}} | {key: value}}, "native")
        assert text in why[0]
    assert set(deviation(graphs, synthetic_images(2))) == {"native"}


def test_one_too_far_from_float32_is_seen(bundle: Path, tmp_path: Path) -> None:
    weights = oracle.read((bundle / EDGE_WEIGHTS).read_bytes())
    last = weights.layers[-1]
    weights.layers[-1] = replace(last, multipliers=last.multipliers // 4 | 1)
    (tmp_path / EDGE_WEIGHTS).write_bytes(oracle.write(weights))
    graphs = {
        "edge": {"fp32": bundle / "edge.onnx", "native": tmp_path / EDGE_WEIGHTS},
        "cloud": {"fp32": bundle / "cloud.onnx"},
    }
    with pytest.raises(GateError, match="of the symbols are others in native"):
        deviation(graphs, synthetic_images(2))
