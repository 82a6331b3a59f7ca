"""The bundles that a service serves, by name and by fingerprint.

Each folder that is named is a bundle, or a folder of bundles. A bundle's name is its folder's. Those
that share a fingerprint are variants of one another: the first answers for it, the others are asked by name.

Always holds: a Models object does not change. A service that is to serve others takes another object,
which is made whole before the old one is let go, and shares with it what is the same.
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

from ..cloud import CloudDecoder
from ..codec.bundle import MANIFEST
from ..codec.feature_file import FINGERPRINT_BYTES, FeatureFile
from ..errors import BundleNotFoundError, ServedBundlesError, UnknownModelError


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle that is served. `digest` is of its manifest, which names the digests of all else."""

    name: str
    decoder: CloudDecoder
    digest: bytes
    seconds_per_image: float  # of one image of the bundle's crop, when it was loaded

    @property
    def fingerprint(self) -> str:
        """As feature files carry it, in hexadecimal."""
        return self.decoder.bundle.fingerprint[:FINGERPRINT_BYTES].hex()

    @property
    def max_symbols(self) -> int:
        return self.decoder.bundle.max_symbols

    def run(self, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        """The cloud graph: symbols int16 [N, C, H', W'] -> logits float32 [N, classes]."""
        return self.decoder.logits_of_symbols(symbols)

    def describe(self) -> dict[str, Any]:
        """What is told of a model that is known."""
        manifest = self.decoder.bundle.manifest
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "model": manifest.model,
            "weights": manifest.weights,
            "classes": len(self.decoder.labels),
            "engine": str(self.decoder.engine.choice),
        }


class Models:
    """All that are served, in the order in which they were named; at least one."""

    def __init__(self, models: Sequence[Model]):
        self.by_name: Mapping[str, Model] = {model.name: model for model in models}
        self._by_fingerprint: dict[str, Model] = {}
        for model in models:
            first = self._by_fingerprint.setdefault(model.fingerprint, model)
            if first.decoder.bundle.fingerprint != model.decoder.bundle.fingerprint:
                raise ServedBundlesError(
                    f"{first.name} and {model.name} are of different models, and feature files cannot tell them apart: serve one of them"
                )
        self.max_file_bytes = max(model.decoder.bundle.max_file_bytes for model in models)

    def named(self, name: str) -> Model:
        """Raises UnknownModelError."""
        if name not in self.by_name:
            raise UnknownModelError(f"no model {name[:80]!r} is served: see `known`")
        return self.by_name[name]

    def of(self, file: FeatureFile) -> Model:
        """The model that answers for a feature file's fingerprint. Raises UnknownModelError."""
        model = self._by_fingerprint.get(file.fingerprint.hex())
        if model is None:
            raise UnknownModelError(
                f"the feature file is of bundle {file.fingerprint.hex()}, which is not served here: serve it, or encode with one of `known`"
            )
        return model

    def is_variant(self, model: Model) -> bool:
        """Whether another model answers for its fingerprint."""
        return self._by_fingerprint[model.fingerprint] is not model

    def describe(self) -> list[dict[str, Any]]:
        """All models; `serves` is false for variants, which are asked by name alone."""
        return [
            {**model.describe(), "serves": not self.is_variant(model)}
            for model in self.by_name.values()
        ]


def find_bundles(folders: Sequence[Path]) -> dict[str, Path]:
    """Names and folders of all bundles in `folders`, each of which is a bundle or has some; hidden folders are passed over.

    Raises BundleNotFoundError, ServedBundlesError.
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
                f"no bundle in {folder}, nor in the folders in it: make one with `python -m export MODEL`"
            )
        for path in inside:
            name = path.resolve().name if path.name in ("", "..") else path.name
            if found.setdefault(name, path).resolve() != path.resolve():
                raise ServedBundlesError(
                    f"{found[name]} and {path} are both called {name}: rename one of the folders"
                )
    return found


def load_models(
    folders: Sequence[Path], old: Models | None, load: Callable[[Path], CloudDecoder]
) -> Models:
    """All bundles in `folders`, made by `load`; of `old` those are kept whose manifests are the same.

    Raises the BundleErrors, ServedBundlesError, EngineChoiceError, OSError.
    """
    models = []
    for name, folder in find_bundles(folders).items():
        kept = old.by_name.get(name) if old else None
        manifest = folder / MANIFEST
        digest = hashlib.sha256(manifest.read_bytes()).digest() if manifest.is_file() else b""
        if (
            kept is None
            or kept.digest != digest
            or kept.decoder.bundle.folder.resolve() != folder.resolve()
        ):
            kept = _warm(name, load(folder), digest)
        models.append(kept)
    return Models(models)


def _warm(name: str, decoder: CloudDecoder, digest: bytes) -> Model:
    """The first call of a graph takes its memory; the second shows how fast it is."""
    shape = decoder.bundle.shape
    side = decoder.bundle.manifest.preprocessing.crop
    rows, columns = shape.latent(side, side)
    seconds = math.inf
    for _ in range(2):
        start = perf_counter()
        decoder.logits_of_symbols(np.zeros((1, shape.channels, rows, columns), np.int16))
        seconds = min(seconds, perf_counter() - start)
    return Model(name, decoder, digest, seconds)
