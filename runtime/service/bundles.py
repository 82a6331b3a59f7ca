"""The bundles that a service serves, by name and by fingerprint.

Each folder given to a service is a bundle, or a folder of bundles. A bundle is named after its own
folder. Bundles that share a fingerprint are variants: the first one answers for the fingerprint,
the others are only asked by name.

Always holds: a ServedBundles object never changes. Reloading makes a new one, complete before the
old one is dropped, which shares with it the bundles that are the same.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cloud import CloudDecoder, GraphInput
from ..codec.bundle import MANIFEST
from ..codec.feature_file import FINGERPRINT_BYTES, FeatureFile
from ..errors import BundleNotFoundError, ServedBundlesError, UnknownModelError


@dataclass(frozen=True, eq=False)
class ServedBundle:
    """One bundle that is served; clients call it a model.

    Attributes:
        name: of its folder.
        decoder: its cloud half.
        digest: SHA-256 of its manifest, which has the digests of all its other files.
        seconds_per_image: for one image of the bundle's crop, measured when it was loaded.
    """

    name: str
    decoder: CloudDecoder
    digest: bytes
    seconds_per_image: float

    @property
    def fingerprint(self) -> str:
        """As feature files carry it, in hexadecimal."""
        return self.decoder.bundle.fingerprint[:FINGERPRINT_BYTES].hex()

    @property
    def max_symbols(self) -> int:
        """The most symbols that one image may have."""
        return self.decoder.bundle.max_symbols

    def run(self, symbols: GraphInput) -> NDArray[np.float32]:
        """The cloud graph: symbols or values [N, C, H', W'] -> logits float32 [N, classes]."""
        return self.decoder.logits_of_symbols(symbols)

    def describe(self) -> dict[str, Any]:
        """What clients are told about it."""
        manifest = self.decoder.bundle.manifest
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "model": manifest.model,
            "weights": manifest.weights,
            "classes": len(self.decoder.labels),
            "engine": str(self.decoder.engine.choice),
        }


class ServedBundles:
    """All bundles that are served, in the order in which they were given; at least one.

    Raises ServedBundlesError.
    """

    def __init__(self, bundles: Sequence[ServedBundle]):
        self.by_name: Mapping[str, ServedBundle] = {bundle.name: bundle for bundle in bundles}
        self._by_fingerprint: dict[str, ServedBundle] = {}
        for bundle in bundles:
            first = self._by_fingerprint.setdefault(bundle.fingerprint, bundle)
            if first.decoder.bundle.fingerprint != bundle.decoder.bundle.fingerprint:
                raise ServedBundlesError(
                    f"{first.name} and {bundle.name} are different bundles, but feature files "
                    f"cannot tell them apart (both fingerprints begin with {bundle.fingerprint}): "
                    "serve only one of them"
                )
        self.max_file_bytes = max(bundle.decoder.bundle.max_file_bytes for bundle in bundles)

    def named(self, name: str) -> ServedBundle:
        """The bundle of this name. Raises UnknownModelError."""
        if name not in self.by_name:
            raise UnknownModelError(f"no model {name[:80]!r} is served: see `known`")
        return self.by_name[name]

    def of(self, file: FeatureFile) -> ServedBundle:
        """The bundle that answers for a feature file's fingerprint. Raises UnknownModelError."""
        bundle = self._by_fingerprint.get(file.fingerprint.hex())
        if bundle is None:
            raise UnknownModelError(
                f"the feature file is of bundle {file.fingerprint.hex()}, which is not served "
                "here: serve it, or encode with one of `known`"
            )
        return bundle

    def is_variant(self, bundle: ServedBundle) -> bool:
        """Whether another bundle answers for its fingerprint."""
        return self._by_fingerprint[bundle.fingerprint] is not bundle

    def describe(self) -> list[dict[str, Any]]:
        """What clients are told about all; `serves` is false for variants."""
        return [
            {**bundle.describe(), "serves": not self.is_variant(bundle)}
            for bundle in self.by_name.values()
        ]


def find_bundles(folders: Sequence[Path]) -> dict[str, Path]:
    """Names and folders of all bundles in `folders`, each of which is a bundle or has some in it.

    Hidden folders are skipped. Raises BundleNotFoundError, ServedBundlesError.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if (folder / MANIFEST).is_file() or not folder.is_dir():
            inside = [folder]
        else:
            inside = sorted(
                path.parent
                for path in folder.glob(f"*/{MANIFEST}")
                if not path.parent.name.startswith(".")
            )
        if not inside:
            raise BundleNotFoundError(
                f"no bundle in {folder}, nor in the folders in it: "
                "make one with `python -m export MODEL`"
            )
        for path in inside:
            name = path.resolve().name if path.name in ("", "..") else path.name
            if found.setdefault(name, path).resolve() != path.resolve():
                raise ServedBundlesError(
                    f"{found[name]} and {path} are both called {name}: rename one of the folders"
                )
    return found


def load_bundles(
    folders: Sequence[Path], old: ServedBundles | None, load: Callable[[Path], CloudDecoder]
) -> ServedBundles:
    """All bundles in `folders`.

    Args:
        folders: bundles, and folders of bundles.
        old: what is served now; bundles whose manifests are unchanged are taken from it.
        load: opens the other bundles.

    Raises the BundleErrors, ServedBundlesError, EngineChoiceError, OSError.
    """
    bundles = []
    for name, folder in find_bundles(folders).items():
        kept = old.by_name.get(name) if old else None
        manifest = folder / MANIFEST
        digest = hashlib.sha256(manifest.read_bytes()).digest() if manifest.is_file() else b""
        if (
            kept is None
            or kept.digest != digest
            or kept.decoder.bundle.folder.resolve() != folder.resolve()
        ):
            kept = _warm_up(name, load(folder), digest)
        bundles.append(kept)
    return ServedBundles(bundles)


def _warm_up(name: str, decoder: CloudDecoder, digest: bytes) -> ServedBundle:
    """Run the graph twice: the first call allocates its memory, the second shows its speed."""
    side = decoder.bundle.manifest.preprocessing.crop
    seconds = math.inf
    for _ in range(2):
        start = perf_counter()
        decoder.logits_of_symbols(decoder.zeros(side, side))
        seconds = min(seconds, perf_counter() - start)
    return ServedBundle(name, decoder, digest, seconds)
