"""Writing a bundle: everything in a temporary folder, verified there, then renamed into place.

Always holds: an unverified bundle never exists under its name; a failed export leaves what was
there before as it was.
"""

import hashlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import runtime
from runtime import files
from runtime.codec.bundle import (
    CLOUD_GRAPH,
    COMPRESSAI_TABLES,
    EDGE_GRAPH,
    LABELS,
    MANIFEST,
    TABLES,
    compute_fingerprint,
)
from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile, build
from runtime.codec.manifest import FileEntry, Manifest, Preprocessing, ShapeRule
from runtime.engine.registry import GRAPHS
from runtime.files import temporary_folder
from training.models import FeatureCompressionModel

from .counts import Counts, CountsError, fit_tables
from .gate import Encode, Graphs, milliseconds, strays
from .graphs import OPSET, export_cloud, export_edge, stamp
from .parity import check_parity
from .tables import bottleneck_sha256, make_tables

DEFAULT_MAX_PIXELS = 1024 * 1024
DEFAULT_PREPROCESSING = Preprocessing()


class OutputInTheWayError(ValueError):
    """The output folder exists and is no bundle."""


def check_output(out: Path) -> None:
    """Refuse a place that no bundle can be written to, before work is done for it. Raises OutputInTheWayError, OutputError."""
    if out.exists():
        if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise OutputInTheWayError(
                f"{out} exists and is not a bundle: name another folder with --out, or remove it"
            )
        if out.is_mount():
            raise OutputInTheWayError(
                f"{out} is a mount point, which cannot be replaced: name a folder in it with --out"
            )
    # The bundle is written beside its place, and then takes it.
    place = out.resolve()
    files.check_output(place.with_name(f".{place.name}.new") if place.exists() else place)


def write_bundle(
    out: Path,
    model: FeatureCompressionModel,
    name: str,
    lmb: str,
    labels: list[str],
    images: NDArray[np.uint8],
    image_source: str,
    *,
    weights: str = "trained",
    checkpoint: dict[str, str] | None = None,
    make_counts: Callable[[Path, Tables], Counts | None] = lambda graph, own: None,
    make_int8: Callable[[Path, Encode], dict[str, Any]] = lambda folder, encode: {},
    precision: str = "auto",
    profile: Profile | None = None,
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export `model`, hold the graphs to it on `images`, and write the bundle `out`.

    Args:
        model: in eval mode.
        labels: one a class, no line breaks in them.
        images: uint8 [N, H, W, 3] for the parity gate; `image_source` says what they are.
        weights: "trained" or "random", recorded in the manifest.
        checkpoint: "file" and "sha256" of where the weights came from, recorded.
        make_counts: is given the edge graph and the model's own tables; gives the counts that tables are
            fitted to, or None for the model's own.
        make_int8: is given the folder with both graphs, where it writes the int8 forms that are good enough (engine.GRAPHS
            names them), and the coder; gives what the manifest says of them.
        precision: what both ends run in unless asked otherwise, "fp32" or "int8"; "auto": fp32, until the
            device has chosen.
        profile: of the files that the edge writes; None for CONTEXT where there are context tables.
        preprocessing: what both ends expect to be done to images; recorded, and done by the edge.
        max_pixels: the largest image that both ends will take.
        report: is given a line per stage.

    Gives the manifest. Raises OutputError, ParityError, ExportError, QuantilesError, CountsError, GateError,
    OutputInTheWayError, and what `make_counts` and `make_int8` raise.
    """
    check_output(out)
    if len(labels) != model.classes:
        raise ValueError(
            f"{len(labels)} labels for {model.classes} classes: give one a line with --labels"
        )
    place = out.resolve()  # a symbolic link keeps pointing there
    place.parent.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()

    def done(stage: str, detail: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        report(f"{stage:<11} {now - clock:6.1f} s   {detail}")
        clock = now

    def size(file: str) -> str:
        return f"{file}, {(work / file).stat().st_size:,} bytes"

    with temporary_folder(place) as work:
        spec = model.spec
        shape = ShapeRule(spec.latent_channels, spec.stride, spec.latent_shrink)
        bottleneck = bottleneck_sha256(model)
        for stage, file, export in (
            ("edge graph", EDGE_GRAPH, export_edge),
            ("cloud graph", CLOUD_GRAPH, export_cloud),
        ):
            export(model, work / file)
            done(stage, size(file))
        own = tables = make_tables(model)
        counts = make_counts(work / EDGE_GRAPH, own)
        if counts:
            tables = fit_tables(own, counts)
            (work / COMPRESSAI_TABLES).write_bytes(own.to_json())
        profile = profile or (Profile.CONTEXT if tables.contexts else Profile.STATIC)
        if profile is Profile.CONTEXT and not tables.contexts:
            raise CountsError(
                "no channel has context tables, which small files need: give images to count with --refit DIR"
            )
        (work / TABLES).write_bytes(tables.to_json())
        source = (
            f"fitted to {counts.images} images ({counts.source})"
            if counts
            else "the entropy model's own"
        )
        done(
            "tables",
            f"{size(TABLES)}, {tables.channels} channels, {len(tables.contexts)} of them with context tables; {source}",
        )
        fingerprint = compute_fingerprint(shape, tables, bottleneck).hex()
        properties = {
            "model": name,
            "lmb": lmb,
            "fingerprint": fingerprint,
            "edgecloud_features": runtime.__version__,
            "torch": version("torch"),
            "onnx": version("onnx"),
        }
        for file in (EDGE_GRAPH, CLOUD_GRAPH):
            stamp(work / file, properties)
        (work / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        parity = check_parity(
            model, tables, work / EDGE_GRAPH, work / CLOUD_GRAPH, images, image_source
        )
        done(
            "parity",
            f"{parity.images} {parity.source}: {parity.equal_share:.4%} of symbols equal ({parity.nonzero_share:.1%} not zero), "
            f"logits within {parity.largest_logit_difference:.1e}, top-1 equal, coder exact",
        )

        def encode(symbols: NDArray[np.int16], height: int, width: int) -> bytes:
            return build(
                bytes.fromhex(fingerprint), height, width, tables.encode(symbols, profile), profile
            )

        about_int8 = make_int8(work, encode)
        graphs: Graphs = {
            end: {
                precision: work / file
                for precision, file in files.items()
                if (work / file).exists()
            }
            for end, files in GRAPHS.items()
        }
        int8 = [end for end in graphs if "int8" in graphs[end]]
        for end in int8:
            stamp(graphs[end]["int8"], properties)
        far, times = strays(graphs, images), milliseconds(graphs, images[:1])
        if int8:
            done(
                "int8",
                "; ".join(
                    _describe_int8(end, about_int8.get("gate"), far[end], times[end])
                    for end in int8
                ),
            )
        manifest = Manifest(
            model=name,
            lmb=lmb,
            weights=weights,
            fingerprint=bytes.fromhex(fingerprint),
            bottleneck_sha256=bottleneck,
            shape=shape,
            max_symbols=max(1, shape.channels * (max_pixels // shape.stride**2)),
            preprocessing=preprocessing,
            profile=profile,
            precision=precision if int8 else "fp32",
            classes=len(labels),
            files={
                file: FileEntry((work / file).stat().st_size, _sha256(work / file))
                for file in (
                    TABLES,
                    *([COMPRESSAI_TABLES] if counts else []),
                    *(path.name for files in graphs.values() for path in files.values()),
                    LABELS,
                )
            },
            record={
                "int8": {"graphs": int8, "strays_on_parity_images": far, **about_int8}
                if int8
                else None,
                "tables": {
                    "images": counts.images,
                    "source": counts.source,
                    "context_channels": list(tables.contexts),
                }
                if counts
                else None,
                "checkpoint": checkpoint,
                "opset": OPSET,
                "versions": {
                    package: version(package)
                    for package in ("torch", "compressai", "onnx", "onnxruntime", "numpy")
                }
                | {"edgecloud-features": runtime.__version__},
                "parity": parity.as_dict(),
            },
        )
        (work / MANIFEST).write_bytes(manifest.to_json())
        _replace(work, place)
    done("bundle", f"{out}, fingerprint {fingerprint[:8]}")
    return manifest


def _describe_int8(
    end: str, gate: dict[str, Any] | None, far: float, times: dict[str, float]
) -> str:
    """One end's int8 graph, for the report."""
    if gate:
        judged = f"top-1 {gate[end]['top1_change']['mean']:+.2%} ({gate[end]['won']} won, {gate[end]['lost']} lost of {gate['images']})"
        judged += f", bytes {gate['more_bytes']:+.1%}" if end == "edge" else ""
    else:
        judged = f"{far:.2%} from float32, not judged on images"
    return f"{end} {judged}, {times['fp32']} to {times['int8']} ms"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(work: Path, out: Path) -> None:
    """Rename `work` to `out`; an older bundle there steps aside first and is removed last."""
    if not out.exists():
        os.rename(work, out)
        return
    with temporary_folder(out) as aside:
        os.rename(out, aside / out.name)
        try:
            os.rename(work, out)
        except BaseException:
            os.rename(aside / out.name, out)
            raise
