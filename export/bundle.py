"""The last stage: the manifest of a bundle, and its folder renamed into place.

Always holds: an unverified bundle never exists under its name. A failed export leaves what was
there before as it was.
"""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import runtime
from runtime import files
from runtime.codec.bundle import (
    COMPRESSAI_TABLES,
    EDGE_TABLES,
    LABELS,
    MANIFEST,
    RATES,
    TABLES,
)
from runtime.codec.coder import Tables
from runtime.codec.feature_file import FIXED_RATE, VARIABLE_RATE
from runtime.codec.manifest import FileEntry, Manifest
from runtime.codec.rates import STEPS_PER_LEVEL
from runtime.codec.variable_rate import VariableRate
from runtime.files import temporary_folder
from runtime.tasks.classification import Classification

from .graphs import OPSET
from .states import Chosen
from .tables import shape_rule

_PACKAGES = ("torch", "compressai", "onnx", "onnxruntime", "numpy")


class OutputInTheWayError(ValueError):
    """The output folder exists and is no bundle."""


def check_output(out: Path) -> None:
    """Refuse a place that no bundle can be written to, before work is done for it.

    Raises OutputInTheWayError, OutputError.
    """
    if out.exists():
        if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise OutputInTheWayError(
                f"{out} exists and is not a bundle: name another folder with --out, or remove it"
            )
        if out.is_mount():
            raise OutputInTheWayError(
                f"{out} is a mount point, which cannot be replaced: name a folder in it with --out"
            )
    # The bundle is written beside its place first.
    place = out.resolve()
    files.check_output(place.with_name(f".{place.name}.new") if place.exists() else place)


def max_symbols(state: Chosen) -> int:
    """The most symbols of an image that both ends of the bundle accept."""
    shape = shape_rule(state.model)
    return max(1, shape.channels * (state.max_pixels // shape.stride**2))


def make_manifest(state: Chosen) -> Manifest:
    """The manifest of a bundle whose other files are all written."""
    coder = state.coder
    has_int8 = any("int8" in graphs for graphs in state.graphs.values())
    shape = shape_rule(state.model)
    variable = isinstance(coder.tables, VariableRate)
    names = [
        TABLES,
        *([RATES] if variable else [COMPRESSAI_TABLES] if state.fitted_to else []),
        *(path.name for graphs in state.graphs.values() for path in graphs.values()),
        *([EDGE_TABLES] if "native" in state.graphs["edge"] else []),
        LABELS,
    ]
    return Manifest(
        model=state.name,
        lmb=state.lmb,
        weights=state.weights,
        fingerprint=coder.fingerprint,
        bottleneck_sha256=state.bottleneck_sha256,
        shape=shape,
        max_symbols=max_symbols(state),
        preprocessing=state.reading.rule,
        profile=coder.profile,
        precision=state.precision if has_int8 else "fp32",
        task=Classification.NAME,
        classes=len(state.labels),
        format_version=VARIABLE_RATE if variable else FIXED_RATE,
        files={
            name: FileEntry((state.work / name).stat().st_size, _sha256(state.work / name))
            for name in names
        },
        record=_record(state),
    )


def _record(state: Chosen) -> dict[str, Any]:
    """The members of a manifest that only record something."""
    counts = state.fitted_to
    return {
        "int8": _int8_record(state),
        "tables": {
            "images": counts.images,
            "source": counts.source,
            "context_channels": _context_record(state.coder.tables),
        }
        if counts
        else None,
        "checkpoint": state.checkpoint,
        "opset": OPSET,
        "versions": {package: version(package) for package in _PACKAGES}
        | {"edgecloud-features": runtime.__version__},
        "parity": _parity_record(state),
    }


def context_channels(tables: Tables | VariableRate) -> list[list[int]]:
    """Channels with context tables, of each whole level; a fixed rate has one list."""
    levels = tables.levels if isinstance(tables, VariableRate) else [tables]
    return [list(one.contexts) for one in levels]


def _context_record(tables: Tables | VariableRate) -> list[Any]:
    """The member `tables.context_channels`: channels, or a list of them for each level."""
    found = context_channels(tables)
    return found if isinstance(tables, VariableRate) else found[0]


def _parity_record(state: Chosen) -> dict[str, Any]:
    """The member `parity`: a report, or one for each rate level that was compared."""
    reports = {step: report.as_dict() for step, report in state.parity.items()}
    if None in reports:
        return reports[None]
    return {
        "levels": [
            {"level": step / STEPS_PER_LEVEL, **report}
            for step, report in reports.items()
            if step is not None
        ]
    }


def _int8_record(state: Chosen) -> dict[str, Any] | None:
    """The member `int8` of a manifest; None for a bundle without int8 graphs or native encoder."""
    ends = [end for end, graphs in state.graphs.items() if "int8" in graphs]
    if not ends and "native" not in state.graphs["edge"]:
        return None
    assert state.calibration
    return {
        "graphs": ends,
        "deviation_on_parity_images": dict(state.deviation),
        "activations": "int8" if state.int8.signed else "uint8",
        "calibration": {
            "images": state.calibration.images,
            "source": state.calibration.source,
        },
        "gate": state.calibration.gate,
        "validation": state.calibration.validation,
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_into_place(work: Path, out: Path) -> None:
    """Rename `work` to `out`. An older bundle there is moved aside first and removed last."""
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
