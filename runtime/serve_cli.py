"""cloud-serve: a service that takes feature files over HTTP and gives their classes. docs/SERVING.md is its manual.

    SIGHUP            read bundles and tokens again
    SIGTERM, SIGINT   refuse what comes, answer what was admitted, stop; a second one stops at once

Always holds: standard output has one line, when the service listens; all else goes to standard error,
one JSON object a line once it does, and a reader that is too slow loses lines rather than hold up a request.
"""

import argparse
import ipaddress
import sys
from typing import TYPE_CHECKING

from . import __version__
from .edge_cli import add_engine_options
from .errors import EdgeCloudError

if TYPE_CHECKING:
    import logging.handlers
    import socket
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.applications import Starlette

    from .server import Service, Settings

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
LOG_LEVELS = {"requests": "INFO", "refusals": "WARNING", "failures": "ERROR"}
_LOG_LINES = 10_000  # that wait for their reader
_LOG_SECONDS = 2.0  # for their reader to take the last ones
_CONNECTIONS = 1 << 16


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-serve",
        description="Serve bundles: feature files come in over HTTP, classes go out.",
        epilog="SIGHUP reads bundles and tokens again; SIGTERM answers what was admitted and stops. "
        "Exit status: 0 stopped when it was told to, 1 failure, 2 wrong usage.",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port, 0 for any that is free (default: 8000)")
    add_service_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """What a service can be told, wherever it runs."""
    parser.add_argument(
        "--bundle",
        action="append",
        metavar="DIR",
        help="a bundle, or a folder of bundles; may be given several times (default: $EDGECLOUD_BUNDLE, else bundles/ours_n4)",
    )
    parser.add_argument("--token-file", metavar="FILE", help="a token a line; requests must carry one of them")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="images of one graph call (default: 8)")
    parser.add_argument("--max-wait-ms", type=float, default=2, metavar="MS", help="that an idle graph waits for company (default: 2)")
    parser.add_argument("--max-queue", type=int, default=128, metavar="N", help="images that may wait (default: 128)")
    parser.add_argument(
        "--deadline-ms", type=float, default=2000, metavar="MS", help="a request waits no longer for its graph call (default: 2000)"
    )
    parser.add_argument("--drain-ms", type=float, default=10_000, metavar="MS", help="for what was admitted, on SIGTERM (default: 10000)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the cloud graph (default: one a core)")
    add_engine_options(parser)
    parser.add_argument(
        "--log",
        default="requests",
        choices=LOG_LEVELS,
        help="a line for each request, for those that are refused, or that fail (default: requests)",
    )


def settings_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> "Settings":
    """Settings from the options of add_service_options; reports what makes no sense by `parser.error`."""
    for option, number, least in (
        ("--threads", args.threads, 1),
        ("--max-batch", args.max_batch, 1),
        ("--max-queue", args.max_queue, 1),
        ("--max-wait-ms", args.max_wait_ms, 0),
        ("--deadline-ms", args.deadline_ms, 1),
        ("--drain-ms", args.drain_ms, 0),
    ):
        if number is not None and not least <= number < 1e9:
            parser.error(f"{option} {number} is not a number from {least} up")
    from .server import Settings

    return Settings(
        bundles=tuple(args.bundle or ()),
        token_file=args.token_file,
        threads=args.threads,
        provider=args.provider,
        precision=args.precision,
        max_batch=args.max_batch,
        max_wait_ms=args.max_wait_ms,
        max_queue=args.max_queue,
        deadline_ms=args.deadline_ms,
        drain_seconds=args.drain_ms / 1e3,
    )


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not 0 <= args.port < 1 << 16:
        parser.error(f"--port {args.port} is not from 0 to 65535")
    try:
        from .server import create_app

        app = create_app(settings_of(parser, args))
    except ImportError as error:
        print(f"cloud-serve: {error}: install what it needs with `pip install 'edgecloud-features[cloud]'`", file=sys.stderr)
        return EXIT_FAILURE
    try:
        listener = _listen(args.host, args.port)
        app.state.service.load()
    except (EdgeCloudError, OSError) as error:
        print(f"cloud-serve: {error}", file=sys.stderr)
        return EXIT_FAILURE
    if not args.token_file and not _is_local(args.host):
        print(
            f"cloud-serve: listening on {args.host} without a token, anybody who reaches it may use it: give it a --token-file",
            file=sys.stderr,
        )
    return _run(app, listener, LOG_LEVELS[args.log])


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener:
            listener.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}, {error.strerror}: choose another --host or --port") from None
    return listener


def _run(app: "Starlette", listener: "socket.socket", level: str) -> int:
    import asyncio
    import os
    import signal
    import threading

    from .serve_http import make_server

    service = app.state.service
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = make_server(app, lambda: print(f"listening on {url}", flush=True))
    kept: set[asyncio.Task[object]] = set()  # the loop keeps no tasks alive by itself

    async def stop() -> None:
        if service.draining:
            server.force_exit = True
        else:
            service.drain()
            await service.drained()
        server.should_exit = True

    async def serve() -> None:
        def connect(number: signal.Signals, work: "Callable[[], Coroutine[Any, Any, object]]") -> None:
            asyncio.get_running_loop().add_signal_handler(number, lambda: kept.add(asyncio.ensure_future(work())))

        connect(signal.SIGTERM, stop)
        connect(signal.SIGINT, stop)
        connect(signal.SIGHUP, service.reload)
        await server.serve(sockets=[listener])

    _allow_connections()
    log_writer = start_log(service, level)
    try:
        asyncio.run(serve())
    finally:
        # What nobody reads would hold up the end as well, and that of the interpreter.
        last = threading.Thread(target=log_writer.stop, daemon=True)
        last.start()
        last.join(_LOG_SECONDS)
        if last.is_alive():
            os._exit(EXIT_DONE)
    return EXIT_DONE


def _allow_connections() -> None:
    """Each is a file to the system, some of which allow a process 1024 unless it asks for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _CONNECTIONS:
        wanted = _CONNECTIONS
    else:
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def start_log(service: "Service", level: str) -> "logging.handlers.QueueListener":
    """JSON lines on standard error, from a thread of its own: who reads them slowly holds up nobody."""
    import json
    import logging.handlers
    import queue
    from datetime import UTC, datetime

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line: dict[str, Any] = {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
            }
            request = getattr(record, "request", None)
            line |= request if request is not None else {"logger": record.name, "message": record.getMessage()}
            return json.dumps(line, allow_nan=False)

    class Waiting(logging.handlers.QueueHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            service.metrics.lost_lines.inc()

    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_LOG_LINES)
    writer = logging.StreamHandler()
    writer.setFormatter(Lines())
    root = logging.getLogger()
    root.setLevel("WARNING")
    logging.getLogger("runtime").setLevel("INFO")
    logging.getLogger("runtime.server.requests").setLevel(level)
    root.addHandler(Waiting(waiting))
    listener = logging.handlers.QueueListener(waiting, writer)
    listener.start()
    return listener


if __name__ == "__main__":
    sys.exit(main())
