"""python -m export: both graphs against torch at odd sizes, the parity gate, and what it leaves behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from export import cli as command
from export import inputs as export_inputs
from export.checkpoint import find_checkpoint
from export.graphs import (
    OPSET,
    CloudGraph,
    EdgeGraph,
    ExportError,
    export_cloud,
    export_edge,
    largest_latent,
)
from export.images import NoImagesError, folder_images, synthetic_images
from export.parity import ParityError, check_parity, torch_symbols
from export.tables import QuantilesError, bottleneck_sha256, make_tables
from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import edge_encode as edge_cli
from runtime.codec.bundle import Bundle
from runtime.codec.feature_file import parse
from runtime.codec.manifest import Preprocessing
from runtime.engine.onnxruntime import open_session
from runtime.images.preprocess import preprocess
from training.checkpoint import load_model, save_model
from training.models import MODELS, FeatureCompressionModel, build_random_model

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(random_checkpoint: Path) -> FeatureCompressionModel:
    """The model of `random_bundle`."""
    return load_model(random_checkpoint, "ours_n0")[0]


def hold_to_torch(model: FeatureCompressionModel, edge: Path, cloud: Path) -> None:
    """Both graphs on several batches and odd latent sizes: symbols, and logits within 1e-3."""
    sessions = [open_session(path) for path in (edge, cloud)]
    for shape in ((1, 224, 224, 3), (2, 72, 40, 3), (5, 24, 136, 3), (3, 16, 16, 3)):
        pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
        with torch.no_grad():
            expected = torch_symbols(model, pixels)
            logits = model.logits_of_symbols(torch.from_numpy(expected).float()).numpy()
        symbols = sessions[0].run(None, {"pixels": pixels})[0]
        assert symbols.dtype == np.int16
        assert symbols.shape == expected.shape
        assert (symbols == expected).mean() > 0.999
        assert np.abs(sessions[1].run(None, {"symbols": expected})[0] - logits).max() < 1e-3


def test_graphs_are_torchs_at_any_batch_and_size(
    model: FeatureCompressionModel, random_bundle: Path
) -> None:
    hold_to_torch(model, random_bundle / "edge.onnx", random_bundle / "cloud.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "ours_n0"])
def test_every_model_exports(name: str, tmp_path: Path) -> None:
    model = build_random_model(name, 10)
    export_edge(model, tmp_path / "edge.onnx")
    export_cloud(model, tmp_path / "cloud.onnx")
    hold_to_torch(model, tmp_path / "edge.onnx", tmp_path / "cloud.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours_n0_enc", "ours_n4_enc", "ours_n8_enc", "matsubara2022wacv"])
def test_the_kept_bottlenecks_export_with_their_counts(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    assert command.main([name, "--out", str(tmp_path / "bundle")]) == 0
    assert "fitted to 9469 images" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["weights"] == "trained"


def test_graphs_are_cut_at_integers_and_have_gelu_whole(random_bundle: Path) -> None:
    edge, cloud = (onnx.load(random_bundle / name) for name in ("edge.onnx", "cloud.onnx"))
    assert {entry.version for entry in edge.opset_import if entry.domain == ""} == {OPSET}
    assert edge.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert edge.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT16
    assert cloud.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT16
    operators = [node.op_type for node in (*edge.graph.node, *cloud.graph.node)]
    assert operators.count("Gelu") == 4
    assert not {"Erf", "Tanh"} & set(operators)
    assert b"/" not in b"".join(node.doc_string.encode() for node in edge.graph.node)


def test_huge_latents_are_clamped(tmp_path: Path) -> None:
    huge = build_random_model("ours_n0", 10)
    with torch.no_grad():
        huge.bottleneck_layer.encoder[-1].bias[:2] = torch.tensor([1e9, -1e9])
    export_edge(huge, tmp_path / "edge.onnx")
    session = open_session(tmp_path / "edge.onnx")
    symbols = session.run(None, {"pixels": synthetic_images(1, 64)})[0][0]
    assert (symbols[0] == 32767).all()
    assert (symbols[1] == -32767).all()
    assert (abs(symbols[2:]) < 100).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e31])
def test_weights_with_which_a_latent_might_be_no_number_are_refused(
    value: float, tmp_path: Path
) -> None:
    broken = build_random_model("ours_n0", 10)
    with torch.no_grad():
        broken.bottleneck_layer.encoder[-1].bias[0] = value
    with pytest.raises(ExportError, match="the checkpoint is broken"):
        export_edge(broken, tmp_path / "edge.onnx")
    assert not (tmp_path / "edge.onnx").exists()


@pytest.mark.parametrize("name", ["ours_n0", "ours_n4", "matsubara2022wacv"])
def test_no_latent_is_larger_than_its_bound(name: str) -> None:
    encoder = EdgeGraph(build_random_model(name, 10)).encoder
    # The pixels that a channel's weights like best, where nothing but a convolution follows them.
    pixels = torch.cat(
        [
            torch.from_numpy(synthetic_images(2, 64)).permute(0, 3, 1, 2).float(),
            255 * torch.ones(1, 3, 64, 64),
        ]
    )
    with torch.no_grad():
        found = float(encoder(pixels).abs().max())
    assert 0 < found <= largest_latent(encoder) < 1e30


@pytest.mark.parametrize("name", ["ours_n0", "matsubara2022wacv"])
@pytest.mark.parametrize("median", [0.0, 0.25])
def test_the_cloud_graph_computes_what_the_model_does(name: str, median: float) -> None:
    """A transposed convolution as a convolution, medians that are added or left out, GDN with fixed parameters."""
    other = build_random_model(name, 10)
    with torch.no_grad():
        other.bottleneck_layer.entropy_bottleneck.quantiles[:, :, 1] = median
        symbols = torch.randint(-3, 4, (2, other.spec.latent_channels, 9, 7), dtype=torch.int16)
        expected = other.bottleneck_layer.decode(symbols.float())
        graph = CloudGraph(other)
        graph.model.tail = lambda features: features  # type: ignore[method-assign]
        graph.fc = nn.Identity()
        torch.testing.assert_close(
            graph(symbols)[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


def test_the_gate_sees_other_weights(random_bundle: Path) -> None:
    other = build_random_model("ours_n0", 10, seed=1)
    with pytest.raises(ParityError, match="of the symbols equal torch's"):
        check_parity(
            other,
            make_tables(other),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            synthetic_images(3),
            "synthetic images",
        )


def test_the_gate_sees_another_tail(random_checkpoint: Path, random_bundle: Path) -> None:
    other = load_model(random_checkpoint, "ours_n0")[0]
    with torch.no_grad():
        other.fc.bias[3] += 0.01
    with pytest.raises(ParityError, match="a logit differs"):
        check_parity(
            other,
            make_tables(other),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            synthetic_images(1),
            "synthetic images",
        )


def test_the_gate_wants_symbols_that_are_not_zero(
    model: FeatureCompressionModel, random_bundle: Path
) -> None:
    grey = np.full((1, 224, 224, 3), 124, np.uint8)
    with pytest.raises(ParityError, match="not zero"):
        check_parity(
            model,
            make_tables(model),
            random_bundle / "edge.onnx",
            random_bundle / "cloud.onnx",
            grey,
            "one grey image",
        )


@pytest.mark.usefixtures("ready_graphs")
def test_a_failed_gate_is_status_3_and_leaves_the_old_bundle_alone(
    random_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The checkpoint has other weights than the graphs, as if the exporter had gone wrong."""
    other = tmp_path / "other.safetensors"
    save_model(other, build_random_model("ours_n0", 10, seed=1), {})
    shutil.copytree(random_bundle, tmp_path / "old")
    for folder in ("new", "old"):
        assert (
            command.main(["ours_n0", "--checkpoint", str(other), "--out", str(tmp_path / folder)])
            == 3
        )
        assert "parity failed, no bundle was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "other.safetensors"]
    assert (tmp_path / "old" / "manifest.json").read_bytes() == (
        random_bundle / "manifest.json"
    ).read_bytes()
    Bundle.load(tmp_path / "old")


@pytest.mark.usefixtures("ready_graphs")
def test_checkpoint_to_class(
    random_checkpoint: Path,
    random_bundle: Path,
    tmp_path: Path,
    capsys: Capture,
    golf_ball: np.ndarray,
) -> None:
    """The whole command, over an older bundle."""
    out, labels = tmp_path / "out", tmp_path / "labels.txt"
    shutil.copytree(random_bundle, out)
    labels.write_text("".join(f"label {index}\n" for index in range(10)))
    arguments = [
        "ours_n0",
        "--checkpoint",
        str(random_checkpoint),
        "--out",
        str(out),
        "--labels",
        str(labels),
        "--max-pixels",
        "65536",
    ]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out
    for stage in (
        "tables",
        "edge graph",
        "cloud graph",
        "parity",
        "bundle",
        "edge-encode IMAGE",
        "cloud-decode feat.bin",
    ):
        assert stage in lines
    data = EdgeEncoder(out, 1).encode(golf_ball)
    assert CloudDecoder(out, 1).classify(data, 1)[0].label.startswith("label ")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["max_symbols"] == 64 * 32 * 32
    assert manifest["weights"] == "random"
    assert manifest["checkpoint"]["file"] == "random.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.txt", "out"]


def test_no_checkpoint_says_where_to_put_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["ours_n8", "--lmb", "5.12"]) == 1
    error = capsys.readouterr().err
    for text in (
        "checkpoints/ours_n8/lmb5.12.safetensors",
        "lmb5.12.pt",
        "checkpoints/README.md",
        "python -m training.train --model ours_n8",
    ):
        assert text in error
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_found_by_model_and_lmb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "ours_n8"
    folder.mkdir(parents=True)
    (folder / "lmb2.56.pt").touch()
    assert find_checkpoint("ours_n8", "2.56").resolve() == folder / "lmb2.56.pt"
    (folder / "lmb2.56.safetensors").touch()
    assert find_checkpoint("ours_n8", "2.560").resolve() == folder / "lmb2.56.safetensors"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--checkpoint", "missing.pt"], "no checkpoint at missing.pt"),
        (["--out", "occupied"], "is not a bundle"),
        (["--labels", "three.txt"], "3 labels, the checkpoint 10 classes"),
        (["--images", "empty"], "no image in empty"),
        (["--labels", "missing.txt"], "missing.txt"),
    ],
)
def test_what_cannot_be_exported_is_status_1(
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("occupied").mkdir()
    Path("occupied/thesis.txt").write_text("irreplaceable")
    Path("empty").mkdir()
    Path("three.txt").write_text("a\nb\nc\n")
    assert (
        command.main(
            ["ours_n0", "--checkpoint", str(random_checkpoint), "--out", "out", *arguments]
        )
        == 1
    )
    assert text in capsys.readouterr().err
    assert not Path("out").exists()
    assert Path("occupied/thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize(
    "arguments", [["resnet"], ["ours_n4", "--lmb", "nan"], ["ours_n4", "--max-pixels", "7"], []]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(arguments)
    assert exit_info.value.code == 2


def test_the_command_knows_every_model() -> None:
    assert tuple(MODELS) == command.MODEL_NAMES


@pytest.mark.parametrize("value", [float("nan"), 1e6, -20.0])
def test_quantiles_that_bound_no_table(value: float) -> None:
    broken = build_random_model("ours_n0", 10)
    with torch.no_grad():
        broken.bottleneck_layer.entropy_bottleneck.quantiles[5, 0, 2] = value
    with pytest.raises(QuantilesError, match="channel 5"):
        make_tables(broken)


def test_the_bottlenecks_hash_covers_its_weights_and_not_the_tail() -> None:
    own = bottleneck_sha256(build_random_model("ours_n0", 10))
    other = build_random_model("ours_n0", 10)
    assert bottleneck_sha256(other) == own
    with torch.no_grad():
        other.fc.bias += 1
    assert bottleneck_sha256(other) == own
    for name in ("encoder.0.bias", "decoder.0.weight", "entropy_bottleneck.quantiles"):
        other = build_random_model("ours_n0", 10)
        with torch.no_grad():
            other.bottleneck_layer.get_parameter(name).view(-1)[1] += 1e-3
        assert bottleneck_sha256(other) != own, name


def test_synthetic_images_are_the_same_everywhere() -> None:
    import zlib

    images = synthetic_images(2, 64)
    assert zlib.crc32(images.tobytes()) == zlib.crc32(synthetic_images(3, 64)[:2].tobytes())
    assert images.std() > 40


def test_labels_are_read_as_editors_save_them(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert export_inputs._labels(file, {}, 2) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"labels\.txt has 2 labels, the checkpoint 3 classes"):
        export_inputs._labels(file, {}, 3)
    file.write_bytes("cat\ndog\n".encode("utf-16"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        export_inputs._labels(file, {}, 2)


def test_data_is_refused_before_anything_is_exported(
    random_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("train", "val"):
        (tmp_path / "root" / name / "cat").mkdir(parents=True)
        for index in range(160):
            (tmp_path / "root" / name / "cat" / f"{index}.png").write_bytes(b"any")
    arguments = [
        "ours_n0",
        "--checkpoint",
        str(random_checkpoint),
        "--out",
        str(tmp_path / "bundle"),
    ]
    for more, text in (
        (["--refit", str(tmp_path / "root")], "name one of them, such as"),
        (
            ["--validate", str(tmp_path / "root"), "--calibrate", str(tmp_path / "root" / "train")],
            "name one of them, such as",
        ),
        (
            ["--calibrate", str(tmp_path / "root" / "train")],
            "has 160 images, too few to calibrate with: name a folder of at least 334",
        ),
        (["--refit", str(tmp_path / "nowhere")], "does not exist"),
    ):
        assert command.main([*arguments, *more]) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_folder_images_passes_over_what_is_none(tmp_path: Path, golf_ball: np.ndarray) -> None:
    from PIL import Image

    with pytest.raises(NoImagesError, match="no image"):
        folder_images(tmp_path)
    (tmp_path / "a").mkdir()
    Image.fromarray(golf_ball).save(tmp_path / "a" / "ball.PNG")
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert folder_images(tmp_path).shape == (1, 224, 224, 3)


def test_a_bundle_says_what_is_done_to_images_and_the_edge_does_it(
    random_checkpoint: Path, tmp_path: Path, golf_ball: NDArray[np.uint8], capsys: Capture
) -> None:
    arguments = ["ours_n0", "--checkpoint", str(random_checkpoint), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--resize", "438", "--crop", "384"]) == 0
    encoder = EdgeEncoder(tmp_path / "out", 1)
    file = parse(encoder.encode(golf_ball))
    assert (file.height, file.width) == (384, 384)
    expected = preprocess(golf_ball, rule=Preprocessing(438, 384))
    assert encoder.encode(golf_ball) == encoder.encode(expected, as_is=True)
    assert len(CloudDecoder(tmp_path / "out", 1).classify(encoder.encode(golf_ball))) == 5
    assert (
        edge_cli.main(
            [str(GOLF_BALL), "-o", str(tmp_path / "f.bin"), "--bundle", str(tmp_path / "out")]
        )
        == 0
    )
    assert "at 384x384" in capsys.readouterr().out
    assert encoder.wrote(tmp_path / "f.bin")
    for wrong, message in (
        (["--crop", "225"], "not a multiple of 8"),
        (["--crop", "264"], "up to --resize 256"),
        (["--resize", "0"], "0"),
    ):
        with pytest.raises(SystemExit):
            command.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
