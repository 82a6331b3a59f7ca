"""edge-send: images in, classes out, by way of a cloud-serve.

Always holds: an image that is reported as anything but failed is in the spool, or has its result recorded there; a
process that is killed at any moment is made good by running the command again.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import __version__
from .edge_cli import EXIT_DONE, EXIT_FAILURE, cores, in_order, standard_input, without_blas_threads
from .edge_files import find, printable
from .errors import EdgeCloudError, SendError, ServerAwayError, SpoolError, TokenFileError
from .progress import Progress

if TYPE_CHECKING:
    from .sender import Encoded, Outcome

EXIT_SPOOLED = 5
EXIT_INTERRUPTED = 130
_MAX_TOKEN_BYTES = 4096


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-send",
        description="Encode images, deliver them to a cloud-serve, and record the classes. "
        "What cannot be delivered now is kept in a spool; without images, the spool is delivered.",
        epilog="Exit status: 0 everything is delivered and the spool is empty; 1 an image failed or was refused, or the server takes "
        "none as things are set up; 2 wrong usage; 5 nothing failed, and some images wait in the spool for the next run.",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file, folder, pattern in quotes, or - for standard input")
    parser.add_argument("--url", required=True, help="of a cloud-serve, such as https://cloud.example:8000")
    parser.add_argument("--token-file", metavar="FILE", help="holds the token that the service asks for")
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust instead of the system's (PEM)")
    parser.add_argument(
        "--spool", metavar="DIR", help="folder of undelivered feature files and of results (default: $EDGECLOUD_SPOOL, else spool)"
    )
    parser.add_argument("--spool-mb", type=float, default=256, metavar="MB", help="disk that undelivered files may take (default: 256)")
    parser.add_argument("--retry-refused", action="store_true", help="send again what was refused before")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="classes to ask for (default: 5)")
    parser.add_argument("--in-flight", type=int, default=4, metavar="N", help="posts at a time (default: 4)")
    parser.add_argument(
        "--attempts", type=int, default=6, metavar="N", help="failures in a row after which to leave it to the next run (default: 6)"
    )
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="for one post and its answer (default: 30)")
    parser.add_argument("--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4")
    parser.add_argument("--as-is", action="store_true", help="do not resize to 224x224; crop to multiples of 8")
    parser.add_argument("--fast-jpeg", action="store_true", help="decode large JPEGs at a fraction of their size: pixels differ a little")
    parser.add_argument("--workers", type=int, metavar="N", help="encode so many images at a time (default: the cores and one more)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each image, and a last one that counts them")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for option, value in (
        ("--spool-mb", args.spool_mb),
        ("--top-k", args.top_k),
        ("--in-flight", args.in_flight),
        ("--attempts", args.attempts),
        ("--timeout", args.timeout),
        ("--workers", args.workers),
    ):
        least = 1 if isinstance(value, int) else 0.01
        if value is not None and not least <= value <= 1e6:
            parser.error(f"{option} {value} is not a number from {least} to a million")
    if args.images.count("-") > 1:
        parser.error("standard input is named twice")
    try:
        return _send(args)
    except (EdgeCloudError, OSError) as error:
        print(f"edge-send: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("edge-send: interrupted; what was accepted is in the spool, and the next run delivers it", file=sys.stderr)
        return EXIT_INTERRUPTED


def _send(args: argparse.Namespace) -> int:
    # After the usage is checked: httpx takes a while, and the encoder a longer one.
    from .sender import Server, deliver
    from .spool import Spool

    images = [image for image, _ in find(args.images)]
    token = read_token(args.token_file) if args.token_file else None
    server = Server(args.url, token, args.ca_file, args.timeout, args.attempts, args.in_flight, args.top_k)
    if token and not server.hides_token():
        print("edge-send: warning: http without TLS shows the token to whoever is on the way: use https", file=sys.stderr)
    with Spool(args.spool or os.environ.get("EDGECLOUD_SPOOL") or "spool", int(args.spool_mb * (1 << 20))) as spool:
        if args.retry_refused:
            spool.requeue_refused()
        encoded = _encode(args, images) if images else iter(())
        counts = {"delivered": 0, "refused": 0, "failed": 0}
        failure: SendError | SpoolError | None = None
        with Progress(len(images) + len(spool.pending()), "image") as progress:
            try:
                for outcome in deliver(spool, server, encoded):
                    if outcome.status in counts:
                        counts[outcome.status] += 1
                    progress.advance()
                    _report(outcome, args.json, progress)
            except (SendError, SpoolError) as error:
                failure = error
        spooled = len(spool.pending())
        if args.json:
            print(json.dumps({**counts, "spooled": spooled, "error": str(failure) if failure else None}, allow_nan=False))
        else:
            print(", ".join(f"{count} {status}" for status, count in {**counts, "spooled": spooled}.items()))
    if failure:
        print(f"edge-send: {failure}", file=sys.stderr)
    if counts["refused"] or counts["failed"] or (failure and not isinstance(failure, ServerAwayError)):
        return EXIT_FAILURE
    return EXIT_SPOOLED if spooled else EXIT_DONE


def read_token(path: str) -> str:
    """The token that a file holds, on a line of its own. Raises TokenFileError."""
    try:
        with open(path, "rb") as file:
            token = file.read(_MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise TokenFileError(f"the token's file cannot be read: {error}") from error
    if not token or len(token) > _MAX_TOKEN_BYTES or not all(0x21 <= byte <= 0x7E for byte in token):
        raise TokenFileError(
            f"{path} does not hold one token of 1 to {_MAX_TOKEN_BYTES} ASCII characters without spaces: write it there alone"
        )
    return token.decode()


def _encode(args: argparse.Namespace, images: list[str]) -> "Iterator[Encoded]":
    without_blas_threads()
    from .edge import EdgeEncoder
    from .sender import Encoded

    # Pillow warns at half of the size that it refuses, and of every oddity in a TIFF.
    warnings.simplefilter("ignore")
    # One more than the cores: now and then a worker waits for the disk.
    workers = max(1, min(args.workers or cores() + 1, len(images)))
    threads = max(1, cores() // workers) if workers > 1 else None
    encoder = EdgeEncoder(args.bundle, threads, fast_jpeg=args.fast_jpeg, workers=workers)
    # Read here: a thread that waits for standard input could not be interrupted.
    sources = {"-": standard_input()} if "-" in images else {}

    def encode(image: str) -> Encoded:
        try:
            return Encoded(image, encoder.encode(sources.get(image, image), args.as_is))
        except (EdgeCloudError, OSError) as error:
            return Encoded(image, error=str(error))
        except MemoryError:
            return Encoded(image, error=f"{image} does not fit the memory: make it smaller first")

    return in_order(encode, images, workers)


def _report(outcome: "Outcome", as_json: bool, progress: Progress) -> None:
    if as_json:
        line: dict[str, Any] = {"image": outcome.image, "status": outcome.status, "key": outcome.key, "error": outcome.error}
        progress.say(json.dumps({**(outcome.result or {}), **line}, allow_nan=False), sys.stdout)
    elif outcome.status == "delivered" and outcome.result:
        if not (progress.shown and sys.stdout.isatty()):
            best = outcome.result["classes"][0]
            text = f"{outcome.image}: {outcome.result['bytes']} bytes, {best['label']} {100 * best['probability']:.1f} %"
            progress.say(printable(text), sys.stdout)
    else:
        progress.say(printable(f"edge-send: {outcome.image}: {outcome.status}: {outcome.error}"), sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
