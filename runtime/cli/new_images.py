"""The images that edge-send is given: found, and encoded as the delivery asks for them.

Always holds: what is wrong with one image, or with the encoder, is an outcome of that image, and
raises nothing. What is wrong with more than one image is reported once.
"""

import io
import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..delivery.outcomes import Encoded
from ..engine.processor import cores
from ..errors import EdgeCloudError
from ..images.find import find
from .image_arguments import read_descriptor, worker_count
from .reporter import Reporter
from .workers import map_ordered, without_blas_threads

if TYPE_CHECKING:
    from ..edge import EdgeEncoder

_T = TypeVar("_T")


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
        files = [image for image in images if image != "-"]
        yield from (finish() for finish in map_ordered(self._encode, files, pool))
        if "-" in images:
            try:
                self._standard_input = read_descriptor()
            except (EdgeCloudError, OSError) as error:
                self.faults.append(str(error))
            else:
                yield from (finish() for finish in map_ordered(self._encode, ["-"], 2))

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

    def _encode(self, image: str) -> Callable[[], Encoded]:
        """Encode an image; what it gives is called in the order of the images.

        With a mean to keep, the last step of encoding comes then: it depends on that order.
        """
        if self._ended.is_set():
            return lambda: Encoded(image, error="it was not encoded before the end")
        with self._loading:
            if self._encoder is None and self._encoder_fault is None:
                self._load()
        encoder, fault = self._encoder, self._encoder_fault
        if encoder is None:
            return lambda: Encoded(image, error=fault)

        def prepare() -> Callable[[], bytes]:
            source = io.BytesIO(self._standard_input) if image == "-" else image
            return encoder.prepare(source, self._args.as_is)

        prepared = _guarded(image, prepare)
        if isinstance(prepared, Encoded):
            return lambda: prepared
        finish = partial(_finish, image, prepared)
        if encoder.budget.target_bytes is not None:
            return finish
        found = finish()
        return lambda: found

    def _load(self) -> None:
        args = self._args
        try:
            from ..edge import EdgeEncoder

            self._encoder = EdgeEncoder(
                args.bundle,
                self._threads,
                fast_jpeg=args.fast_jpeg,
                workers=self._workers,
                **args.asked,
            )
        except (EdgeCloudError, OSError) as error:
            self._encoder_fault = str(error)
        except ImportError as error:
            self._encoder_fault = (
                f"the encoder is not completely installed ({error}): pip install edgecloud-features"
            )
        if self._encoder_fault is not None:
            self.faults.append(self._encoder_fault)


def _finish(image: str, prepared: Callable[[], bytes]) -> Encoded:
    return _guarded(image, lambda: Encoded(image, prepared()))


def _guarded(image: str, work: Callable[[], _T]) -> _T | Encoded:
    """What `work` gives; an error becomes the image's."""
    try:
        return work()
    except (EdgeCloudError, OSError) as error:
        return Encoded(image, error=str(error))
    except MemoryError:
        return Encoded(image, error=f"{image} does not fit into memory: make it smaller first")
