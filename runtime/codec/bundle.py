"""A bundle: the folder that one export writes and both ends read. docs/BUNDLE.md specifies it.

    manifest.json     what the bundle is, and the SHA-256 of each other file
    tables.json       entropy tables
    edge.onnx         pixels to symbols: the edge half
    edge.int8.onnx    the same, quantised; optional
    edge.weights      the same, for the native encoder; optional
    cloud.onnx        symbols to logits: the cloud half, with labels.txt
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
    InconsistentBundleError,
    MissingBundleFileError,
    NoContextTablesError,
    TooManySymbolsError,
    WrongBundleError,
)
from . import feature_file
from .coder import Tables
from .feature_file import BLOCK, VERSION, Profile
from .manifest import Manifest, ShapeRule

MANIFEST, TABLES, EDGE_GRAPH, CLOUD_GRAPH, LABELS = (
    "manifest.json",
    "tables.json",
    "edge.onnx",
    "cloud.onnx",
    "labels.txt",
)
COMPRESSAI_TABLES = "compressai.json"
EDGE_GRAPH_INT8, CLOUD_GRAPH_INT8 = "edge.int8.onnx", "cloud.int8.onnx"
EDGE_WEIGHTS = "edge.weights"
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


def compute_fingerprint(shape: ShapeRule, tables: Tables, bottleneck_sha256: str) -> bytes:
    """SHA-256 (32 bytes) over all that both ends must share; a feature file has its first four.

    `bottleneck_sha256` (64 hexadecimal digits) covers the medians and the weights of encoder,
    entropy model and decoder, so a retrained model refuses feature files of an older one.
    """
    rule = (
        f"feature file {VERSION}; block {BLOCK}; "
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
    """

    folder: Path
    manifest: Manifest
    tables: Tables

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Bundle":
        """Read manifest.json and tables.json, and check that they belong together.

        Raises BundleNotFoundError, MissingBundleFileError, AlteredBundleFileError,
        InconsistentBundleError, UnsupportedBundleError, TablesError.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise BundleNotFoundError(
                f"no bundle in {folder}: make one with `python -m export MODEL --out {folder}`, "
                "or name another with --bundle or $EDGECLOUD_BUNDLE"
            )
        manifest = Manifest.parse(_read(folder / MANIFEST, _MAX_TEXT_BYTES), str(folder / MANIFEST))
        bundle = cls(
            folder, manifest, Tables.from_json(_verified(folder, TABLES, manifest, _MAX_TEXT_BYTES))
        )
        tables, shape = bundle.tables, manifest.shape
        if tables.channels != shape.channels:
            raise InconsistentBundleError(
                f"{folder} has {tables.channels} tables for {shape.channels} channels: "
                "export the bundle again"
            )
        if manifest.profile is Profile.CONTEXT and not tables.contexts:
            raise InconsistentBundleError(
                f"{folder}'s manifest asks for small files and there are no context tables: "
                "export the bundle again"
            )
        fingerprint = compute_fingerprint(shape, tables, manifest.bottleneck_sha256)
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

    def encode(
        self, symbols: NDArray[np.int16], height: int, width: int, profile: Profile | None = None
    ) -> bytes:
        """Run the coder: symbols int16 [C, H', W'] -> feature file.

        Args:
            height, width: of the image in pixels, multiples of 8.
            profile: None for the bundle's own.

        Raises NotANumberError, NoContextTablesError.
        """
        profile = profile or self.manifest.profile
        if profile is Profile.CONTEXT:
            self.require_contexts()
        return feature_file.build(
            self.fingerprint, height, width, self.tables.encode(symbols, profile), profile
        )

    def require_contexts(self) -> None:
        """Check that small files can be written. Raises NoContextTablesError."""
        if not self.tables.contexts:
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
        if file.profile is Profile.CONTEXT and not self.tables.contexts:
            raise DamagedFeatureFileError(
                "the feature file is marked as a small one, and its bundle has no context tables: "
                "send it again"
            )
        return self.tables.decode(file.payload, (rows, columns), file.profile)

    def compressai_tables(self) -> Tables:
        """The tables of the checkpoint's own entropy model, which CompressAI codes with.

        Raises as `read` does, and TablesError.
        """
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
