"""The edge: an image in, a feature file out.

Reads the edge half of a bundle alone (manifest, tables, edge graph), so a device needs no more.

Always holds: whatever the engine, a feature file decodes to the symbols that this engine computed.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .codec.budget import Budget, LatentCoder
from .codec.bundle import Bundle, default_bundle
from .codec.controller import Controller
from .codec.feature_file import FINGERPRINT_BYTES, MAX_FEATURE_FILE_BYTES, Profile, parse
from .codec.rates import step_of
from .engine.registry import group_by_shape, open_engine
from .errors import (
    FeatureFileError,
    FixedRateError,
    ImageArrayError,
    ImageTooLargeError,
    ImageTooSmallError,
    ImageTypeError,
    InconsistentBundleError,
)
from .images.preprocess import ImageInput, preprocess

_BATCH = 16  # images in one graph call: bounds its memory


class EdgeEncoder:
    """Encodes images with a bundle's edge half (manifest, tables, edge graph).

    The graph is loaded once, here. An encoder may be shared between threads.

    Args:
        bundle_dir: None for `$EDGECLOUD_BUNDLE`, else `bundles/ours_n4`.
        threads: for one graph call; None for one per core.
        profile: of the feature files; None for the bundle's. Profile.CONTEXT takes about a quarter
            fewer bytes and a few microseconds more.
        provider: "cpu" (onnxruntime), "openvino", or another of `engine.registry.providers()`;
            "auto" for what `edge-encode --tune` chose on this device, else "cpu".
        precision: "fp32", "bf16" (OpenVINO) or "int8" (where the bundle has it); "auto" for the
            tuned choice, else the bundle's own precision.
        fast_jpeg: decode large JPEG files at a reduced size: several times faster, and pixel
            levels differ a little.
        workers: how many threads will call the encoder at the same time.
        rate, max_bytes, target_bytes: of a variable-rate bundle, what is asked for where a call
            does not ask for anything itself: the rate level, 0 to 15; the most bytes of a file;
            their mean over the stream of images (codec/budget.py says how they combine, and
            codec/controller.py how the mean is kept). None for the bundle's default level.

    Attributes:
        bundle, profile, fast_jpeg: as above. engine: the edge graph, ready to run.
        budget: rate, max_bytes and target_bytes.

    Raises the BundleErrors, EngineChoiceError, RateError; FixedRateError if a rate or bytes are
    asked of a bundle with one rate.
    """

    def __init__(
        self,
        bundle_dir: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        profile: Profile | None = None,
        provider: str = "auto",
        precision: str = "auto",
        fast_jpeg: bool = False,
        workers: int = 1,
        rate: float | None = None,
        max_bytes: int | None = None,
        target_bytes: float | None = None,
    ):
        self.bundle = Bundle.load(default_bundle() if bundle_dir is None else bundle_dir)
        self.fast_jpeg = fast_jpeg
        self.profile = profile or self.bundle.manifest.profile
        if self.profile is Profile.CONTEXT:
            self.bundle.require_contexts()
        self.budget = self._checked(Budget(rate, max_bytes, target_bytes))
        self._stream = _Stream(self.budget)
        self.engine = open_engine(self.bundle, "edge", threads, provider, precision, workers)

    def _checked(self, budget: Budget) -> Budget:
        if budget.is_set and self.bundle.variable is None:
            raise FixedRateError(
                f"{self.bundle.folder} has one rate: leave out rate, max_bytes and target_bytes, "
                "or take a variable-rate bundle, whose model's name ends in _vr"
            )
        return budget

    def encode(
        self,
        image: ImageInput,
        as_is: bool = False,
        rate: float | None = None,
        max_bytes: int | None = None,
        target_bytes: float | None = None,
    ) -> bytes:
        """Encode one image: a path, an open file, a PIL image or a uint8 array [H, W, 3] in RGB.

        It is resized and cropped as the bundle says (to 224x224 for most). With `as_is` it is only
        cropped, to multiples of 8 pixels. `rate`, `max_bytes` and `target_bytes` take the place of
        all of the encoder's own. For one image, `target_bytes` means the highest level of at most
        so many bytes, or level 0.

        Returns the bytes of a feature file. Raises the ImageErrors, NotANumberError, RateError,
        BudgetTooSmallError, FixedRateError.
        """
        stream = self._stream_for(rate, max_bytes, target_bytes)
        return self._prepare(image, as_is, stream)()

    def prepare(self, image: ImageInput, as_is: bool = False) -> Callable[[], bytes]:
        """As `encode`, all but the last step: calling what is given codes the feature file.

        With `target_bytes`, images count in the order of these calls. Several threads may prepare
        images, and one of them then keep the order.
        """
        return self._prepare(image, as_is, self._stream)

    def _prepare(self, image: ImageInput, as_is: bool, stream: "_Stream") -> Callable[[], bytes]:
        pixels = preprocess(image, as_is, self.fast_jpeg, self.bundle.manifest.preprocessing)
        height, width = pixels.shape[:2]
        output = self.graph_output(pixels[None])[0]
        return lambda: self._code(output, height, width, stream)

    def encode_batch(
        self,
        images: Iterable[ImageInput],
        as_is: bool = False,
        rate: float | None = None,
        max_bytes: int | None = None,
        target_bytes: float | None = None,
    ) -> list[bytes]:
        """Encode several images as `encode` does; images of one size share graph calls.

        `target_bytes` is the mean over these images. Returns feature files in the order of
        `images`. Raises what `encode` raises.
        """
        stream = self._stream_for(rate, max_bytes, target_bytes)
        if (
            isinstance(images, str | bytes | os.PathLike | Image.Image)
            or hasattr(images, "read")
            or not hasattr(images, "__iter__")
        ):
            raise ImageTypeError(
                f"encode_batch takes a list of images, not {type(images).__name__}: "
                "give one image to encode"
            )
        prepared = [
            preprocess(image, as_is, self.fast_jpeg, self.bundle.manifest.preprocessing)
            for image in images
        ]
        files: list[bytes] = [b""] * len(prepared)
        for group in group_by_shape([pixels.shape for pixels in prepared], _BATCH):
            height, width = prepared[group[0]].shape[:2]
            for index, output in zip(
                group, self.graph_output(np.stack([prepared[i] for i in group])), strict=True
            ):
                files[index] = self._code(output, height, width, stream)
        return files

    def symbols(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Run the edge graph: pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W'].

        With a variable-rate bundle they are those of the encoder's rate, or of the default level.
        H and W are multiples of 8; C, H' and W' follow from `bundle.shape`.

        Raises ImageArrayError, ImageTooLargeError, ImageTooSmallError, NotANumberError.
        """
        output = self.graph_output(pixels)
        if self.bundle.rates is None:
            symbols: NDArray[np.int16] = output
            return symbols
        return np.stack([self.bundle.rates.symbols(latent, self._step) for latent in output])

    @property
    def _step(self) -> int:
        """The step of symbols, where no number of bytes is asked for."""
        return self.bundle.default_step if self.budget.rate is None else step_of(self.budget.rate)

    def graph_output(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Run the edge graph: pixels uint8 [N, H, W, 3] -> its output [N, C, H', W'].

        That is symbols int16, or of a variable-rate bundle the latent, float32. H and W are
        multiples of 8; C, H' and W' follow from `bundle.shape`.

        Raises ImageArrayError, ImageTooLargeError, ImageTooSmallError.
        """
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.ndim != 4
            or pixels.shape[3] != 3
        ):
            shape = (
                f"{pixels.dtype} {list(pixels.shape)}"
                if isinstance(pixels, np.ndarray)
                else type(pixels).__name__
            )
            raise ImageArrayError(
                f"pixels are a uint8 array [images, height, width, 3], not {shape}: "
                "give what preprocess gives"
            )
        height, width = pixels.shape[1:3]
        rows, columns = self.bundle.shape.latent(height, width)
        if rows < 1 or columns < 1:
            raise ImageTooSmallError(
                f"an image of {width}x{height} pixels leaves no symbols: enlarge it"
            )
        count, limit = self.bundle.shape.channels * rows * columns, self.bundle.max_symbols
        if count > limit:
            raise ImageTooLargeError(
                f"an image of {width}x{height} pixels gives {count} symbols, the bundle allows "
                f"{limit}: leave out --as-is, make it smaller, or export with a larger --max-pixels"
            )
        outputs = self.engine.run(np.ascontiguousarray(pixels))
        name = "symbols" if self.bundle.variable is None else "latent"
        if name not in outputs:
            raise InconsistentBundleError(
                f"{self.bundle.folder} has an edge graph without an output {name}: export it again"
            )
        return outputs[name]

    def encode_symbols(self, symbols: NDArray[np.int16], height: int, width: int) -> bytes:
        """Run the coder: symbols int16 [C, H', W'], as `symbols` gives them -> feature file.

        `height` and `width` are the image's, in pixels. Raises NotANumberError.
        """
        step = None if self.bundle.variable is None else self._step
        return self.bundle.encode(symbols, height, width, self.profile, step)

    def encode_output(self, output: NDArray[Any], height: int, width: int) -> bytes:
        """Make a feature file of what the graph computed for one image, as the encoder was told.

        Args:
            output: [C, H', W'], as `graph_output` gives it for each image.
            height, width: the image's, in pixels.

        With `target_bytes`, calls count in the order in which they come.
        Raises NotANumberError, BudgetTooSmallError.
        """
        return self._code(output, height, width, self._stream)

    def _stream_for(
        self, rate: float | None, max_bytes: int | None, target_bytes: float | None
    ) -> "_Stream":
        """The stream that a call's images belong to: its own, if it asks for anything."""
        budget = self._checked(Budget(rate, max_bytes, target_bytes))
        return _Stream(budget) if budget.is_set else self._stream

    def _code(self, output: NDArray[Any], height: int, width: int, stream: "_Stream") -> bytes:
        if self.bundle.variable is None:
            return self.bundle.encode(output, height, width, self.profile)
        return stream.encode(LatentCoder(self.bundle, output, height, width, self.profile))

    def is_current(self, path: str | os.PathLike[str], as_is: bool = False) -> bool:
        """Whether `path` is an intact feature file that this encoder would write in the same form.

        That is: of this bundle and profile and, unless `as_is`, of the bundle's image size. Where
        the encoder was given a rate or `max_bytes`: of that level, and of no more bytes; with both,
        of a lower level too. A file that cannot be read is not.
        """
        try:
            with open(path, "rb") as source:
                data = source.read(MAX_FEATURE_FILE_BYTES + 1)
            file = parse(data)
        except (OSError, FeatureFileError):
            return False
        ours = (
            file.fingerprint == self.bundle.fingerprint[:FINGERPRINT_BYTES]
            and file.profile is self.profile
            and (file.step is None or self.budget.allows(file.step, len(data), file.kept))
        )
        return ours and (
            as_is or file.height == file.width == self.bundle.manifest.preprocessing.crop
        )


class _Stream:
    """Images whose files share a budget, and a controller if they are to have a mean size."""

    def __init__(self, budget: Budget):
        self.budget = budget
        target = budget.target_bytes
        self._controller = Controller(target) if target is not None else None
        self._lock = threading.Lock()  # for the controller

    def encode(self, coder: LatentCoder) -> bytes:
        """The file of an image. Raises NotANumberError, BudgetTooSmallError."""
        if self._controller is None:
            return coder.of_budget(self.budget)
        with self._lock:
            return self._encode_next(coder, self._controller)

    def _encode_next(self, coder: LatentCoder, controller: Controller) -> bytes:
        step, most = controller.step(), self.budget.max_bytes
        if step is None:
            data, step = coder.about(controller.target)
        else:
            data = coder.at(step)
        size = len(data)
        if most is not None and size > most:
            data = coder.within(most, step)
        controller.record(step, size, len(data))
        return data
