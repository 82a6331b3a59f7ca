"""A variable-rate bundle made of another bundle, without training: its rates are made up.

The graphs are those of the other bundle, cut at the latent and at the decoder's input, in float32.
Gains are a ladder around 1 and the order is random, so the bundle is labelled as random. Tables of
each level are fitted to made-up images, with context tables where they pay.
"""

import hashlib
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import integer_encoder
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.counts import count, fit_tables
from export.edge_tables import variable_bytes
from export.images import synthetic_images
from runtime.codec.bundle import EDGE_TABLES, EDGE_WEIGHTS, compute_fingerprint
from runtime.codec.coder import Tables, levels_to_json
from runtime.codec.manifest import FileEntry, Manifest
from runtime.codec.rates import LEVELS, STEPS_PER_LEVEL, Rates, step_of
from runtime.codec.variable_rate import VariableRate
from runtime.engine.onnxruntime import open_session

DEFAULT_LEVEL = 8.0
LATENT_FRACTION = 8  # of the native encoder's latent
_LOWEST, _HIGHEST = 0.25, 4.0  # gains of level 0 and 15


def make_variable_bundle(source: Path, out: Path) -> Path:
    """Write a variable-rate bundle made of the fixed-rate one in `source`; gives `out`."""
    out.mkdir()
    old = Manifest.parse((source / "manifest.json").read_bytes(), "manifest.json")
    edge, cloud = onnx.load(source / "edge.onnx"), onnx.load(source / "cloud.onnx")
    end_in_latent(edge)
    _begin_with_values(cloud)
    rates = made_rates(old.shape.channels)
    session = open_session(edge.SerializeToString(), 1)
    latents = session.run(None, {"pixels": synthetic_images(6)})[0]
    variable = VariableRate(
        rates, [_tables(_symbols(rates, latents, level)) for level in range(LEVELS)]
    )
    fingerprint = compute_fingerprint(old.shape, variable, old.bottleneck_sha256)
    for model in (edge, cloud):
        for entry in model.metadata_props:
            entry.value = fingerprint.hex() if entry.key == "fingerprint" else entry.value
    onnx.save(edge, out / "edge.onnx")
    onnx.save(cloud, out / "cloud.onnx")
    shutil.copy(source / "labels.txt", out)
    (out / "tables.json").write_bytes(levels_to_json(variable.levels))
    (out / "rates.json").write_bytes(rates.to_json())
    if (source / EDGE_WEIGHTS).exists():
        _write_native(source, out, old, variable, fingerprint)
    write_manifest(out, old, fingerprint)
    return out


def _write_native(
    source: Path, out: Path, old: Manifest, variable: VariableRate, fingerprint: bytes
) -> None:
    """Write the encoder in whole numbers, and edge.tables."""
    weights = integer_encoder.read((source / EDGE_WEIGHTS).read_bytes())
    data = integer_encoder.write(integer_encoder.of_latent(weights, LATENT_FRACTION, fingerprint))
    (out / EDGE_WEIGHTS).write_bytes(data)
    head = (source / EDGE_TABLES).read_bytes()[12:72]
    body = b"EDGETABL" + struct.pack("<I", 2) + head + fingerprint + hashlib.sha256(data).digest()
    body += variable_bytes(variable, step_of(DEFAULT_LEVEL))
    (out / EDGE_TABLES).write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def write_manifest(out: Path, old: Manifest, fingerprint: bytes) -> None:
    """Write the manifest of a variable-rate bundle whose other files are there."""
    files = {
        path.name: FileEntry(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(out.iterdir())
        if path.name != "manifest.json"
    }
    manifest = replace(
        old,
        model="random_vr",
        lmb="0.16-5.12",
        weights="random",
        fingerprint=fingerprint,
        files=files,
        format_version=2,
        default_level=DEFAULT_LEVEL,
        record={},
    )
    (out / "manifest.json").write_bytes(manifest.to_json())


def made_rates(channels: int) -> Rates:
    """A ladder of gains, a little different in each channel, and a random order."""
    rng = np.random.default_rng(0)
    ladder = np.geomspace(_LOWEST, _HIGHEST, LEVELS)[:, None] * rng.uniform(0.8, 1.25, channels)
    inverse = 1 / ladder * rng.uniform(0.95, 1.05, ladder.shape)
    return Rates(ladder.tolist(), inverse.tolist(), rng.permutation(channels).tolist())


def _symbols(rates: Rates, latents: NDArray[np.float32], level: int) -> NDArray[np.int16]:
    return np.stack([rates.symbols(latent, STEPS_PER_LEVEL * level) for latent in latents])


def _tables(symbols: NDArray[np.int16]) -> Tables:
    """Tables fitted to symbols int16 [N, C, H', W']."""
    cdfs, offsets = [], []
    for plane in symbols.swapaxes(0, 1):
        first, last = max(int(plane.min()), -100), min(int(plane.max()), 100)
        seen = np.bincount(np.clip(plane, first, last).ravel() - first, minlength=2)
        shares = np.maximum(1, (65000 * seen / seen.sum()).astype(int))
        cdfs.append([0, *np.cumsum(shares).tolist(), 65536])
        offsets.append(first)
    own = Tables(cdfs, offsets)
    return fit_tables(own, count([symbols], own, "", "synthetic"))


def end_in_latent(model: onnx.ModelProto) -> None:
    """Drop what follows the last convolution of an edge graph: its output becomes `latent`."""
    made_by = {node.output[0]: node for node in model.graph.node}
    name = "symbols"
    while made_by[name].op_type in ("Cast", "Round", "Clip"):
        model.graph.node.remove(made_by[name])
        name = made_by[name].input[0]
    made_by[name].output[0] = "latent"
    output = model.graph.output[0]
    output.name, output.type.tensor_type.elem_type = "latent", TensorProto.FLOAT
    del model.graph.value_info[:]


def _begin_with_values(model: onnx.ModelProto) -> None:
    """Drop the conversion of symbols at the beginning of a cloud graph: it takes `values`."""
    cast = next(node for node in model.graph.node if "symbols" in node.input)
    assert cast.op_type == "Cast"
    model.graph.node.remove(cast)
    for node in model.graph.node:
        node.input[:] = ["values" if name == cast.output[0] else name for name in node.input]
    source = model.graph.input[0]
    source.name, source.type.tensor_type.elem_type = "values", TensorProto.FLOAT
    del model.graph.value_info[:]


def edit_manifest(folder: Path, **members: object) -> None:
    """Change members of a bundle's manifest. The file may be a hard link, and is replaced."""
    content = json.loads((folder / "manifest.json").read_text()) | members
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(content))
