"""The whole command: `python -m export`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export import cli as command
from export import inputs as export_inputs
from export.checkpoint import find_checkpoint
from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import edge_encode as edge_cli
from runtime.codec.bundle import Bundle
from runtime.codec.feature_file import parse
from runtime.codec.manifest import Preprocessing
from runtime.images.preprocess import preprocess
from training.checkpoint import save_model
from training.models import MODELS, build_random_model

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"
Capture = pytest.CaptureFixture[str]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours_n0_enc", "ours_n4_enc", "ours_n8_enc", "matsubara2022wacv"])
def test_the_kept_bottlenecks_export_with_their_counts(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    assert command.main([name, "--out", str(tmp_path / "bundle")]) == 0
    assert "fitted to 9469 images" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["weights"] == "trained"
    for graph in ("edge.int8.onnx", "cloud.int8.onnx"):
        assert (tmp_path / "bundle" / graph).is_file(), "its kept ranges passed the gate"


@pytest.mark.usefixtures("ready_graphs")
def test_failed_parity_is_status_3_and_leaves_the_old_bundle_alone(
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


def test_the_command_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["ours_n5"])
    error = capsys.readouterr().err
    assert all(name in error for name in MODELS)
    with pytest.raises(SystemExit):
        command.main(["../ours_n4", "--checkpoint", "x.safetensors"])
    assert "is no name of a model" in capsys.readouterr().err


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


@pytest.mark.usefixtures("ready_graphs")
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
    assert encoder.is_current(tmp_path / "f.bin")
    for wrong, message in (
        (["--crop", "225"], "not a multiple of 8"),
        (["--crop", "264"], "up to --resize 256"),
        (["--resize", "0"], "0"),
    ):
        with pytest.raises(SystemExit):
            command.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
