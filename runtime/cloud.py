"""The cloud: feature files in, classes out.

Reads the cloud half of a bundle alone (manifest, tables, cloud graph, labels).

Always holds: logits that are not finite numbers never become a class.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codec.bundle import LABELS, Bundle, default_bundle
from .codec.feature_file import Bytes, FeatureFile, parse
from .engine.registry import group_by_shape, open_engine
from .errors import FeatureFileTypeError, InconsistentBundleError, NoEmbeddingError
from .tasks.base import Task
from .tasks.classification import Prediction, require_finite
from .tasks.registry import task_named

_EMBEDDING = "embedding"  # the cloud graph's output of pooled features
_BATCH = 8  # feature files in one graph call: bounds its memory

GraphInput = NDArray[Any]  # symbols int16, or of a variable-rate bundle values float32


class CloudDecoder:
    """Classifies feature files with a bundle's cloud half (manifest, tables, cloud graph, labels).

    The graph is loaded once, here. A decoder may be shared between threads.

    Args:
        bundle_dir: None for `$EDGECLOUD_BUNDLE`, else `bundles/ours_n4`.
        threads: for one graph call; None for one per core.
        provider, precision: as EdgeEncoder's; "auto" for what `cloud-decode --tune` chose.

    Attributes:
        bundle: as above. engine: the cloud graph, ready to run. task: what its outputs mean.

    Raises the BundleErrors, EngineChoiceError, and NotFiniteLogitsError where the graph's logits
    are not finite even for symbols that are all zero.
    """

    def __init__(
        self,
        bundle_dir: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        provider: str = "auto",
        precision: str = "auto",
    ):
        self.bundle = Bundle.load(default_bundle() if bundle_dir is None else bundle_dir)
        task = task_named(self.bundle.manifest.task)
        try:
            labels = self.bundle.read(LABELS).decode().splitlines()
        except UnicodeDecodeError as error:
            raise InconsistentBundleError(
                f"{self.bundle.folder / LABELS} is not UTF-8 ({error}): export the bundle again"
            ) from error
        self.engine = open_engine(self.bundle, "cloud", threads, provider, precision)
        outputs = self.outputs_of_symbols(self.zeros(64, 64))
        # The size of an embedding; None where an earlier release exported a graph without it.
        self._embedding_size = outputs[_EMBEDDING].shape[1] if _EMBEDDING in outputs else None
        try:
            self.task: Task = task(labels)
            if task.OUTPUT not in outputs:
                raise InconsistentBundleError(f"a cloud graph without an output {task.OUTPUT}")
            self.task.check(outputs[task.OUTPUT])
        except InconsistentBundleError as error:
            raise InconsistentBundleError(
                f"{self.bundle.folder} has {error}: export it again"
            ) from None

    @property
    def labels(self) -> list[str]:
        """The classes' names, in the order of the logits."""
        return self.task.labels

    def zeros(self, height: int, width: int) -> GraphInput:
        """An input of the cloud graph that is all zero, for an image of height x width pixels."""
        kind = np.int16 if self.bundle.variable is None else np.float32
        shape = self.bundle.shape
        return np.zeros((1, shape.channels, *shape.latent(height, width)), kind)

    def symbols(self, data: Bytes) -> NDArray[np.int16]:
        """Run the coder: one feature file -> symbols int16 [C, H', W'].

        Raises the FeatureFileErrors and FeatureFileTypeError.
        """
        return self.bundle.decode_parsed(self._parsed(data))

    def graph_input(self, data: Bytes) -> GraphInput:
        """Run the coder: one feature file -> what the cloud graph takes of it, [C, H', W'].

        That is its symbols, int16; of a variable-rate bundle its values, float32: the symbols
        scaled by the inverse gains of the file's level, so that a batch may mix levels.

        Raises the FeatureFileErrors and FeatureFileTypeError.
        """
        return self.bundle.graph_input(self._parsed(data))

    @staticmethod
    def _parsed(data: Bytes) -> FeatureFile:
        try:
            memoryview(data)
        except TypeError:
            raise FeatureFileTypeError(
                f"a feature file is bytes, not {type(data).__name__}: "
                "read it with open(path, 'rb').read()"
            ) from None
        return parse(data)

    def outputs_of_symbols(self, symbols: GraphInput) -> dict[str, NDArray[np.float32]]:
        """Run the cloud graph: symbols int16 [N, C, H', W'] -> outputs by name, a row per image.

        A variable-rate bundle takes values in their place, as `graph_input` gives them.
        """
        return self.engine.run(symbols)

    def logits_of_symbols(self, symbols: GraphInput) -> NDArray[np.float32]:
        """Run the cloud graph: symbols int16 [N, C, H', W'] -> logits float32 [N, classes].

        A variable-rate bundle takes values, as `outputs_of_symbols` does. Logits may be infinite or
        NaN: `predictions` refuses those.
        """
        return self.outputs_of_symbols(symbols)[self.task.OUTPUT]

    def logits(self, files: Sequence[Bytes]) -> NDArray[np.float32]:
        """Logits of several feature files; files of one size share graph calls.

        Returns finite float32 [N, classes] in the order of `files`.
        Raises the FeatureFileErrors, FeatureFileTypeError, NotFiniteLogitsError.
        """
        return require_finite(self.logits_of_each(self._inputs_of_each(files, "logits")))

    def embed(self, files: Sequence[Bytes]) -> NDArray[np.float32]:
        """Embeddings float32 [N, D] in the order of `files`; files of one size share graph calls.

        An embedding is the mean over the last stage's rows and columns, from which the logits are
        computed. D is 2048 for ResNet-50. Raises NoEmbeddingError for a bundle without it, and what
        `logits` raises.
        """
        size = self.require_embedding()
        symbols = self._inputs_of_each(files, "embed")
        out = np.empty((len(symbols), size), np.float32)
        for group in group_by_shape([values.shape for values in symbols], _BATCH):
            out[group] = self.embedding_of(
                self.outputs_of_symbols(np.stack([symbols[i] for i in group]))
            )
        return out

    def require_embedding(self) -> int:
        """The size D of an embedding. Raises NoEmbeddingError where the bundle has none."""
        if self._embedding_size is None:
            raise NoEmbeddingError(
                f"the cloud graph of {self.bundle.folder} has no output {_EMBEDDING}: an earlier "
                "release exported it; export it again with "
                f"`python -m export {self.bundle.manifest.model}`"
            )
        return self._embedding_size

    def embedding_of(self, outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The embeddings float32 [N, D] among a graph's outputs.

        Raises NoEmbeddingError, and NotFiniteLogitsError where their logits are not finite.
        """
        self.require_embedding()
        # Logits are sums over the embedding: if it is not finite, they are not either.
        require_finite(outputs[self.task.OUTPUT])
        return outputs[_EMBEDDING]

    def _inputs_of_each(self, files: Sequence[Bytes], caller: str) -> list[GraphInput]:
        """Raises the FeatureFileErrors, FeatureFileTypeError."""
        if isinstance(files, str | os.PathLike | Bytes) or not hasattr(files, "__iter__"):
            raise FeatureFileTypeError(
                f"{caller} takes a list of feature files, not {type(files).__name__}: "
                "put it into a list"
            )
        return [self.graph_input(data) for data in files]

    def logits_of_each(self, symbols: Sequence[GraphInput]) -> NDArray[np.float32]:
        """Logits float32 [N, classes] of N arrays of symbols or values, each [C, H', W'].

        Arrays of one shape share graph calls. A row may be infinite or NaN while others are sound:
        `predictions` checks each.
        """
        rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(symbols)
        for group in group_by_shape([values.shape for values in symbols], _BATCH):
            found = self.logits_of_symbols(np.stack([symbols[i] for i in group]))
            for index, row in zip(group, found, strict=True):
                rows[index] = row
        return np.stack(rows) if rows else np.empty((0, len(self.labels)), np.float32)

    def classify(self, data: Bytes, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of one feature file, best first.

        Raises as `logits` does.
        """
        return self.predictions(self.logits([data])[0], top_k)

    def predictions(self, logits: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of one image's logits [classes], best first.

        Raises NotFiniteLogitsError.
        """
        return self.task.answers(logits, top_k)
