"""Bundles: what is in one, and every kind that is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.codec.bundle import Bundle, default_bundle
from runtime.codec.manifest import SCHEMA, Manifest, ShapeRule

Copy = Callable[[Path], Path]


def replace(path: Path, data: bytes) -> None:
    """Put a new file in place of a hard link."""
    path.unlink()
    path.write_bytes(data)


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    replace(folder / "manifest.json", json.dumps(manifest).encode())


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its hash in the manifest, as an attacker or a careless script would."""
    replace(folder / name, data)
    edit_manifest(
        folder,
        lambda manifest: manifest["files"][name].update(sha256=hashlib.sha256(data).hexdigest()),
    )


def test_a_bundle_says_what_it_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["schema"], manifest["model"], manifest["lmb"], manifest["weights"]) == (
        SCHEMA,
        "ours_n4",
        "1.28",
        "trained",
    )
    assert manifest["shape"] == {"channels": 64, "stride": 8, "shrink": 0}
    assert manifest["max_symbols"] == 64 * 128 * 128
    assert manifest["parity"]["equal_share"] >= 0.9999
    assert manifest["parity"]["nonzero_share"] >= 0.01
    assert {"torch", "onnx", "onnxruntime", "compressai", "edgecloud-features"} <= set(
        manifest["versions"]
    )
    for graph in ("edge.onnx", "cloud.onnx"):
        properties = {entry.key: entry.value for entry in onnx.load(bundle / graph).metadata_props}
        assert properties["model"] == "ours_n4"
        assert properties["lmb"] == "1.28"
        assert properties["fingerprint"] == manifest["fingerprint"]
        assert {"torch", "onnx", "edgecloud_features"} <= set(properties)


def test_the_default_bundle_is_of_the_environment_or_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECLOUD_BUNDLE", raising=False)
    assert default_bundle() == Path("bundles/ours_n4")
    monkeypatch.setenv("EDGECLOUD_BUNDLE", "/elsewhere")
    assert default_bundle() == Path("/elsewhere")


def test_each_end_needs_its_half_alone(
    bundle: Path, copy_of: Copy, golf_ball, feature_bytes: bytes
) -> None:
    folder = copy_of(bundle)
    cloud = [folder / "cloud.onnx", folder / "labels.txt"]
    kept = [path.read_bytes() for path in cloud]
    for path in cloud:
        path.unlink()
    assert EdgeEncoder(folder, 1).encode(golf_ball) == EdgeEncoder(bundle, 1).encode(golf_ball)
    for path, data in zip(cloud, kept, strict=True):
        path.write_bytes(data)
    (folder / "edge.onnx").unlink()
    assert CloudDecoder(folder, 1).logits([feature_bytes]).shape == (1, 10)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleNotFoundError, match="python -m export"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["tables.json", "edge.onnx", "cloud.onnx", "labels.txt"])
def test_a_missing_file(random_bundle: Path, copy_of: Copy, name: str) -> None:
    folder = copy_of(random_bundle)
    (folder / name).unlink()
    with pytest.raises(errors.MissingBundleFileError, match=name):
        (EdgeEncoder if name == "edge.onnx" else CloudDecoder)(folder)


@pytest.mark.parametrize("name", ["tables.json", "edge.onnx", "cloud.onnx", "labels.txt"])
def test_an_altered_file(random_bundle: Path, copy_of: Copy, name: str) -> None:
    folder = copy_of(random_bundle)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    replace(folder / name, bytes(data))
    with pytest.raises(errors.AlteredBundleFileError, match=name):
        (EdgeEncoder if name == "edge.onnx" else CloudDecoder)(folder)


def test_tables_of_another_bundle(bundle: Path, random_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(random_bundle)
    put(folder, "tables.json", (bundle / "tables.json").read_bytes())
    with pytest.raises(errors.InconsistentBundleError, match="fingerprint"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("name", "end"), [("edge.onnx", EdgeEncoder), ("cloud.onnx", CloudDecoder)]
)
def test_a_graph_of_another_bundle(
    bundle: Path, random_bundle: Path, copy_of: Copy, name: str, end: type
) -> None:
    folder = copy_of(random_bundle)
    put(folder, name, (bundle / name).read_bytes())
    with pytest.raises(errors.InconsistentBundleError, match="is of bundle"):
        end(folder)


@pytest.mark.parametrize("data", [b"", b"no graph"])
def test_a_file_that_is_no_graph(random_bundle: Path, copy_of: Copy, data: bytes) -> None:
    folder = copy_of(random_bundle)
    put(folder, "edge.onnx", data)
    with pytest.raises(errors.InconsistentBundleError, match="cannot load"):
        EdgeEncoder(folder)


def test_too_few_labels(random_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(random_bundle)
    put(folder, "labels.txt", b"one\ntwo\n")
    with pytest.raises(errors.InconsistentBundleError, match="2 labels for 10 classes"):
        CloudDecoder(folder)


def test_labels_that_are_no_text(random_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(random_bundle)
    put(folder, "labels.txt", b"\xff\xfe\n" * 10)
    with pytest.raises(errors.InconsistentBundleError, match="not UTF-8"):
        CloudDecoder(folder)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{}", b"{", b'{"schema": 2}', b"\xff", b"[" * 100_000]
)
def test_a_file_that_is_no_manifest(random_bundle: Path, copy_of: Copy, text: bytes) -> None:
    folder = copy_of(random_bundle)
    replace(folder / "manifest.json", text)
    with pytest.raises(errors.InconsistentBundleError, match="not understood"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda m: m.update(schema=1), errors.UnsupportedBundleError, "schema 1"),
        (lambda m: m.update(schema=3), errors.UnsupportedBundleError, "schema 3"),
        (lambda m: m.pop("small"), errors.InconsistentBundleError, "not understood"),
        (lambda m: m.update(small=True), errors.InconsistentBundleError, "no context tables"),
        (
            lambda m: m.update(format_version=2),
            errors.InconsistentBundleError,
            "does not name rates.json",
        ),
        (lambda m: m.update(format_version=3), errors.UnsupportedBundleError, "version 3"),
        (
            lambda m: m["files"].update({"rates.json": m["files"]["tables.json"]}),
            errors.InconsistentBundleError,
            "names rates.json",
        ),
        (lambda m: m.update(fingerprint="00" * 32), errors.InconsistentBundleError, "00000000"),
        (lambda m: m.update(fingerprint=7), errors.InconsistentBundleError, "not understood"),
        (
            lambda m: m.update(bottleneck_sha256="xy"),
            errors.InconsistentBundleError,
            "not understood",
        ),
        (lambda m: m["shape"].update(stride=0), errors.InconsistentBundleError, "impossible shape"),
        (lambda m: m["shape"].update(stride=3), errors.InconsistentBundleError, "impossible shape"),
        (
            lambda m: m["shape"].update(channels=63),
            errors.InconsistentBundleError,
            "64 tables for 63 channels",
        ),
        (lambda m: m["shape"].update(more=1), errors.InconsistentBundleError, "not understood"),
        (
            lambda m: m["shape"].update(channels=None),
            errors.InconsistentBundleError,
            "not understood",
        ),
        (lambda m: m.update(max_symbols=0), errors.InconsistentBundleError, "impossible"),
        (
            lambda m: m.update(max_symbols=float("inf")),
            errors.InconsistentBundleError,
            "not understood",
        ),
        (lambda m: m.pop("preprocessing"), errors.InconsistentBundleError, "not understood"),
        (
            lambda m: m["preprocessing"].update(crop=225),
            errors.InconsistentBundleError,
            "crops 225 pixels: a crop is a multiple of 8",
        ),
        (
            lambda m: m["preprocessing"].update(crop=264),
            errors.InconsistentBundleError,
            "resizes to 256 and crops 264",
        ),
        (
            lambda m: m["preprocessing"].update(resize=1 << 20),
            errors.InconsistentBundleError,
            "at most 4096",
        ),
        (
            lambda m: m["preprocessing"].update(interpolation="lanczos"),
            errors.UnsupportedBundleError,
            "resizes by 'lanczos'",
        ),
        (lambda m: m.update(precision="fp8"), errors.InconsistentBundleError, "precision 'fp8'"),
        (lambda m: m.update(classes=0), errors.InconsistentBundleError, "0 classes"),
        (
            lambda m: m.update(fingerprint="00"),
            errors.InconsistentBundleError,
            "fingerprint of 1 bytes",
        ),
        (lambda m: m.update(files=[]), errors.InconsistentBundleError, "not understood"),
        (
            lambda m: m["files"].pop("tables.json"),
            errors.InconsistentBundleError,
            "does not name tables.json",
        ),
    ],
)
def test_an_invalid_manifest(
    random_bundle: Path, copy_of: Copy, change: Callable, error: type, text: str
) -> None:
    folder = copy_of(random_bundle)
    edit_manifest(folder, change)
    with pytest.raises(error, match=text):
        Bundle.load(folder)


def test_shape_rules() -> None:
    assert ShapeRule(64, 8, 0).latent(224, 640) == (28, 80)
    assert ShapeRule(24, 4, 1).latent(224, 640) == (55, 159)
    assert ShapeRule(24, 4, 1).symbols(224, 224) == 24 * 3025


def test_a_manifest_is_read_and_written_by_one_class(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_bytes()
    manifest = Manifest.parse(text, "manifest.json")
    assert Manifest.parse(manifest.to_json(), "again") == manifest
    written, was = json.loads(manifest.to_json()), json.loads(text)
    assert {key: written[key] for key in was} == was
