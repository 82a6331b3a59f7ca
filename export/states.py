"""What is known between two stages of an export.

Each state has all that the one before it has, and what its stage found out. A stage never changes
a state: it makes the next one with `then`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.codec.feature_file import Profile
from runtime.codec.manifest import Manifest
from training.models import FeatureCompressionModel

from .counts import Counts
from .graphs import Graphs
from .images import LabelledPath, Reading, synthetic_images
from .int8.ranges import Calibration
from .levels import LevelCounts
from .parity import ParityReport
from .request import DEFAULT_MAX_PIXELS
from .tables import Coder


@dataclass(frozen=True)
class CountsSource:
    """Where the counts come from that tables are fitted to. By default, from nowhere.

    Attributes:
        stored: counts that were read from a file.
        images: files whose symbols are counted, where there are no stored counts.
        name: what the manifest calls these images.
        keep: the file that new counts are written to, if any.
    """

    stored: Counts | LevelCounts | None = None
    images: Sequence[Path] = ()
    name: str = ""
    keep: Path | None = None


@dataclass(frozen=True)
class Int8Source:
    """What int8 graphs are made from and judged on. By default there are none.

    Attributes:
        stored: a calibration that was read from a file.
        images: files to calibrate with, where there is no stored calibration; every tenth is held
            out for the gate.
        name: what the manifest calls these images.
        validation, validation_name: files that int8 is measured on, without consequence.
        keep: the file that a new calibration is written to, if any.
        signed: whether activations are int8 (for ARM) in place of uint8.
    """

    stored: Calibration | None = None
    images: Sequence[LabelledPath] = ()
    name: str = ""
    validation: Sequence[LabelledPath] = ()
    validation_name: str = ""
    keep: Path | None = None
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that an export starts from, read and checked.

    Attributes:
        out: the bundle.
        name: name of the model's architecture.
        model: in eval mode.
        lmb: rate weight, as text; of a variable-rate model a range.
        labels: one a class, without line breaks.
        weights: "trained" or "random".
        checkpoint: "file" and "sha256" of the weights' file.
        images, image_source: uint8 [N, H, W, 3] for the parity check, and what they are.
        reading: how all other images are read. Its rule goes into the manifest.
        counts: where counts of symbols come from.
        int8: what int8 graphs are made from.
        precision: what both ends run unless asked otherwise: "fp32", "int8", or "auto" for fp32
            until the device has chosen.
        profile: of the files that the edge writes; None for CONTEXT where there are context tables.
        max_pixels: the largest image that both ends accept.
        detail: what the last stage reports of its work; empty for no report.
    """

    out: Path
    name: str
    model: FeatureCompressionModel
    lmb: str
    labels: Sequence[str]
    weights: str = "trained"
    checkpoint: Mapping[str, str] | None = None
    images: NDArray[np.uint8] = field(default_factory=synthetic_images)
    image_source: str = "synthetic images"
    reading: Reading = field(default_factory=Reading)
    counts: CountsSource = CountsSource()
    int8: Int8Source = Int8Source()
    precision: str = "auto"
    profile: Profile | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Started(Inputs):
    """There is an empty temporary folder `work`, which becomes the bundle."""

    work: Path


@dataclass(frozen=True, kw_only=True)
class EdgeExported(Started):
    """The float32 edge graph is written."""

    edge: Path


@dataclass(frozen=True, kw_only=True)
class Exported(EdgeExported):
    """Both float32 graphs are written."""

    cloud: Path


@dataclass(frozen=True, kw_only=True)
class Coded(Exported):
    """The tables are written, and the graphs carry the fingerprint.

    Attributes:
        fitted_to: the counts that the tables were fitted to; None for the model's own tables.
        coder: fingerprint, tables, and the bundle's profile.
        bottleneck_sha256: in hexadecimal.
        properties: the graphs' metadata_props.
    """

    fitted_to: Counts | LevelCounts | None
    coder: Coder
    bottleneck_sha256: str
    properties: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Verified(Coded):
    """The float32 graphs and the coder give what torch gives.

    `parity` says so by step, of which a fixed rate has one, None.
    """

    parity: Mapping[int | None, ParityReport]


@dataclass(frozen=True, kw_only=True)
class Calibrated(Verified):
    """Activation ranges are there, unless int8 was not asked for."""

    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class Quantised(Calibrated):
    """The int8 graphs are written. `graphs` has all graphs, by end and precision."""

    graphs: Graphs


@dataclass(frozen=True, kw_only=True)
class Written(Quantised):
    """The native encoder is written too, as the edge's "native" in `graphs`, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Judged(Written):
    """The calibration has the gate's records, where there were images to judge int8 on."""


@dataclass(frozen=True, kw_only=True)
class Chosen(Judged):
    """`graphs` has only the int8 graphs, and the native encoder, that passed the gate.

    `deviation` says by end, and for "native", how far they are from the float32 graphs on the
    parity images.
    """

    deviation: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Placed(Chosen):
    """The bundle is in its place."""

    manifest: Manifest


S = TypeVar("S", bound=Inputs)


def then(kind: type[S], state: Inputs, detail: str = "", **found: Any) -> S:
    """The state after `state`: what that has, and what was found."""
    return kind(**(vars(state) | {"detail": detail} | found))
