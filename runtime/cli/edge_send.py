"""edge-send: images in, classes out, through a cloud-serve.

Always holds: an image that is reported as anything but failed is in the spool, or has its result
recorded there. What the spool holds is delivered whatever is wrong with the new images, and new
images are accepted whatever is wrong with the connection to the server; what was wrong is reported
at the end, and decides the exit status. If the process is killed at any moment, running the command
again completes its work. A slow or absent reader of the output delays no delivery.
"""

import argparse
import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..delivery.outcomes import Outcome, accept_all
from ..delivery.spool import Spool
from ..errors import (
    EdgeCloudError,
    MissingExtraError,
    SendError,
    ServerAwayError,
    SpoolError,
    TokenFileError,
)
from ..images.find import printable
from ..options import number
from .command import EXIT_DONE, EXIT_FAILURE, EXIT_INTERRUPTED, Parser, Terminated, command
from .image_arguments import add_image_options, rate_arguments
from .new_images import NewImages
from .reporter import Reporter, say_if_read

if TYPE_CHECKING:
    from ..delivery.route import Endpoint

EXIT_SPOOLED = 5
_MAX_TOKEN_BYTES = 4096
_MANY = 1_000_000


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edge-send",
        description="Encode images, deliver them to a cloud-serve, and record the classes. "
        "What cannot be delivered now is kept in a spool. Without images, deliver the spool.",
        epilog="Exit status: 0 everything is delivered and the spool is empty; 1 an image failed "
        "or was refused, or the server takes none with these settings; 2 wrong usage; 5 nothing "
        "failed, and some images wait in the spool for the next run.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image file, folder, pattern in quotes, or - for standard input",
    )
    _add_delivery_options(parser)
    add_image_options(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each image, and a last one with the counts",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _add_delivery_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", required=True, help="URL of a cloud-serve, such as https://cloud.example:8000"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="file with the token that the service asks for"
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", help="certificates to trust instead of the system's (PEM)"
    )
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="folder of undelivered feature files and of results "
        "(default: $EDGECLOUD_SPOOL, else spool)",
    )
    parser.add_argument(
        "--spool-mb",
        type=number(float, 0.01, _MANY),
        default=256,
        metavar="MB",
        help="disk space that undelivered files may take (default: 256)",
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
        help="failures in a row after which the rest is left to the next run (default: 6)",
    )
    parser.add_argument(
        "--timeout",
        type=number(float, 0.01, _MANY),
        default=30,
        metavar="SECONDS",
        help="for one post and its answer (default: 30)",
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.images.count("-") > 1:
        parser.error("standard input is named twice")
    args.asked = rate_arguments(parser, args)
    return args


@command("edge-send")
def main(argv: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    args = _arguments(argv)
    reporter = Reporter("image")
    try:
        status = _send(args, reporter)
    except (EdgeCloudError, OSError) as error:
        # Nothing was accepted yet.
        if args.json:
            counts = {**_Run().counts, "spooled": None, "error": str(error)}
            reporter.say(json.dumps(counts, allow_nan=False), sys.stdout)
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
    """Wait until the last lines are printed, or end without them if nobody reads them."""
    try:
        whole = reporter.close()
    except (KeyboardInterrupt, Terminated) as signalled:
        whole, status = False, _status_of(signalled)
    if reporter.lost:
        status = status or EXIT_FAILURE
        say_if_read(
            f"edge-send: {reporter.lost} lines were lost, because nobody reads them; "
            "the results of the images are in results.jsonl"
        )
    if not whole:
        # The interpreter's own end would flush the streams, and wait forever.
        os._exit(status)
    return status


def _status_of(signalled: BaseException) -> int:
    return 128 + signalled.number if isinstance(signalled, Terminated) else EXIT_INTERRUPTED


def _send(args: argparse.Namespace, reporter: Reporter) -> int:
    endpoint: Endpoint | EdgeCloudError
    try:
        endpoint = _endpoint(args, reporter)
    except EdgeCloudError as error:
        if not args.images:
            raise
        endpoint = error
    new, run = NewImages(args, reporter), _Run()
    with Spool(
        args.spool or os.environ.get("EDGECLOUD_SPOOL") or "spool", int(args.spool_mb * (1 << 20))
    ) as spool:
        if args.retry_refused:
            spool.requeue_refused()
        try:
            with closing(_outcomes(spool, endpoint, new)) as outcomes:
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
    """The outcomes of a run so far."""

    counts: dict[str, int] = field(
        default_factory=lambda: {"delivered": 0, "refused": 0, "failed": 0}
    )
    # Spooled images; reported at the end, when it is known what is wrong with all of them.
    waiting: list[Outcome] = field(default_factory=list)
    failure: EdgeCloudError | None = None


def _conclude(run: _Run, spooled: int, faults: list[str], as_json: bool, reporter: Reporter) -> int:
    """Report what is left to report; gives the exit status."""
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


def _endpoint(args: argparse.Namespace, reporter: Reporter) -> "Endpoint":
    """Raises MissingExtraError, TokenFileError, ServerUrlError, ProxySettingError."""
    from ..delivery.route import Endpoint  # httpx takes a while to load

    token = _read_token(args.token_file) if args.token_file else None
    endpoint = Endpoint(
        args.url, token, args.ca_file, args.timeout, args.attempts, args.in_flight, args.top_k
    )
    if token and not endpoint.hides_token():
        reporter.say(
            "edge-send: warning: http without TLS shows the token to anyone on the network: "
            "use https",
            sys.stderr,
        )
    return endpoint


def _outcomes(
    spool: Spool, endpoint: "Endpoint | EdgeCloudError", new: NewImages
) -> Generator[Outcome, None, None]:
    """Outcomes of the delivery, or of accepting the images if there is no endpoint."""
    images = new.encoded(len(spool.pending()))
    if isinstance(endpoint, EdgeCloudError):
        return accept_all(spool, images, endpoint)
    from ..delivery.sender import deliver

    return deliver(spool, endpoint, images)


def _read_token(path: str) -> str:
    """The token that is the only content of a file. Raises TokenFileError."""
    try:
        with open(path, "rb") as file:
            token = file.read(_MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise TokenFileError(f"the token file cannot be read: {error}") from error
    if (
        not token
        or len(token) > _MAX_TOKEN_BYTES
        or not all(0x21 <= byte <= 0x7E for byte in token)
    ):
        raise TokenFileError(
            f"{path} does not hold one token of 1 to {_MAX_TOKEN_BYTES} ASCII characters without "
            "spaces: write the token alone into it"
        )
    return token.decode()


def _report(outcome: Outcome, as_json: bool, faults: list[str], reporter: Reporter) -> None:
    from ..tasks.registry import find_answers

    if as_json:
        line: dict[str, Any] = {
            "image": outcome.image,
            "status": outcome.status,
            "key": outcome.key,
            "error": outcome.error,
        }
        reporter.say(json.dumps({**(outcome.result or {}), **line}, allow_nan=False), sys.stdout)
    elif outcome.status == "delivered" and outcome.result:
        text = f"{outcome.image}: {outcome.result['bytes']} bytes"
        if found := find_answers(outcome.result):
            task, answers = found
            text += f", {task.brief(answers[0])}"
        reporter.say(printable(text), sys.stdout, beside_bar=False)
    elif outcome.error not in faults:  # faults are reported once, at the end
        reporter.say(
            printable(f"edge-send: {outcome.image}: {outcome.status}: {outcome.error}"), sys.stderr
        )


if __name__ == "__main__":
    sys.exit(main())
