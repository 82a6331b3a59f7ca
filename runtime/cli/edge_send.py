"""edge-send: images in, classes out, by way of a cloud-serve.

What the spool holds is delivered whatever is wrong with the new images, and new images are accepted whatever is wrong with
the way to the server; what was wrong is said afterwards, and decides the exit status.

Always holds: an image that is reported as anything but failed is in the spool, or has its result recorded there; a
process that is killed at any moment is made good by running the command again; whoever reads the lines, or does not, holds
up nothing.
"""

import argparse
import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..delivery.outcomes import Encoded, Outcome, accept_all
from ..delivery.spool import Spool
from ..engine.processor import cores
from ..errors import (
    EdgeCloudError,
    ImageFileTooLargeError,
    MissingExtraError,
    SendError,
    ServerAwayError,
    SpoolError,
    TokenFileError,
)
from ..images.find import find, printable
from ..options import number, thread_count
from .command import EXIT_DONE, EXIT_FAILURE, EXIT_INTERRUPTED, Terminated, command, standard_input
from .reporter import Reporter, say_if_read
from .workers import map_ordered, without_blas_threads

if TYPE_CHECKING:
    from ..delivery.route import Server
    from ..edge import EdgeEncoder

EXIT_SPOOLED = 5
_MAX_TOKEN_BYTES = 4096
_MANY = 1_000_000
_MAX_STDIN_BYTES = 256 << 20  # larger than any image file that is decoded; more is not read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-send",
        description="Encode images, deliver them to a cloud-serve, and record the classes. "
        "What cannot be delivered now is kept in a spool; without images, the spool is delivered.",
        epilog="Exit status: 0 everything is delivered and the spool is empty; 1 an image failed or was refused, or the server takes "
        "none as things are set up; 2 wrong usage; 5 nothing failed, and some images wait in the spool for the next run.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image file, folder, pattern in quotes, or - for standard input",
    )
    parser.add_argument(
        "--url", required=True, help="of a cloud-serve, such as https://cloud.example:8000"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="holds the token that the service asks for"
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", help="certificates to trust instead of the system's (PEM)"
    )
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="folder of undelivered feature files and of results (default: $EDGECLOUD_SPOOL, else spool)",
    )
    parser.add_argument(
        "--spool-mb",
        type=number(float, 0.01, _MANY),
        default=256,
        metavar="MB",
        help="disk that undelivered files may take (default: 256)",
    )
    parser.add_argument(
        "--retry-refused", action="store_true", help="send again what was refused before"
    )
    parser.add_argument(
        "--top-k",
        type=number(int, 1, _MANY),
        default=5,
        metavar="N",
        help="classes to ask for (default: 5)",
    )
    parser.add_argument(
        "--in-flight",
        type=number(int, 1, 1024),
        default=4,
        metavar="N",
        help="posts at a time (default: 4)",
    )
    parser.add_argument(
        "--attempts",
        type=number(int, 1, _MANY),
        default=6,
        metavar="N",
        help="failures in a row after which to leave it to the next run (default: 6)",
    )
    parser.add_argument(
        "--timeout",
        type=number(float, 0.01, _MANY),
        default=30,
        metavar="SECONDS",
        help="for one post and its answer (default: 30)",
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="do not resize as the bundle says (to 224x224, most of them); crop to multiples of 8",
    )
    parser.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: pixels differ a little",
    )
    parser.add_argument(
        "--workers",
        type=thread_count,
        metavar="N",
        help="encode so many images at a time (default: the cores and one more)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line for each image, and a last one that counts them",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.images.count("-") > 1:
        parser.error("standard input is named twice")
    return args


@command("edge-send")
def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    reporter = Reporter("image")
    try:
        status = _send(args, reporter)
    except (EdgeCloudError, OSError) as error:
        # Before anything was accepted.
        if args.json:
            reporter.say(
                json.dumps(
                    {
                        "delivered": 0,
                        "refused": 0,
                        "failed": 0,
                        "spooled": None,
                        "error": str(error),
                    },
                    allow_nan=False,
                ),
                sys.stdout,
            )
        reporter.say(f"edge-send: {error}", sys.stderr)
        status = EXIT_FAILURE
    except (KeyboardInterrupt, Terminated) as signalled:
        what = f"stopped by {signalled}" if isinstance(signalled, Terminated) else "interrupted"
        reporter.say(
            f"edge-send: {what}; what was accepted is in the spool, and the next run delivers it",
            sys.stderr,
        )
        status = _status_of(signalled)
    return _end(reporter, status)


def _end(reporter: Reporter, status: int) -> int:
    """Wait for the last lines; where nobody reads them, end without."""
    try:
        whole = reporter.close()
    except (KeyboardInterrupt, Terminated) as signalled:
        whole, status = False, _status_of(signalled)
    if reporter.lost:
        status = status or EXIT_FAILURE
        say_if_read(
            f"edge-send: {reporter.lost} lines were lost, since nobody reads them; results.jsonl has what came of the images"
        )
    if not whole:
        # Flushing, as the interpreter does at its end, would wait for ever.
        os._exit(status)
    return status


def _status_of(signalled: BaseException) -> int:
    return 128 + signalled.number if isinstance(signalled, Terminated) else EXIT_INTERRUPTED


def _send(args: argparse.Namespace, reporter: Reporter) -> int:
    server: Server | EdgeCloudError
    try:
        server = _server(args, reporter)
    except EdgeCloudError as error:
        if not args.images:
            raise
        server = error
    new, run = _NewImages(args, reporter), _Run()
    with Spool(
        args.spool or os.environ.get("EDGECLOUD_SPOOL") or "spool", int(args.spool_mb * (1 << 20))
    ) as spool:
        if args.retry_refused:
            spool.requeue_refused()
        try:
            with closing(_outcomes(spool, server, new)) as outcomes:
                for outcome in outcomes:
                    reporter.advance()
                    if outcome.status == "spooled":
                        run.waiting.append(outcome)
                    else:
                        run.counts[outcome.status] += 1
                        _report(outcome, args.json, new.faults, reporter)
        except (SendError, SpoolError, TokenFileError, MissingExtraError) as error:
            run.failure = error
        finally:
            new.end()
        spooled = len(spool.pending())
    return _conclude(run, spooled, new.faults, args.json, reporter)


@dataclass
class _Run:
    """What came of the images so far."""

    counts: dict[str, int] = field(
        default_factory=lambda: {"delivered": 0, "refused": 0, "failed": 0}
    )
    waiting: list[Outcome] = field(
        default_factory=list
    )  # reported at the end, where it is known what is wrong with all of them
    failure: EdgeCloudError | None = None


def _conclude(run: _Run, spooled: int, faults: list[str], as_json: bool, reporter: Reporter) -> int:
    """The last lines, and the exit status."""
    failed = bool(run.counts["refused"] or run.counts["failed"] or faults)
    if run.failure:
        failed = failed or not isinstance(run.failure, ServerAwayError)
        faults = [*faults, str(run.failure)]
    for outcome in run.waiting:
        _report(outcome, as_json, faults, reporter)
    if spooled and not run.failure:
        why = run.waiting[-1].error if run.waiting else "they have no result yet"
        faults = [*faults, f"{spooled} in the spool wait for the next run: {why}"]
    counts = {**run.counts, "spooled": spooled}
    if as_json:
        reporter.say(
            json.dumps({**counts, "error": "; ".join(faults) or None}, allow_nan=False), sys.stdout
        )
    else:
        reporter.say(", ".join(f"{count} {status}" for status, count in counts.items()), sys.stdout)
    for text in faults:
        reporter.say(printable(f"edge-send: {text}"), sys.stderr)
    if failed:
        return EXIT_FAILURE
    return EXIT_SPOOLED if spooled else EXIT_DONE


def _server(args: argparse.Namespace, reporter: Reporter) -> "Server":
    """Raises MissingExtraError, TokenFileError, ServerUrlError, ProxySettingError."""
    from ..delivery.route import Server  # httpx takes a while

    token = read_token(args.token_file) if args.token_file else None
    server = Server(
        args.url, token, args.ca_file, args.timeout, args.attempts, args.in_flight, args.top_k
    )
    if token and not server.hides_token():
        reporter.say(
            "edge-send: warning: http without TLS shows the token to whoever is on the way: use https",
            sys.stderr,
        )
    return server


def _outcomes(
    spool: Spool, server: "Server | EdgeCloudError", new: "_NewImages"
) -> Generator[Outcome, None, None]:
    images = new.encoded(len(spool.pending()))
    if isinstance(server, EdgeCloudError):
        return accept_all(spool, images, server)
    from ..delivery.sender import deliver

    return deliver(spool, server, images)


def read_token(path: str) -> str:
    """The token that a file holds, on a line of its own. Raises TokenFileError."""
    try:
        with open(path, "rb") as file:
            token = file.read(_MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise TokenFileError(f"the token's file cannot be read: {error}") from error
    if (
        not token
        or len(token) > _MAX_TOKEN_BYTES
        or not all(0x21 <= byte <= 0x7E for byte in token)
    ):
        raise TokenFileError(
            f"{path} does not hold one token of 1 to {_MAX_TOKEN_BYTES} ASCII characters without spaces: write it there alone"
        )
    return token.decode()


class _NewImages:
    """The images that are named: found and encoded as they are asked for, by any thread.

    `faults` are what is wrong with more than one image: an argument that names none, an encoder that cannot be had.
    """

    def __init__(self, args: argparse.Namespace, reporter: Reporter):
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
        images = self._find()
        self._reporter.expect(pending + len(images))
        without_blas_threads()
        # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
        warnings.simplefilter("ignore")
        # One more than the cores: now and then a worker waits for the disk.
        self._workers = max(1, min(self._args.workers or cores() + 1, len(images)))
        self._threads = max(1, cores() // self._workers) if self._workers > 1 else None
        # At least two: those of a pool are waited for at the end, and onnxruntime crashes where the process ends beneath it.
        yield from map_ordered(
            self._encode, [image for image in images if image != "-"], max(2, self._workers)
        )
        if "-" in images:
            try:
                self._standard_input = _read_standard_input()
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
        try:
            return Encoded(
                image,
                self._encoder.encode(
                    io.BytesIO(self._standard_input) if image == "-" else image, self._args.as_is
                ),
            )
        except (EdgeCloudError, OSError) as error:
            return Encoded(image, error=str(error))
        except MemoryError:
            return Encoded(image, error=f"{image} does not fit the memory: make it smaller first")

    def _load(self) -> None:
        args = self._args
        try:
            from ..edge import EdgeEncoder

            self._encoder = EdgeEncoder(
                args.bundle, self._threads, fast_jpeg=args.fast_jpeg, workers=self._workers
            )
        except (EdgeCloudError, OSError, ImportError) as error:
            what = (
                f"the encoder is not installed as a whole ({error}): pip install edgecloud-features"
            )
            self._encoder_fault = what if isinstance(error, ImportError) else str(error)
            self.faults.append(self._encoder_fault)


def _read_standard_input() -> bytes:
    """All that standard input holds. Raises ClosedStreamError, ImageFileTooLargeError, OSError."""
    # Not through the buffer, whose lock a thread that still waits for input would hold when the process ends.
    number, data = standard_input().fileno(), b""
    while part := os.read(number, 1 << 20):
        data += part
        if len(data) > _MAX_STDIN_BYTES:
            raise ImageFileTooLargeError(
                f"standard input has more than {_MAX_STDIN_BYTES} bytes: no image is so large, make it smaller"
            )
    return data


def _report(outcome: Outcome, as_json: bool, faults: list[str], reporter: Reporter) -> None:
    if as_json:
        line: dict[str, Any] = {
            "image": outcome.image,
            "status": outcome.status,
            "key": outcome.key,
            "error": outcome.error,
        }
        reporter.say(json.dumps({**(outcome.result or {}), **line}, allow_nan=False), sys.stdout)
    elif outcome.status == "delivered" and outcome.result:
        best = outcome.result["classes"][0]
        text = f"{outcome.image}: {outcome.result['bytes']} bytes, {best['label']} {100 * best['probability']:.1f} %"
        reporter.say(printable(text), sys.stdout, beside_bar=False)
    elif outcome.error not in faults:  # those are said once, at the end
        reporter.say(
            printable(f"edge-send: {outcome.image}: {outcome.status}: {outcome.error}"), sys.stderr
        )


if __name__ == "__main__":
    sys.exit(main())
