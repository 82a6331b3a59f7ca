"""What `python -m export` is asked for: its options, checked and typed.

Nothing is read for it, and nothing heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from runtime.codec.feature_file import Profile
from runtime.codec.manifest import STANDARD, Preprocessing

DEFAULT_MAX_PIXELS = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one export. An optional file or folder is None where it was not named.

    Attributes:
        model: name of the architecture.
        checkpoint, backbone: files of weights.
        lmb: the rate weight as the command has it, None to take the checkpoint's.
        out: the bundle.
        labels: file of labels.
        images: folder for the parity check; None for synthetic images.
        refit, calibrate, validate: folders of images.
        own_tables: whether counts beside the checkpoint are not used.
        as_is, skip_damaged: how those images are read.
        counts, ranges: files, as they were named.
        profile: of the feature files that the edge writes; None for what the tables allow.
        precision: "auto", "fp32" or "int8".
        arm: whether int8 graphs are made for ARM.
        max_pixels: the largest image that both ends accept.
    """

    model: str
    checkpoint: Path
    out: Path
    backbone: Path | None = None
    lmb: str | None = None
    labels: Path | None = None
    images: Path | None = None
    refit: Path | None = None
    own_tables: bool = False
    as_is: bool = False
    skip_damaged: bool = False
    counts: Path | None = None
    profile: Profile | None = None
    precision: str = "auto"
    arm: bool = False
    calibrate: Path | None = None
    ranges: Path | None = None
    validate: Path | None = None
    preprocessing: Preprocessing = STANDARD
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def counts_file(self) -> Path:
        """The file of counts: as named, or beside the checkpoint."""
        return self.counts or self.checkpoint.with_suffix(".counts.json")

    @property
    def ranges_file(self) -> Path:
        """The file of activation ranges: as named, or beside the checkpoint."""
        return self.ranges or self.checkpoint.with_suffix(".ranges.json")
