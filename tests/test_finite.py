"""No check, no end and no JSON file accepts or returns a NaN or an infinity."""

import ast
import json
import shutil
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from bundle_files import put
from served import served

from benchmarks import rate_accuracy
from export import cli as export_command
from export import stages
from export.counts import Counts, CountsError
from export.images import Reading, synthetic_images
from export.int8.gate import GateError, deviation, judge
from export.int8.ranges import RangesError, take_ranges
from export.parity import ParityError, check_parity
from export.tables import Coder, make_tables
from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.cli import cloud_decode as cloud_cli
from runtime.codec import strict_json
from runtime.codec.bundle import Bundle
from runtime.codec.coder import Tables
from runtime.engine import registry
from runtime.engine import tune as tuning
from runtime.service.app import Settings
from runtime.tasks import registry as task_registry
from runtime.tasks.classification import Classification
from training.checkpoint import load_model, save_model
from training.models import FeatureCompressionModel

PROJECT = Path(__file__).resolve().parent.parent
Capture = pytest.CaptureFixture[str]
Copy = Callable[[Path], Path]
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def files(random_bundle: Path) -> list[bytes]:
    """Feature files of an image, which `broken_bundle` fails on, and of symbols that are all 0."""
    encoder = EdgeEncoder(random_bundle, 1)
    zeros = np.zeros((encoder.bundle.shape.channels, 28, 28), np.int16)
    return [encoder.encode(synthetic_images(1)[0]), encoder.encode_symbols(zeros, 224, 224)]


# Export


@pytest.mark.slow
def test_a_variance_below_zero_is_status_3(
    random_checkpoint: Path,
    random_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """The whole command: neither max(0.0, nan) = 0.0 nor argmax may hide the NaN."""
    model = load_model(random_checkpoint, "ours_n0")[0]
    model.tail.layer4[2].bn3.running_var[0] = -1.0
    save_model(tmp_path / "broken.safetensors", model, {})
    # Saves time: the edge graph is not what is tested.
    monkeypatch.setattr(
        stages, "export_edge", lambda _, path: shutil.copy(random_bundle / "edge.onnx", path)
    )
    status = export_command.main(
        [
            "ours_n0",
            "--checkpoint",
            str(tmp_path / "broken.safetensors"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    error = capsys.readouterr().err
    assert status == 3, error
    assert "100 logits are not finite numbers" in error
    assert "layer4.2.bn3.running_var has -1, and a variance is never below 0" in error
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda model: model.tail.layer4[2].bn3.running_var[:1].fill_(-1e-5),
            r"running_var has -1e-05,",
        ),  # with epsilon: 0
        (
            lambda model: model.tail.layer2[0].bn1.running_var[:1].fill_(-5e-6),
            r"layer2\.0\.bn1\.running_var has",
        ),  # finite logits
        (lambda model: model.tail.layer2[0].bn1.running_var[:1].fill_(NAN), r"running_var has nan"),
        (lambda model: model.tail.fc.weight.fill_(3e38), r"logits are not finite"),
    ],
)
def test_weights_with_which_logits_are_not_finite(
    random_checkpoint: Path,
    random_bundle: Path,
    change: Callable[[FeatureCompressionModel], object],
    reason: str,
) -> None:
    model = load_model(random_checkpoint, "ours_n0")[0]
    with torch.no_grad():
        change(model)
    with pytest.raises(ParityError, match=reason):
        check_parity(
            model,
            make_tables(model),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            synthetic_images(1, 64),
            "x",
        )


def test_parity_sees_logits_that_are_not_finite(
    random_checkpoint: Path, broken_bundle: Path
) -> None:
    """The logits are not finite only in the graph, and only for some images."""
    model = load_model(random_checkpoint, "ours_n0")[0]
    images = synthetic_images(2, 64)
    with pytest.raises(ParityError, match="20 logits are not finite"):
        check_parity(
            model,
            make_tables(model),
            broken_bundle / "edge.onnx",
            broken_bundle / "cloud.onnx",
            images,
            "images",
        )


def test_the_int8_gate_sees_logits_that_are_not_finite(
    bundle: Path, random_bundle: Path, broken_bundle: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(synthetic_images(1, 64)[0]).save(tmp_path / "one.png")
    images = [(tmp_path / "one.png", None)]
    loaded = Bundle.load(random_bundle)
    coder, as_is = Coder(loaded.fingerprint, loaded.tables, loaded.manifest.profile), Reading(True)
    sound, broken = random_bundle / "cloud.onnx", broken_bundle / "cloud.onnx"
    edge = {"fp32": random_bundle / "edge.onnx"}
    record = judge(
        {"edge": edge, "cloud": {"fp32": sound, "int8": broken}}, coder, images, "one image", as_is
    )
    assert (record["cloud"]["lost"], record["cloud"]["won"]) == (1, 0), "NaN counts as wrong"
    with pytest.raises(ParityError, match=r"one\.png are not finite"):
        judge(
            {"edge": edge, "cloud": {"fp32": broken, "int8": broken}},
            coder,
            images,
            "one image",
            as_is,
        )
    with pytest.raises(GateError, match="not finite"):
        deviation({"edge": edge, "cloud": {"fp32": sound, "int8": broken}}, synthetic_images(1, 64))


def test_ranges_of_what_is_not_finite_are_not_taken(broken_bundle: Path) -> None:
    symbols = np.ones((300, 64, 2, 2), np.int16)
    with pytest.raises(RangesError, match=r"not finite.*the checkpoint is broken"):
        take_ranges(broken_bundle / "cloud.onnx", [symbols], "a" * 64)


# The cloud end


def test_logits_that_are_not_finite_are_refused(broken_bundle: Path, files: list[bytes]) -> None:
    decoder = CloudDecoder(broken_bundle, 1)
    assert np.isfinite(decoder.logits(files[1:])).all()
    for refused in (lambda: decoder.logits(files), lambda: decoder.classify(files[0])):
        with pytest.raises(
            errors.NotFiniteLogitsError,
            match=r"10 of [12]0 logits are not finite numbers .*export another checkpoint",
        ):
            refused()
    for value in (NAN, INFINITE, -INFINITE):
        with pytest.raises(errors.NotFiniteLogitsError, match="1 of 10"):
            decoder.predictions(np.array([value, *range(9)], np.float32))


def test_a_graph_that_gives_no_logits_at_all_is_not_loaded(
    broken_bundle: Path, copy_of: Copy
) -> None:
    folder = copy_of(broken_bundle)
    model = onnx.load(folder / "cloud.onnx")
    (one,) = (initializer for initializer in model.graph.initializer if initializer.name == "one")
    one.CopyFrom(onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [-1.0]))
    put(folder, "cloud.onnx", model.SerializeToString())
    with pytest.raises(errors.NotFiniteLogitsError):
        CloudDecoder(folder, 1)


def test_cloud_decode_reports_them_and_resumes(
    broken_bundle: Path, files: list[bytes], tmp_path: Path, capsys: Capture
) -> None:
    names = [str(tmp_path / name) for name in ("picture.bin", "zeros.bin")]
    for name, data in zip(names, files, strict=True):
        Path(name).write_bytes(data)
    options = [
        "--bundle",
        str(broken_bundle),
        "--threads",
        "1",
        "--json",
        "--logits",
        str(tmp_path / "logits.npy"),
    ]
    assert cloud_cli.main([*names, *options]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["file"] for line in out.splitlines()] == names[1:]
    assert "NaN" not in out
    assert f"cloud-decode: {names[0]}: 10 of 10 logits are not finite numbers" in err
    assert not (tmp_path / "logits.npy").exists()


def test_a_row_of_parquet_has_the_error(broken_bundle: Path, files: list[bytes]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from runtime.bulk import parquet

    rows = pa.table({"key": ["picture", "zeros"], "feature_file": files})
    picture, zeros = parquet.classify(rows, CloudDecoder(broken_bundle, 1)).to_pylist()
    assert "not finite" in picture["error"]
    assert picture["probability"] is picture["label"] is picture["class_index"] is None
    assert zeros["error"] is None
    assert np.isfinite(zeros["probability"])


def test_the_service_answers_500(broken_bundle: Path, files: list[bytes]) -> None:
    answers = []
    with served(Settings(bundles=(broken_bundle,))) as (_, address):
        for data in files:
            connection = HTTPConnection(*address)
            connection.request("POST", "/v1/classify", data)
            answer = connection.getresponse()
            answers.append((answer.status, strict_json.loads(answer.read())))
            connection.close()
    assert [status for status, _ in answers] == [500, 200]
    assert answers[0][1]["code"] == "graph_failed"


def test_no_engine_is_tuned_by_logits_that_are_not_finite(
    broken_bundle: Path, copy_of: Copy, files: list[bytes]
) -> None:
    loaded = Bundle.load(copy_of(broken_bundle))
    with pytest.raises(errors.NotFiniteLogitsError):
        tuning.tune(
            loaded,
            "cloud",
            [loaded.decode(files[0])[None]],
            partial(task_registry.deviation, Classification),
            1,
        )
    assert not (loaded.folder / registry.TUNED).exists()
    logits = np.array([[1.0, 2.0]], np.float32)
    for wrong in (NAN, INFINITE):
        assert Classification.deviation(logits, np.array([[wrong, 2.0]], np.float32))[1]
        with pytest.raises(errors.NotFiniteLogitsError):
            Classification.deviation(np.array([[wrong, 2.0]], np.float32), logits)


# JSON


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "-1e999"])
def test_json_has_no_number_that_is_not_finite(text: str) -> None:
    with pytest.raises(ValueError, match="is not a finite number"):
        strict_json.loads(text)
    assert strict_json.loads('[1, 2.5, "NaN", 1e300]') == [1, 2.5, "NaN", 1e300]


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_files_with_such_a_number_are_refused(
    random_bundle: Path, copy_of: Copy, tmp_path: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    folder = copy_of(random_bundle)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(text[:-2] + f', "more": {value}}}')
    with pytest.raises(errors.InconsistentBundleError, match="not a finite number"):
        Bundle.load(folder)
    with pytest.raises(errors.TablesError, match="not a finite number"):
        Tables.from_json(f'{{"precision": {value}}}'.encode())
    (tmp_path / "counts.json").write_text(f'{{"images": {value}}}')
    with pytest.raises(CountsError, match="not a finite number"):
        Counts.read(tmp_path / "counts.json", "a" * 64)
    (tmp_path / "accuracy_x.json").write_text(f'{{"images": {value}}}')
    with pytest.raises(
        rate_accuracy.RecordsError, match=r"accuracy_x\.json is no record.*not a finite number"
    ):
        rate_accuracy.measured(tmp_path)
    (tmp_path / registry.TUNED).write_text(f'{{"milliseconds": {value}}}')
    assert registry.tuned_choice(SimpleNamespace(folder=tmp_path), "edge") is None
    assert "not a finite number" in caplog.text


def test_no_json_is_written_that_has_such_a_number() -> None:
    """Every json.dump call in rooms whose output is read by programs says allow_nan=False."""
    lax = []
    for path in sorted(
        path
        for room in ("runtime", "export", "benchmarks")
        for path in (PROJECT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                strict = any(
                    keyword.arg == "allow_nan" and ast.unparse(keyword.value) == "False"
                    for keyword in node.keywords
                )
                lax += [] if strict else [f"{path.name}:{node.lineno}"]
    assert not lax, "say allow_nan=False"
