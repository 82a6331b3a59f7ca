"""The first stage: from what the command asks for to everything that an export starts from.

Always holds: what can be refused without minutes of work is refused here: outputs that cannot be
written or would replace an input, a checkpoint that is not what the command says, files that make
no sense, folders without images.
"""

import hashlib
import sys
from pathlib import Path

from runtime.cli.command import say
from runtime.codec.feature_file import Profile
from runtime.errors import OutputError
from runtime.files import check_output as check_file_output
from runtime.files import refuse_same_file
from training.checkpoint import load_model
from training.files import check_space
from training.folders import Damage
from training.labels import read_labels, stored_labels
from training.weights import read_metadata

from .bundle import check_output
from .checkpoint import agreed_lmb, own_labels
from .counts import Counts, CountsError
from .images import Reading, folder_images, labelled_paths, synthetic_images, unlabelled_paths
from .int8.ranges import LEAST_IMAGES, Calibration, RangesError
from .levels import LevelCounts
from .request import Request
from .states import CountsSource, Inputs, Int8Source
from .tables import bottleneck_sha256


def read_inputs(request: Request) -> Inputs:
    """Check the outputs, load the checkpoint, read the other files, and find the images.

    Raises OutputError, OutputInTheWayError, ContradictionError, CountsError, RangesError,
    training's CheckpointError, LabelsError and DataError, and OSError.
    """
    check_output(request.out)
    _check_outputs(request)
    path = request.checkpoint
    # Before the weights: a file of another model is refused by its metadata, not by a list of keys.
    lmb = agreed_lmb(path, request.model, request.lmb, read_metadata(path))
    model, metadata = load_model(path, request.model, request.backbone)
    labels = _labels(request.labels, metadata, model.classes)
    images, source = synthetic_images(), "synthetic images"
    if request.images:
        images = folder_images(request.images, rule=request.preprocessing)
        source = f"images from {request.images.name}"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    weights = model.state_dict().values()
    check_space(request.out, sum(value.numel() * value.element_size() for value in weights))
    return Inputs(
        out=request.out,
        name=request.model,
        model=model,
        lmb=lmb,
        labels=labels,
        weights=metadata.get("weights", "trained"),
        checkpoint={"file": path.name, "sha256": digest},
        images=images,
        image_source=source,
        reading=Reading(
            request.as_is,
            Damage(request.skip_damaged, "--skip-damaged"),
            request.preprocessing,
        ),
        counts=find_counts(request, bottleneck_sha256(model), model.spec.variable_rate),
        int8=_find_int8(request, labels),
        precision=request.precision,
        profile=request.profile,
        max_pixels=max(request.max_pixels, request.preprocessing.crop**2),
    )


def _check_outputs(request: Request) -> None:
    """Refuse files of counts and ranges that cannot be written or would replace an input.

    Raises OutputError.
    """
    inputs = [file for file in (request.checkpoint, request.backbone, request.labels) if file]
    written = []
    if request.refit and request.counts:
        written.append((request.counts, request.ranges_file))
    if (request.calibrate or request.validate) and request.ranges:
        written.append((request.ranges, request.counts_file))
    for file, other in written:
        check_file_output(file)
        refuse_same_file(file, [*inputs, other])
        if file.resolve() == other.resolve():
            raise OutputError(
                f"counts and ranges would both be {file}: name two files with --counts and --ranges"
            )
    folders = (request.refit, request.calibrate, request.validate, request.images)
    for place in (*inputs, request.counts, request.ranges, *folders):
        # The labels of the bundle that is replaced may be kept.
        if place and place.name != "labels.txt" and _is_within(place, request.out):
            raise OutputError(
                f"{place} lies in {request.out}, which the new bundle replaces: "
                "name another folder with --out"
            )


def _is_within(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _labels(path: Path | None, metadata: dict[str, str], classes: int) -> list[str]:
    """Labels of a file, else the checkpoint's own, else ImageNet's for 1000 classes, else numbers.

    Raises LabelsError, ContradictionError, OSError.
    """
    if path is not None:
        return read_labels(path, classes, "the checkpoint")
    if stored := own_labels(metadata, classes) or stored_labels({}, classes):
        return stored
    say(
        f"the checkpoint names no labels for its {classes} classes: they are numbered; "
        "--labels FILE names them",
        sys.stderr,
    )
    return [f"class {index}" for index in range(classes)]


def find_counts(
    request: Request, bottleneck_sha256: str, variable_rate: bool = False
) -> CountsSource:
    """Counts of a file, or the images to count.

    Raises CountsError where the file makes no sense, belongs to another bottleneck, or is missing
    and small files were asked for; DataError, OSError.
    """
    if request.refit:
        return CountsSource(
            images=unlabelled_paths(request.refit),
            name=request.refit.resolve().name,
            keep=request.counts,
        )
    file = request.counts_file
    if not request.own_tables and (request.counts or file.is_file()):
        kind = LevelCounts if variable_rate else Counts
        return CountsSource(stored=kind.read(file, bottleneck_sha256))
    if request.profile is Profile.CONTEXT:
        raise CountsError(
            f"no counts at {file}, which small files need: give images to count with --refit DIR"
        )
    return CountsSource()


def _find_int8(request: Request, labels: list[str]) -> Int8Source:
    """A calibration of a file, or the images to calibrate with, and those to measure int8 on.

    Raises RangesError where there is neither and one is needed, DataError, OSError.
    """
    if request.precision == "fp32":
        return Int8Source()
    file, stored = request.ranges_file, None
    if not request.calibrate and (request.ranges or file.is_file()):
        stored = Calibration.from_json(file.read_text(encoding="utf-8"), str(file))
    images = labelled_paths(request.calibrate, labels) if request.calibrate else []
    validation = labelled_paths(request.validate, labels) if request.validate else []
    if images and len(images) < LEAST_IMAGES:
        raise RangesError(
            f"{request.calibrate} has {len(images)} images, too few to calibrate with: "
            f"name a folder of at least {LEAST_IMAGES}, of which every tenth is held out"
        )
    if not stored and not images and (request.precision == "int8" or validation):
        raise RangesError(
            f"no activation ranges at {file}: give images to take them of with --calibrate DIR"
        )
    return Int8Source(
        stored=stored,
        images=images,
        name=request.calibrate.resolve().name if request.calibrate else "",
        validation=validation,
        validation_name=request.validate.resolve().name if request.validate else "",
        keep=request.ranges,
        signed=request.arm,
    )
