"""The edge: an image in, a feature file out.

Reads the edge half of a bundle alone (manifest, tables, edge graph), so a device needs no more.

Always holds: whatever the engine, a feature file decodes to the symbols that this engine computed.
"""

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .codec.bundle import Bundle, default_bundle
from .codec.feature_file import FINGERPRINT_BYTES, MAX_FEATURE_FILE_BYTES, Profile, parse
from .engine.registry import group_by_shape, open_engine
from .errors import (
    FeatureFileError,
    ImageArrayError,
    ImageTooLargeError,
    ImageTooSmallError,
    ImageTypeError,
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

    Attributes:
        bundle, profile, fast_jpeg: as above. engine: the edge graph, ready to run.

    Raises the BundleErrors, EngineChoiceError.
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
    ):
        self.bundle = Bundle.load(default_bundle() if bundle_dir is None else bundle_dir)
        self.fast_jpeg = fast_jpeg
        self.profile = profile or self.bundle.manifest.profile
        if self.profile is Profile.CONTEXT:
            self.bundle.require_contexts()
        self.engine = open_engine(self.bundle, "edge", threads, provider, precision, workers)

    def encode(self, image: ImageInput, as_is: bool = False) -> bytes:
        """Encode one image: a path, an open file, a PIL image or a uint8 array [H, W, 3] in RGB.

        It is resized and cropped as the bundle says (to 224x224 for most). With `as_is` it is only
        cropped, to multiples of 8 pixels.

        Returns the bytes of a feature file. Raises the ImageErrors, NotANumberError.
        """
        pixels = preprocess(image, as_is, self.fast_jpeg, self.bundle.manifest.preprocessing)
        return self.encode_symbols(self.symbols(pixels[None])[0], *pixels.shape[:2])

    def encode_batch(self, images: Iterable[ImageInput], as_is: bool = False) -> list[bytes]:
        """Encode several images as `encode` does; images of one size share graph calls.

        Returns feature files in the order of `images`. Raises the ImageErrors, NotANumberError.
        """
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
            for index, symbols in zip(
                group, self.symbols(np.stack([prepared[i] for i in group])), strict=True
            ):
                files[index] = self.encode_symbols(symbols, height, width)
        return files

    def symbols(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Run the edge graph: pixels uint8 [N, H, W, 3] -> symbols int16 [N, C, H', W'].

        H and W are multiples of 8; C, H' and W' follow from `bundle.shape`.

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
        return self.engine.run(np.ascontiguousarray(pixels))["symbols"]

    def encode_symbols(self, symbols: NDArray[np.int16], height: int, width: int) -> bytes:
        """Run the coder: symbols int16 [C, H', W'] -> feature file.

        `height` and `width` are the image's, in pixels. Raises NotANumberError.
        """
        return self.bundle.encode(symbols, height, width, self.profile)

    def is_current(self, path: str | os.PathLike[str], as_is: bool = False) -> bool:
        """Whether `path` is an intact feature file that this encoder would write in the same form.

        That is: of this bundle and profile and, unless `as_is`, of the bundle's image size.
        A file that cannot be read is not.
        """
        try:
            with open(path, "rb") as source:
                file = parse(source.read(MAX_FEATURE_FILE_BYTES + 1))
        except (OSError, FeatureFileError):
            return False
        ours = (
            file.fingerprint == self.bundle.fingerprint[:FINGERPRINT_BYTES]
            and file.profile is self.profile
        )
        return ours and (
            as_is or file.height == file.width == self.bundle.manifest.preprocessing.crop
        )
