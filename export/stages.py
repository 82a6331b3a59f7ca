"""An export as a list of stages, in the order in which they run.

    Inputs -> edge graph -> cloud graph -> tables -> parity -> ranges -> int8 graphs -> native
           -> judgement -> int8 -> bundle

Each stage is a function from one state to the next (export/states.py). `write_bundle` runs them in
a temporary folder. The last one renames it, so that a bundle exists verified or not at all.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

import runtime
from runtime.cli.command import say
from runtime.codec.bundle import (
    CLOUD_GRAPH,
    COMPRESSAI_TABLES,
    EDGE_GRAPH,
    EDGE_WEIGHTS,
    LABELS,
    MANIFEST,
    RATES,
    TABLES,
    compute_fingerprint,
)
from runtime.codec.coder import Tables, levels_to_json
from runtime.codec.feature_file import Profile
from runtime.codec.manifest import Manifest
from runtime.codec.variable_rate import VariableRate
from runtime.engine.registry import GRAPHS
from runtime.files import temporary_folder, write_atomically
from training.command import progress

from .bundle import check_output, context_channels, make_manifest, move_into_place
from .counts import Counts, CountsError, count, fit_tables, symbols_of
from .edge_tables import write_edge_tables
from .graphs import export_cloud, export_edge, stamp
from .int8.calibrate import calibrate
from .int8.gate import GateError, deviation, judge, milliseconds, reasons
from .int8.native import NotNativeError, write_weights
from .int8.quantise import NothingToQuantiseError, quantise
from .levels import LevelCounts, count_levels, fit_levels, own_coding
from .link import CHECKED_LEVELS
from .parity import check_parity
from .states import (
    Calibrated,
    Chosen,
    Coded,
    EdgeExported,
    Exported,
    Inputs,
    Judged,
    Placed,
    Quantised,
    Started,
    Verified,
    Written,
    then,
)
from .tables import Coder, bottleneck_sha256, make_tables, shape_rule, weights_sha256


def write_edge_graph(state: Started) -> EdgeExported:
    """Write the float32 edge graph. Raises ExportError."""
    path = state.work / EDGE_GRAPH
    export_edge(state.model, path)
    return then(EdgeExported, state, _size(path), edge=path)


def write_cloud_graph(state: EdgeExported) -> Exported:
    """Write the float32 cloud graph. Raises ExportError."""
    path = state.work / CLOUD_GRAPH
    export_cloud(state.model, path)
    return then(Exported, state, _size(path), cloud=path)


def write_tables(state: Exported) -> Coded:
    """Fit the tables to counts, if there are any, and give the graphs the fingerprint.

    Raises QuantilesError, TablesError, RatesError, CountsError, NoImagesError, DamagedImageError,
    OSError.
    """
    bottleneck = bottleneck_sha256(state.model)
    make = _variable_rate if state.model.spec.variable_rate else _fixed_rate
    tables, counts = make(state, bottleneck)
    contexts = context_channels(tables)
    profile = state.profile or (Profile.CONTEXT if any(contexts) else Profile.STATIC)
    if profile is Profile.CONTEXT and not any(contexts):
        raise CountsError(
            "no channel gains by context tables, which small files need: "
            "leave out --small, or count other images with --refit DIR"
        )
    fingerprint = compute_fingerprint(shape_rule(state.model), tables, bottleneck)
    properties = {
        "model": state.name,
        "lmb": state.lmb,
        "fingerprint": fingerprint.hex(),
        "edgecloud_features": runtime.__version__,
        "torch": version("torch"),
        "onnx": version("onnx"),
    }
    for graph in (state.edge, state.cloud):
        stamp(graph, properties)
    return then(
        Coded,
        state,
        f"{_size(state.work / TABLES)}, {state.model.spec.latent_channels} channels, "
        f"{_span([len(one) for one in contexts])} of them with context tables; {_origin(counts)}",
        fitted_to=counts,
        coder=Coder(fingerprint, tables, profile),
        bottleneck_sha256=bottleneck,
        properties=properties,
    )


def _fixed_rate(state: Exported, bottleneck: str) -> tuple[Tables, Counts | None]:
    """The tables, written into the bundle, and the counts they are fitted to."""
    own = tables = make_tables(state.model)
    counts = state.counts.stored
    assert not isinstance(counts, LevelCounts)
    if state.counts.images:
        counts = count(_counted(state), own, bottleneck, state.counts.name)
        _keep(state.counts.keep, counts.to_json())
    if counts:
        tables = fit_tables(own, counts)
        (state.work / COMPRESSAI_TABLES).write_bytes(own.to_json())
    (state.work / TABLES).write_bytes(tables.to_json())
    return tables, counts


def _variable_rate(state: Exported, bottleneck: str) -> tuple[VariableRate, LevelCounts | None]:
    """The same with the tables and gains of all levels."""
    own = coding = own_coding(state.model)
    counts = state.counts.stored
    assert not isinstance(counts, Counts)
    if state.counts.images:
        counts = count_levels(_counted(state), own, bottleneck, state.counts.name)
        _keep(state.counts.keep, counts.to_json())
    if counts:
        coding = fit_levels(state.model, own, counts)
    (state.work / TABLES).write_bytes(levels_to_json(coding.levels))
    (state.work / RATES).write_bytes(coding.rates.to_json())
    return coding, counts


def _counted(state: Exported) -> Iterator[NDArray[Any]]:
    """The edge graph's outputs for the images to count."""
    return symbols_of(state.edge, progress(state.counts.images, "counting"), state.reading)


def verify(state: Coded) -> Verified:
    """Compare both float32 graphs and the coder with torch. Raises ParityError."""
    coder, images, source = state.coder, state.images, state.image_source
    reports = {
        step: check_parity(state.model, coder.tables, state.edge, state.cloud, images, source, step)
        for step in coder.link.steps
    }
    equal = min(report.equal_share for report in reports.values())
    nonzero = " to ".join(f"{report.nonzero_share:.1%}" for report in reports.values())
    within = max(report.largest_logit_difference for report in reports.values())
    at = ", at rate levels " + ", ".join(f"{level:g}" for level in CHECKED_LEVELS)
    detail = (
        f"{len(images)} {source}{at if len(reports) > 1 else ''}: {equal:.4%} of symbols equal "
        f"({nonzero} not zero), logits within {within:.1e}, top-1 equal, coder exact"
    )
    return then(Verified, state, detail, parity=reports)


def take_calibration(state: Verified) -> Calibrated:
    """Take activation ranges, where there are images for it. Raises RangesError."""
    source = state.int8
    calibration = source.stored
    if source.images:
        calibration = calibrate(
            {"edge": state.edge, "cloud": state.cloud},
            _graph_hashes(state),
            [path for index, (path, _) in enumerate(source.images) if index % 10],
            state.reading,
            source.name,
            state.coder.link,
        )
    return then(Calibrated, state, calibration=calibration)


def write_int8_graphs(state: Calibrated) -> Quantised:
    """Quantise both graphs, where there are ranges. Raises RangesError."""
    graphs = {"edge": {"fp32": state.edge}, "cloud": {"fp32": state.cloud}}
    if state.calibration:
        hashes = _graph_hashes(state)
        for end, files in graphs.items():
            out = state.work / GRAPHS[end]["int8"]
            ranges = state.calibration.of(end)
            try:
                quantise(files["fp32"], ranges, hashes[end], out, state.int8.signed)
            except NothingToQuantiseError as error:
                say(f"export: {error}", sys.stderr)
            else:
                files["int8"] = out
    return then(Quantised, state, graphs=graphs)


def write_native(state: Quantised) -> Written:
    """Write the native encoder, where there are ranges. Raises RangesError."""
    graphs = {end: dict(files) for end, files in state.graphs.items()}
    detail = ""
    if state.calibration:
        out, hashes = state.work / EDGE_WEIGHTS, _graph_hashes(state)
        try:
            write_weights(
                state.edge,
                state.calibration.edge,
                hashes["edge"],
                state.coder.fingerprint,
                out,
            )
        except NotNativeError as error:
            say(f"export: no {EDGE_WEIGHTS} is written: {error}", sys.stderr)
        else:
            graphs["edge"]["native"] = out
            detail = _size(out)
    return then(Written, state, detail, graphs=graphs)


def judge_int8(state: Written) -> Judged:
    """Measure int8 on images that were held out, and on others; keep the calibration if asked to.

    Raises GateError, ParityError, DamagedImageError, OSError.
    """
    calibration, source = state.calibration, state.int8
    if calibration and source.images:
        held_out = progress(source.images[::10], "judging")
        name = f"{calibration.source}, held out"
        gate = judge(state.graphs, state.coder, held_out, name, state.reading)
        calibration = replace(calibration, gate=gate)
    if calibration and source.validation:
        images = progress(source.validation, "validating")
        name = source.validation_name
        validation = judge(state.graphs, state.coder, images, name, state.reading)
        calibration = replace(calibration, validation=validation)
    if calibration and (source.images or source.validation):
        _keep(source.keep, calibration.to_json())
    return then(Judged, state, calibration=calibration)


def choose_int8(state: Judged) -> Chosen:
    """Remove the int8 graphs, and the native encoder, if they are not good enough.

    Raises GateError where --precision int8 wants one of the graphs, and where one is too far from
    float32 on the parity images.
    """
    graphs = {end: dict(files) for end, files in state.graphs.items()}
    gate = (state.calibration.gate if state.calibration else None) or {}
    for what, end, precision in _INT8:
        if precision not in graphs[end] or what not in gate:
            continue
        if why := "; ".join(reasons(gate, what)):
            if state.precision == "int8" and precision == "int8":
                raise GateError(f"{what}: {why}")
            say(f"export: no {graphs[end][precision].name} is written: {why}", sys.stderr)
            graphs[end].pop(precision).unlink()
    found = [one for one in _INT8 if one[2] in graphs[one[1]]]
    if not found:
        return then(Chosen, state, graphs=graphs, deviation={})
    for _, end, precision in found:
        if precision == "int8":
            stamp(graphs[end][precision], state.properties)
    link = state.coder.link
    far = deviation(graphs, state.images, link)
    times = milliseconds(graphs, state.images[:1], link)
    detail = "; ".join(
        _describe_int8(what, gate, far[what], times[end]["fp32"], times[end][precision])
        for what, end, precision in found
    )
    return then(Chosen, state, detail, graphs=graphs, deviation=far)


def place_bundle(state: Chosen) -> Placed:
    """Write edge.tables, labels and manifest, and rename the folder to the bundle's name.

    Raises OSError.
    """
    if "native" in state.graphs["edge"]:
        write_edge_tables(state)
    labels = "".join(f"{label}\n" for label in state.labels)
    (state.work / LABELS).write_text(labels, encoding="utf-8")
    manifest = make_manifest(state)
    (state.work / MANIFEST).write_bytes(manifest.to_json())
    move_into_place(state.work, state.out.resolve())  # a symbolic link keeps pointing there
    detail = f"{state.out}, fingerprint {manifest.fingerprint.hex()[:8]}"
    return then(Placed, state, detail, manifest=manifest)


# What the gate judges on its own: its name there, the end, and the precision.
_INT8 = (("edge", "edge", "int8"), ("cloud", "cloud", "int8"), ("native", "edge", "native"))

# Name in the report, and function. Stages that give no detail have no line of their own.
STAGES: tuple[tuple[str, Callable[[Any], Inputs]], ...] = (
    ("edge graph", write_edge_graph),
    ("cloud graph", write_cloud_graph),
    ("tables", write_tables),
    ("parity", verify),
    ("ranges", take_calibration),
    ("int8 graphs", write_int8_graphs),
    ("native", write_native),
    ("judgement", judge_int8),
    ("int8", choose_int8),
    ("bundle", place_bundle),
)


def write_bundle(inputs: Inputs, report: IO[str] | None = None) -> Manifest:
    """Run all stages, and write the bundle `inputs.out`; gives its manifest.

    Args:
        report: gets a line per stage, with its seconds.

    Raises OutputError, OutputInTheWayError, ValueError for too few or many labels, and what the
    stages raise. The bundle is then as it was before.
    """
    check_output(inputs.out)
    classes = inputs.model.classes
    if len(inputs.labels) != classes:
        raise ValueError(
            f"{len(inputs.labels)} labels for {classes} classes: give one a line with --labels"
        )
    place = inputs.out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with temporary_folder(place) as work:
        state: Any = Started(**vars(inputs), work=work)
        for name, stage in STAGES:
            state = stage(state)
            if state.detail:
                now = time.perf_counter()
                say(f"{name:<11} {now - start:6.1f} s   {state.detail}", report)
                start = now
    manifest: Manifest = state.manifest
    return manifest


def _size(file: Path) -> str:
    return f"{file.name}, {file.stat().st_size:,} bytes"


def _span(values: Sequence[int]) -> str:
    """One number, or the least and the most of several."""
    return f"{min(values)}" if len(values) == 1 else f"{min(values)} to {max(values)}"


def _origin(counts: Counts | LevelCounts | None) -> str:
    if counts is None:
        return "the entropy model's own"
    return f"fitted to {counts.images} images ({counts.source})"


def _graph_hashes(state: Inputs) -> dict[str, str]:
    """What the ranges of each graph depend on: hashes of the weights behind it."""
    return {"edge": bottleneck_sha256(state.model), "cloud": weights_sha256(state.model)}


def _keep(file: Path | None, text: str) -> None:
    """Write a file that was asked for, if it was. Raises OSError."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())


def _describe_int8(what: str, gate: dict[str, Any], far: float, before: float, after: float) -> str:
    """One end's int8 graph, or the native encoder, for the report; times are in milliseconds."""
    if what in gate:
        change = gate[what]["top1_change"]["mean"]
        won, lost = gate[what]["won"], gate[what]["lost"]
        judged = f"top-1 {change:+.2%} ({won} won, {lost} lost of {gate['images']})"
        more = gate["more_bytes"] if what == "edge" else gate[what].get("more_bytes")
        judged += f", bytes {more:+.1%}" if more is not None else ""
    else:
        judged = f"{far:.2%} from float32, not judged on images"
    return f"{what} {judged}, {before} to {after} ms"
