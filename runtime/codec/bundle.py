"""A bundle: the folder that one export writes and both ends read. docs/BUNDLE.md specifies it.

    manifest.json     what the bundle is, and the SHA-256 of each other file
    tables.json       entropy tables
    rates.json        rate levels, of a variable-rate bundle
    edge.onnx         pixels to symbols, or to the latent: the edge half
    edge.int8.onnx    the same, quantised; optional
    edge.weights      the same, for the native encoder; optional
    edge.tables       what the C library needs of manifest.json and tables.json; with edge.weights
    cloud.onnx        symbols, or scaled ones, to logits: the cloud half, with labels.txt
    cloud.int8.onnx   the same, quantised; optional
    labels.txt        one label per line
    compressai.json   the tables of CompressAI's streams, if they differ from tables.json
    tuned.json        the engine that `--tune` chose on this device; not part of the export

Always holds: a file is used only if its bytes have the SHA-256 that the manifest names, and the
fingerprint is computed from the loaded contents and compared with the manifest's.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    AlteredBundleFileError,
    BundleNotFoundError,
    DamagedFeatureFileError,
    FixedRateError,
    InconsistentBundleError,
    MissingBundleFileError,
    NoCompressAiStreamError,
    NoContextTablesError,
    TooManySymbolsError,
    WrongBundleError,
)
from . import feature_file
from .coder import Tables
from .feature_file import BLOCK, FIXED_RATE, VARIABLE_RATE, Profile
from .manifest import Manifest, ShapeRule
from .rates import Floats, Rates, step_of
from .variable_rate import VariableRate

MANIFEST, TABLES, RATES, EDGE_GRAPH, CLOUD_GRAPH, LABELS = (
    "manifest.json",
    "tables.json",
    "rates.json",
    "edge.onnx",
    "cloud.onnx",
    "labels.txt",
)
COMPRESSAI_TABLES = "compressai.json"
EDGE_GRAPH_INT8, CLOUD_GRAPH_INT8 = "edge.int8.onnx", "cloud.int8.onnx"
EDGE_WEIGHTS, EDGE_TABLES = "edge.weights", "edge.tables"
_MAX_TEXT_BYTES = 16 << 20  # manifest, tables, labels
_MAX_GRAPH_BYTES = 2 << 30
# A symbol takes at most four words: one of its run, one of its own, two of an escape's 24 bits.
_MAX_SYMBOL_BYTES = 8
_MAX_OTHER_BYTES = 128  # header, checksum and the lanes' first states


def default_bundle() -> Path:
    """`$EDGECLOUD_BUNDLE`, else `bundles/ours_n4` under the current folder."""
    return Path(os.environ.get("EDGECLOUD_BUNDLE") or Path("bundles") / "ours_n4")


def bundle_files(folder: str | None) -> list[str]:
    """Paths of the files in a bundle's folder (None: the default bundle's), if it exists.

    Commands refuse to replace them with an output.
    """
    place = Path(folder or default_bundle())
    return [str(path) for path in place.iterdir()] if place.is_dir() else []


def compute_fingerprint(
    shape: ShapeRule, tables: Tables | VariableRate, bottleneck_sha256: str
) -> bytes:
    """SHA-256 (32 bytes) over all that both ends must share; a feature file has its first four.

    `tables` are those of a variable-rate bundle with its rates. `bottleneck_sha256` (64 hexadecimal
    digits) covers the medians and the weights of encoder, entropy model and decoder, so a retrained
    model refuses feature files of an older one.
    """
    version = FIXED_RATE if isinstance(tables, Tables) else VARIABLE_RATE
    rule = (
        f"feature file {version}; block {BLOCK}; "
        f"{shape.channels} channels, stride {shape.stride}, shrink {shape.shrink}; "
    )
    return hashlib.sha256(
        rule.encode() + tables.digest() + bytes.fromhex(bottleneck_sha256)
    ).digest()


def _read(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise InconsistentBundleError(
                f"{path} has {size} bytes, more than the limit of {limit}: export the bundle again"
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise MissingBundleFileError(
            f"the bundle lacks {path}: copy it there or export the bundle again"
        ) from None


@dataclass(frozen=True)
class Bundle:
    """A bundle's verified manifest and tables; its other files are read on demand.

    Does not change; may be shared between threads.

    Attributes:
        tables: what the symbols are coded with; of a variable-rate bundle those of its default
            level.
        variable: what a variable-rate bundle codes with; None for any other.
    """

    folder: Path
    manifest: Manifest
    tables: Tables
    variable: VariableRate | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Bundle":
        """Read manifest.json, tables.json and rates.json, and check that they belong together.

        Raises BundleNotFoundError, MissingBundleFileError, AlteredBundleFileError,
        InconsistentBundleError, UnsupportedBundleError, TablesError, RatesError.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise BundleNotFoundError(
                f"no bundle in {folder}: make one with `python -m export MODEL --out {folder}`, "
                "or name another with --bundle or $EDGECLOUD_BUNDLE"
            )
        manifest = Manifest.parse(_read(folder / MANIFEST, _MAX_TEXT_BYTES), str(folder / MANIFEST))
        bundle = _read_tables(folder, manifest)
        variable, shape = bundle.variable, manifest.shape
        channels = variable.rates.channels if variable else bundle.tables.channels
        if channels != shape.channels:
            raise InconsistentBundleError(
                f"{folder} has {channels} tables for {shape.channels} channels: "
                "export the bundle again"
            )
        if manifest.profile is Profile.CONTEXT and not bundle.has_contexts:
            raise InconsistentBundleError(
                f"{folder}'s manifest asks for small files and there are no context tables: "
                "export the bundle again"
            )
        fingerprint = compute_fingerprint(
            shape, variable or bundle.tables, manifest.bottleneck_sha256
        )
        if fingerprint != manifest.fingerprint:
            raise InconsistentBundleError(
                f"{folder}'s manifest says fingerprint {manifest.fingerprint.hex()[:8]}, "
                f"its contents give {fingerprint.hex()[:8]}: export it again"
            )
        return bundle

    @property
    def shape(self) -> ShapeRule:
        """From an image's size to the symbols' shape."""
        return self.manifest.shape

    @property
    def fingerprint(self) -> bytes:
        """All 32 bytes; feature files carry the first four."""
        return self.manifest.fingerprint

    @property
    def max_symbols(self) -> int:
        """The most symbols of one image that either end accepts."""
        return self.manifest.max_symbols

    def has(self, name: str) -> bool:
        """Whether the export wrote a file of that name (it may be missing here)."""
        return name in self.manifest.files

    @property
    def max_file_bytes(self) -> int:
        """Upper bound on the bytes of this bundle's feature files."""
        return _MAX_OTHER_BYTES + _MAX_SYMBOL_BYTES * self.max_symbols

    @property
    def rates(self) -> Rates | None:
        """The rate levels of a variable-rate bundle; None for any other."""
        return self.variable.rates if self.variable else None

    @property
    def default_step(self) -> int:
        """The step of a variable-rate bundle's files, unless the caller asks for another level."""
        return step_of(self.manifest.default_level)

    def tables_at(self, step: int) -> Tables:
        """The tables that symbols of a step, 0 to 240, are coded with."""
        return self.variable.tables_at(step) if self.variable else self.tables

    @property
    def has_contexts(self) -> bool:
        """Whether there are context tables, without which no small file is written."""
        return self.variable.has_contexts if self.variable else bool(self.tables.contexts)

    def encode(
        self,
        symbols: NDArray[np.int16],
        height: int,
        width: int,
        profile: Profile | None = None,
        step: int | None = None,
        kept: int | None = None,
    ) -> bytes:
        """Run the coder: symbols int16 [C, H', W'] -> feature file.

        Args:
            height, width: of the image in pixels, multiples of 8.
            profile: None for the bundle's own.
            step: of a variable-rate bundle: the symbols' rate level in sixteenths, 0 to 240; None
                for the default's.
            kept: of a variable-rate bundle, at step 0: how many channels to keep, for a cut file.

        Raises NotANumberError, NoContextTablesError, FixedRateError for a step of a bundle with one
        rate, and ValueError for a step or a number of channels that does not exist.
        """
        if self.variable is None and (step is not None or kept is not None):
            raise FixedRateError(
                f"{self.folder} has one rate: leave out the step, or take a variable-rate bundle"
            )
        profile = profile or self.manifest.profile
        if profile is Profile.CONTEXT:
            self.require_contexts()
        if self.variable is None:
            payload = self.tables.encode(symbols, profile)
        else:
            step = self.default_step if step is None else step
            payload = self.variable.encode(symbols, profile, step, kept)
        return feature_file.build(self.fingerprint, height, width, payload, profile, step, kept)

    def require_contexts(self) -> None:
        """Check that small files can be written. Raises NoContextTablesError."""
        if not self.has_contexts:
            raise NoContextTablesError(
                f"{self.folder} has no context tables, which small files need: "
                "export it with --refit DIR"
            )

    def decode(self, data: feature_file.Bytes) -> NDArray[np.int16]:
        """Run the coder: a feature file -> symbols int16 [C, H', W'].

        Memory is allocated only after the header proved to be this bundle's and within its limits.

        Raises the FeatureFileErrors.
        """
        return self.decode_parsed(feature_file.parse(data))

    def decode_parsed(self, file: feature_file.FeatureFile) -> NDArray[np.int16]:
        """As `decode`, for a parsed feature file."""
        own = self.fingerprint[: feature_file.FINGERPRINT_BYTES]
        if file.fingerprint != own:
            raise WrongBundleError(
                f"the feature file is of bundle {file.fingerprint.hex()}, this is {own.hex()}: "
                "decode it with the bundle that encoded it"
            )
        if file.version != self.manifest.format_version:
            raise WrongBundleError(
                f"the feature file is of version {file.version}, and files of this bundle are of "
                f"version {self.manifest.format_version}: decode it with the bundle that encoded it"
            )
        rows, columns = self.shape.latent(file.height, file.width)
        if rows < 1 or columns < 1:
            raise DamagedFeatureFileError(
                f"a feature file of {file.width}x{file.height} pixels is impossible: send it again"
            )
        count = self.shape.symbols(file.height, file.width)
        if count > self.max_symbols:
            raise TooManySymbolsError(
                f"the feature file is of {file.width}x{file.height} pixels, {count} symbols; "
                f"the bundle allows {self.max_symbols}: export with a larger --max-pixels"
            )
        if file.profile is Profile.CONTEXT and not self.has_contexts:
            raise DamagedFeatureFileError(
                "the feature file is marked as a small one, and its bundle has no context tables: "
                "send it again"
            )
        if self.variable is None:
            return self.tables.decode(file.payload, (rows, columns), file.profile)
        if file.kept is not None and file.kept > self.variable.most_kept:
            raise DamagedFeatureFileError(
                f"the feature file is cut to {file.kept} channels, and its bundle has "
                f"{self.shape.channels}: send it again"
            )
        return self.variable.decode(file, (rows, columns))

    def graph_input(self, file: feature_file.FeatureFile) -> NDArray[np.int16] | Floats:
        """What the cloud graph takes of a parsed feature file: [C, H', W'].

        Symbols int16; of a variable-rate bundle the symbols scaled by the file's inverse gains,
        float32. Raises the FeatureFileErrors.
        """
        symbols = self.decode_parsed(file)
        if self.variable is None or file.step is None:
            return symbols
        return self.variable.rates.values(symbols, file.step)

    def compressai_tables(self) -> Tables:
        """The tables of the checkpoint's own entropy model, which CompressAI codes with.

        Raises as `read` does, TablesError, and NoCompressAiStreamError for a variable-rate bundle.
        """
        if self.variable is not None:
            raise NoCompressAiStreamError(
                f"{self.folder} is a variable-rate bundle, whose symbols CompressAI does not code: "
                "take a bundle with one rate"
            )
        return (
            Tables.from_json(self.read(COMPRESSAI_TABLES))
            if self.has(COMPRESSAI_TABLES)
            else self.tables
        )

    def read(self, name: str) -> bytes:
        """The bytes of one of the bundle's files, checked against the manifest's SHA-256.

        Raises MissingBundleFileError, AlteredBundleFileError, InconsistentBundleError.
        """
        return _verified(self.folder, name, self.manifest, _MAX_GRAPH_BYTES)


def _read_tables(folder: Path, manifest: Manifest) -> Bundle:
    """The bundle that tables.json and rates.json give; the manifest may not belong to them."""
    text = _verified(folder, TABLES, manifest, _MAX_TEXT_BYTES)
    if manifest.format_version == FIXED_RATE:
        if RATES in manifest.files:
            raise InconsistentBundleError(
                f"{folder / MANIFEST} names {RATES}, and is of format version {FIXED_RATE}, which "
                "has one rate: export the bundle again"
            )
        return Bundle(folder, manifest, Tables.from_json(text))
    rates = Rates.from_json(_verified(folder, RATES, manifest, _MAX_TEXT_BYTES))
    variable = VariableRate(rates, Tables.levels_from_json(text))
    default = variable.tables_at(step_of(manifest.default_level))
    return Bundle(folder, manifest, default, variable)


def _verified(folder: Path, name: str, manifest: Manifest, limit: int) -> bytes:
    if name not in manifest.files:
        raise InconsistentBundleError(
            f"{folder / MANIFEST} does not name {name}: export the bundle again"
        )
    data = _read(folder / name, limit)
    if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise AlteredBundleFileError(
            f"{folder / name} is not the file that was exported: "
            "copy it again or export the bundle again"
        )
    return data
