"""Embeddings: the pooled features that the cloud graph gives beside the logits."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.cli import cloud_decode as cloud_cli

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(random_bundle: Path, golf_ball: NDArray[np.uint8]) -> list[bytes]:
    """Feature files of three sizes, in an order that no grouping by size keeps."""
    encoder = EdgeEncoder(random_bundle, 1)
    return encoder.encode_batch(
        [golf_ball[:side, : side + 16] for side in (64, 128, 64, 200)], as_is=True
    )


@pytest.fixture(scope="module")
def decoder(random_bundle: Path) -> CloudDecoder:
    return CloudDecoder(random_bundle, 1)


@pytest.fixture
def old_bundle(random_bundle: Path, copy_of: Callable[[Path], Path]) -> Path:
    """`random_bundle` as an earlier release exported it: its cloud graph gives logits alone."""
    folder = copy_of(random_bundle)
    model = onnx.load(folder / "cloud.onnx")
    (embedding,) = (output for output in model.graph.output if output.name == "embedding")
    model.graph.output.remove(embedding)
    manifest = json.loads((folder / "manifest.json").read_text())
    data = model.SerializeToString()
    manifest["files"]["cloud.onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
    for name in ("cloud.onnx", "manifest.json"):
        (folder / name).unlink()  # a hard link to the file of `random_bundle`
    (folder / "cloud.onnx").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def written(files: list[bytes], folder: Path) -> list[str]:
    names = [str(folder / f"{index}.bin") for index in range(len(files))]
    for name, data in zip(names, files, strict=True):
        Path(name).write_bytes(data)
    return names


def test_embeddings_are_in_the_order_of_the_files(
    decoder: CloudDecoder, files: list[bytes], random_bundle: Path
) -> None:
    embeddings = decoder.embed(files)
    assert (embeddings.shape, embeddings.dtype) == ((4, 2048), np.float32)
    for row, data in zip(embeddings, files, strict=True):
        outputs = decoder.outputs_of_symbols(decoder.symbols(data)[None])
        assert np.allclose(row, outputs["embedding"][0], atol=1e-4)
    assert decoder.embed([]).shape == (0, 2048)


def test_logits_are_the_last_layer_of_an_embedding(
    decoder: CloudDecoder, files: list[bytes], random_bundle: Path
) -> None:
    graph = onnx.load(random_bundle / "cloud.onnx").graph
    (layer,) = (node for node in graph.node if node.output[0] == "logits")
    assert layer.op_type == "Gemm"
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight, bias = (weights[name] for name in layer.input[1:])
    assert np.allclose(decoder.embed(files) @ weight.T + bias, decoder.logits(files), atol=1e-4)


def test_the_default_bundles_graphs_give_embeddings(bundle: Path, feature_bytes: bytes) -> None:
    plain, int8 = (
        CloudDecoder(bundle, 1, provider="cpu", precision=precision).embed([feature_bytes])[0]
        for precision in ("fp32", "int8")
    )
    assert plain.shape == int8.shape
    assert np.corrcoef(plain, int8)[0, 1] > 0.9


def test_openvino_gives_the_same_embedding(
    random_bundle: Path, decoder: CloudDecoder, files: list[bytes]
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    other = CloudDecoder(random_bundle, 1, provider="openvino", precision="fp32")
    assert np.allclose(other.embed(files), decoder.embed(files), atol=1e-3)


def test_what_embed_refuses(
    decoder: CloudDecoder, broken_bundle: Path, files: list[bytes], feature_bytes: bytes
) -> None:
    with pytest.raises(errors.FeatureFileTypeError, match="embed takes a list of feature files"):
        decoder.embed(files[0])  # type: ignore[arg-type]
    with pytest.raises(errors.FeatureFileTypeError, match="a feature file is bytes"):
        decoder.embed(["name.bin"])  # type: ignore[list-item]
    with pytest.raises(errors.WrongBundleError):
        decoder.embed([feature_bytes])
    with pytest.raises(errors.NotFiniteLogitsError):
        CloudDecoder(broken_bundle, 1).embed(files)


def test_a_bundle_of_an_earlier_release_does_all_else(
    old_bundle: Path, decoder: CloudDecoder, files: list[bytes]
) -> None:
    old = CloudDecoder(old_bundle, 1)
    assert np.allclose(old.logits(files), decoder.logits(files), atol=1e-4)
    assert old.classify(files[0])[0].label == decoder.classify(files[0])[0].label
    with pytest.raises(
        errors.NoEmbeddingError, match="export it again with `python -m export ours_n0`"
    ):
        old.embed(files)


def test_cloud_decode_writes_them(
    random_bundle: Path, decoder: CloudDecoder, files: list[bytes], tmp_path: Path, capsys: Capture
) -> None:
    names, options = written(files, tmp_path), ["--bundle", str(random_bundle), "--threads", "1"]
    found, logits = tmp_path / "embeddings.npy", tmp_path / "logits.npy"
    arguments = [*names, *options, "--embeddings", str(found), "--logits", str(logits)]
    assert cloud_cli.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4 * 6
    embeddings = np.load(found, allow_pickle=False)
    assert (embeddings.shape, embeddings.dtype) == ((4, 2048), np.float32)
    assert np.allclose(embeddings, decoder.embed(files), atol=1e-4)
    assert np.allclose(np.load(logits), decoder.logits(files), atol=1e-4)
    # With a file that is refused, the array would lack a row.
    found.unlink()
    Path(names[1]).write_bytes(b"no feature file")
    assert cloud_cli.main([*names, *options, "--embeddings", str(found)]) == 4
    assert f"{found} is not written, because rows would be missing" in capsys.readouterr().err
    assert not found.exists()


def test_cloud_decode_writes_them_to_standard_output(
    random_bundle: Path,
    files: list[bytes],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    names = written(files, tmp_path)
    arguments = ["--bundle", str(random_bundle), "--threads", "1", "--embeddings", "-"]
    assert cloud_cli.main([*names, *arguments]) == 0
    assert np.load(io.BytesIO(capfdbinary.readouterr().out)).shape == (4, 2048)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a.bin", "--embeddings", ""], "the name of the output is empty"),
        (["a.bin", "--embeddings", "-", "--logits", "-"], "are both -: name two files"),
        (["a.bin", "--embeddings", "x.npy", "--logits", "x.npy"], "are both x.npy: name two"),
        (["a.parquet", "-o", "b.parquet", "--embeddings", "c.npy"], "no --info, --logits, --emb"),
        (
            ["a.parquet", "-o", "b", "--ray", "--embeddings", "c.npy"],
            "with --info, --logits, --emb",
        ),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cloud_cli.main(arguments)
    assert exit_info.value.code == 2
    assert text in capsys.readouterr().err


def test_cloud_decode_refuses_them_before_it_decodes(
    random_bundle: Path, old_bundle: Path, files: list[bytes], tmp_path: Path, capsys: Capture
) -> None:
    (name, *_) = written(files, tmp_path)
    for bundle, target, text in (
        (random_bundle, name, "would replace the input"),
        (random_bundle, str(random_bundle / "labels.txt"), "would replace the input"),
        (random_bundle, str(tmp_path), "is a folder: name a file in it"),
        (old_bundle, str(tmp_path / "x.npy"), "has no output embedding"),
    ):
        assert cloud_cli.main([name, "--bundle", str(bundle), "--embeddings", target]) == 1
        out, err = capsys.readouterr()
        assert text in err
        assert not out
    assert Path(name).read_bytes() == files[0]
