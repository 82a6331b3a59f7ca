"""The images that edge-send is given: found, and encoded as the delivery asks for them.

Always holds: what is wrong with one image, or with the encoder, is an outcome of that image, and
raises nothing. What is wrong with more than one image is reported once.
"""

import io
import threading
import warnings
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..delivery.outcomes import Encoded
from ..engine.processor import cores
from ..errors import EdgeCloudError
from ..images.find import find
from .image_arguments import read_descriptor, worker_count
from .reporter import Reporter
from .workers import map_ordered, without_blas_threads

if TYPE_CHECKING:
    from ..edge import EdgeEncoder


class NewImages:
    """The images of edge-send's arguments. Any thread may ask for them.

    `faults` are messages about more than one image: an argument that names none, or an encoder
    that cannot be loaded.
    """

    def __init__(self, args: Namespace, reporter: Reporter):
        self.faults: list[str] = []
        self._args, self._reporter = args, reporter
        self._threads: int | None = None
        self._workers = 1
        self._encoder: EdgeEncoder | None = None
        self._encoder_fault: str | None = None
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._standard_input = b""

    def encoded(self, pending: int) -> Iterator[Encoded]:
        """Each image, encoded; standard input comes last.

        Args:
            pending: files that the spool holds already, for the progress bar.
        """
        images = self._find()
        self._reporter.expect(pending + len(images))
        without_blas_threads()
        # Pillow warns of images above half of its size limit, and of every oddity in a TIFF.
        warnings.simplefilter("ignore")
        self._workers = worker_count(self._args.workers, len(images))
        self._threads = max(1, cores() // self._workers) if self._workers > 1 else None
        # At least two, so that a pool of threads encodes: the interpreter waits for these at its
        # end, while onnxruntime crashes if the process ends during its work in another thread.
        pool = max(2, self._workers)
        yield from map_ordered(self._encode, [image for image in images if image != "-"], pool)
        if "-" in images:
            try:
                self._standard_input = read_descriptor()
            except (EdgeCloudError, OSError) as error:
                self.faults.append(str(error))
            else:
                yield from map_ordered(self._encode, ["-"], 2)

    def end(self) -> None:
        """Encode no more."""
        self._ended.set()

    def _find(self) -> list[str]:
        images = []
        for argument in self._args.images:
            try:
                images += [image for image, _ in find([argument])]
            except (EdgeCloudError, OSError) as error:
                self.faults.append(str(error))
        return images

    def _encode(self, image: str) -> Encoded:
        if self._ended.is_set():
            return Encoded(image, error="it was not encoded before the end")
        with self._loading:
            if self._encoder is None and self._encoder_fault is None:
                self._load()
        if self._encoder is None:
            return Encoded(image, error=self._encoder_fault)
        source = io.BytesIO(self._standard_input) if image == "-" else image
        try:
            return Encoded(image, self._encoder.encode(source, self._args.as_is))
        except (EdgeCloudError, OSError) as error:
            return Encoded(image, error=str(error))
        except MemoryError:
            return Encoded(image, error=f"{image} does not fit into memory: make it smaller first")

    def _load(self) -> None:
        args = self._args
        try:
            from ..edge import EdgeEncoder

            self._encoder = EdgeEncoder(
                args.bundle, self._threads, fast_jpeg=args.fast_jpeg, workers=self._workers
            )
        except (EdgeCloudError, OSError) as error:
            self._encoder_fault = str(error)
        except ImportError as error:
            self._encoder_fault = (
                f"the encoder is not completely installed ({error}): pip install edgecloud-features"
            )
        if self._encoder_fault is not None:
            self.faults.append(self._encoder_fault)
