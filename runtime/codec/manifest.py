"""manifest.json, which says what a bundle is. docs/BUNDLE.md is its specification.

Always holds: only this file reads and writes manifests. A Manifest that was read has every member
that the runtime uses, of the right type and in range. What export only records (versions, parity,
figures) is in `record` and changes nothing that runs.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..errors import InconsistentBundleError, UnsupportedBundleError
from . import strict_json
from .feature_file import BLOCK, FIXED_RATE, MAX_LEVEL, VARIABLE_RATE, Profile

SCHEMA = 2
_PRECISIONS = ("auto", "fp32", "int8")
# Pixels that the short side may be resized to: bounds the memory that a bundle can ask for.
MAX_SIDE = 1 << 12


@dataclass(frozen=True)
class ShapeRule:
    """From an image's size to its symbols' shape: side of the latent = pixels / stride - shrink."""

    channels: int
    stride: int
    shrink: int

    def latent(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latent of an image of height x width pixels (multiples of 8)."""
        return height // self.stride - self.shrink, width // self.stride - self.shrink

    def symbols(self, height: int, width: int) -> int:
        """How many symbols an image of height x width pixels (multiples of 8) has."""
        rows, columns = self.latent(height, width)
        return self.channels * rows * columns


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the edge graph, unless it is taken as it is.

    The short side is resized to `resize` pixels, then the central `crop` x `crop` pixels are kept.
    """

    resize: int = 256
    crop: int = 224


DEFAULT_LEVEL = 8.0  # of a variable-rate bundle whose manifest does not say
FIRST_TASK = "classification"  # the one of bundles that were exported before manifests named it
STANDARD = Preprocessing()  # the reference's evaluation transform


class FileEntry(NamedTuple):
    """Size and SHA-256 (hexadecimal) of one of the bundle's files, as it was exported."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest; docs/BUNDLE.md has the meaning of every member.

    `lmb` is text, as it was given to export. `fingerprint` has 32 bytes.
    `bottleneck_sha256` has 64 hexadecimal digits. `format_version` is that of the bundle's feature
    files: 1, or 2 for a variable-rate bundle, which alone has a `default_level`, 0 to 15.
    """

    model: str
    lmb: str
    weights: str
    fingerprint: bytes
    bottleneck_sha256: str
    shape: ShapeRule
    max_symbols: int
    preprocessing: Preprocessing
    profile: Profile  # of feature files, unless the caller asks for another
    precision: str  # of _PRECISIONS, for both ends, unless the caller asks for another
    classes: int
    files: Mapping[str, FileEntry]
    task: str = FIRST_TASK  # by its name in runtime.tasks
    format_version: int = FIXED_RATE
    default_level: float = DEFAULT_LEVEL
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes, source: str) -> "Manifest":
        """Read a manifest from JSON; messages call it `source`.

        Raises InconsistentBundleError, UnsupportedBundleError.
        """
        try:
            content = strict_json.loads(text)
            schema = content["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _not_understood(source, error) from error
        if schema != SCHEMA:
            raise UnsupportedBundleError(
                f"{source} has schema {schema!r}, this release reads {SCHEMA}: "
                "update, or export it again"
            )
        try:
            version = content.pop("format_version")
            del content["schema"]
            preprocessing = content.pop("preprocessing")
            level = DEFAULT_LEVEL
            if version == VARIABLE_RATE:
                level = content.pop("default_level", level)
            manifest = cls(
                model=str(content.pop("model")),
                lmb=str(content.pop("lmb")),
                weights=str(content.pop("weights")),
                fingerprint=bytes.fromhex(content.pop("fingerprint")),
                bottleneck_sha256=bytes.fromhex(content.pop("bottleneck_sha256")).hex(),
                shape=ShapeRule(**{key: int(value) for key, value in content.pop("shape").items()}),
                max_symbols=int(content.pop("max_symbols")),
                preprocessing=Preprocessing(
                    int(preprocessing["resize"]), int(preprocessing["crop"])
                ),
                profile=Profile.CONTEXT if bool(content.pop("small")) else Profile.STATIC,
                precision=str(content.pop("precision")),
                classes=int(content.pop("classes")),
                files={
                    str(name): FileEntry(int(entry["bytes"]), bytes.fromhex(entry["sha256"]).hex())
                    for name, entry in content.pop("files").items()
                },
                task=str(content.pop("task", FIRST_TASK)),
                format_version=VARIABLE_RATE if version == VARIABLE_RATE else FIXED_RATE,
                default_level=float(level),
                record=content,
            )
            resampling = (preprocessing["interpolation"], preprocessing["antialias"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _not_understood(source, error) from error
        if version not in (FIXED_RATE, VARIABLE_RATE):
            raise UnsupportedBundleError(
                f"{source} has feature files of version {version!r}, this release reads "
                f"{FIXED_RATE} and {VARIABLE_RATE}: update, or export it again"
            )
        if resampling != ("bilinear", True):
            raise UnsupportedBundleError(
                f"{source} resizes by {resampling[0]!r}, antialias {resampling[1]!r}; "
                "this release resizes by antialiased bilinear alone: export it again"
            )
        manifest._check(source)
        return manifest

    def _check(self, source: str) -> None:
        shape, sides = self.shape, self.preprocessing
        if (
            min(shape.channels, shape.stride, shape.shrink + 1, self.max_symbols) < 1
            or BLOCK % shape.stride
        ):
            raise InconsistentBundleError(
                f"{source} has an impossible shape rule, {asdict(shape)}: export the bundle again"
            )
        if not 1 <= sides.crop <= sides.resize <= MAX_SIDE or sides.crop % BLOCK:
            raise InconsistentBundleError(
                f"{source} resizes to {sides.resize} and crops {sides.crop} pixels: "
                f"a crop is a multiple of {BLOCK} and at most the resized side, which is at most "
                f"{MAX_SIDE}; export the bundle again"
            )
        if not 0 <= self.default_level <= MAX_LEVEL:
            raise InconsistentBundleError(
                f"{source} has the default level {self.default_level}, levels are from 0 to "
                f"{MAX_LEVEL}: export the bundle again"
            )
        if self.precision not in _PRECISIONS or self.classes < 1 or len(self.fingerprint) != 32:
            raise _not_understood(
                source,
                f"precision {self.precision!r}, {self.classes} classes, "
                f"fingerprint of {len(self.fingerprint)} bytes",
            )

    def to_json(self) -> bytes:
        """The contents of manifest.json; `parse` reads them back."""
        content = {
            "schema": SCHEMA,
            "format_version": self.format_version,
            "model": self.model,
            "lmb": self.lmb,
            "weights": self.weights,
            "fingerprint": self.fingerprint.hex(),
            "bottleneck_sha256": self.bottleneck_sha256,
            "shape": asdict(self.shape),
            "max_symbols": self.max_symbols,
            "preprocessing": asdict(self.preprocessing)
            | {"interpolation": "bilinear", "antialias": True},
            "small": self.profile is Profile.CONTEXT,
            "precision": self.precision,
            "task": self.task,
            "classes": self.classes,
            "files": {name: entry._asdict() for name, entry in self.files.items()},
        }
        if self.format_version == VARIABLE_RATE:
            content["default_level"] = self.default_level
        return (json.dumps(content | dict(self.record), indent=1, allow_nan=False) + "\n").encode()


def _not_understood(source: str, why: object) -> InconsistentBundleError:
    return InconsistentBundleError(f"{source} is not understood ({why!r}): export the bundle again")
