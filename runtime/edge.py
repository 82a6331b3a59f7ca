"""The edge: an image in, a feature file out."""

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

_BATCH = 16  # images of one graph call, which bounds its memory


class EdgeEncoder:
    """Encodes images with a bundle's edge half (manifest, tables, edge graph).

    The graph is loaded once, here. An encoder may be shared between threads.

    Args:
        bundle_dir: default `$EDGECLOUD_BUNDLE`, else `bundles/ours_n4`.
        threads: of the graph; None for one a core.
        profile: of the files that are written; None for what the bundle says. Profile.CONTEXT takes about a quarter fewer
            bytes and some microseconds more.
        provider: "cpu" (onnxruntime), "openvino", or another of engine.PROVIDERS; "auto" for what
            `edge-encode --tune` chose on this device, else "cpu".
        precision: "fp32", "bf16" (OpenVINO), "int8" (where the bundle has it); "auto" as for `provider`, else "fp32".
        fast_jpeg: decode large JPEG files at a fraction of their size: several times faster, pixels differ a little.
        workers: threads that will call at the same time; each gets so many `threads` of the graph.

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
        """A feature file of one image: a path, an open file, a PIL image or a uint8 array [H, W, 3].

        The image is resized and cropped as the bundle says (224x224 for most), or taken as it is and cropped to multiples of 8.
        Raises the ImageErrors and NotANumberError.
        """
        pixels = preprocess(image, as_is, self.fast_jpeg, self.bundle.manifest.preprocessing)
        return self.encode_symbols(self.symbols(pixels[None])[0], *pixels.shape[:2])

    def encode_batch(self, images: Iterable[ImageInput], as_is: bool = False) -> list[bytes]:
        """Feature files in the order of `images`; images of one size share graph calls.

        Raises the ImageErrors and NotANumberError.
        """
        if (
            isinstance(images, str | bytes | os.PathLike | Image.Image)
            or hasattr(images, "read")
            or not hasattr(images, "__iter__")
        ):
            raise ImageTypeError(
                f"encode_batch takes a list of images, not {type(images).__name__}: give one image to encode"
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
        """The edge graph: pixels uint8 [N, H, W, 3], H and W multiples of 8 -> int16 [N, C, H', W'].

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
                f"pixels are a uint8 array [images, height, width, 3], not {shape}: give what preprocess gives"
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
                f"an image of {width}x{height} pixels gives {count} symbols, the bundle allows {limit}: "
                "leave out --as-is, make it smaller, or export with a larger --max-pixels"
            )
        return self.engine.run(np.ascontiguousarray(pixels))["symbols"]

    def encode_symbols(self, symbols: NDArray[np.int16], height: int, width: int) -> bytes:
        """The coder: symbols int16 [C, H', W'] of an image of height x width pixels -> feature file.

        Raises NotANumberError.
        """
        return self.bundle.encode(symbols, height, width, self.profile)

    def is_current(self, path: str | os.PathLike[str], as_is: bool = False) -> bool:
        """Whether `path` is a whole feature file of this bundle, and of the profile and, unless `as_is`, the size that are written."""
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
