"""cloud-serve: a service that takes feature files over HTTP and answers with their classes.

    signals -> socket -> imports -> "live", refuses as `starting` -> loads bundles -> "listening on"

    SIGHUP            read bundles and tokens again
    SIGTERM, SIGINT   while it loads: stop at once. Later: refuse new requests, answer admitted
                      ones, and stop; a second one stops at once

docs/SERVING.md is the manual.

Always holds: standard output has one line, when the service accepts feature files. All else goes to
standard error, one JSON object per line once the service runs. A reader that is too slow or gone
loses lines and delays no request. Signals are handled from the command's first line to its last.
"""

import argparse
import ipaddress
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import EdgeCloudError
from ..options import number
from ..service.options import LOG_LEVELS, add_service_options, settings_of
from .command import EXIT_DONE, EXIT_FAILURE, Parser, command, say

if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine
    from types import FrameType
    from typing import Any, Self

    from starlette.applications import Starlette

    from ..service.app import Service

_RELOAD = getattr(signal, "SIGHUP", None)  # which Windows lacks
_ORIGIN = re.compile(r"https?://[^/?#@\s]+")
_BACKLOG = 1024  # connections that the system holds until they are accepted


def _origin(text: str) -> str:
    """The origin of a web page, or `*`. Raises argparse.ArgumentTypeError."""
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no origin: give it without a path, as https://example.org, or * for all"
        )
    origin = text.lower()  # as browsers send it, which leave out a port that is the default
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cloud-serve",
        description="Serve bundles: feature files come in over HTTP, classes go out.",
        epilog="SIGHUP reads bundles and tokens again; SIGTERM answers admitted requests and "
        "stops. Exit status: 0 stopped by a signal, 1 failure, 2 wrong usage.",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=number(int, 0, 65535),
        default=8000,
        metavar="N",
        help="port, 0 for any free one (default: 8000)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        type=_origin,
        metavar="ORIGIN",
        help="let pages of this origin use the service from a browser, as https://example.org, "
        "or * for all; may be given several times (default: none)",
    )
    add_service_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class Signals:
    """Handles SIGTERM, SIGINT and SIGHUP: calls `act` with the number of each that is received.

    Without handlers, SIGHUP would end the process while bundles load, and SIGTERM would do nothing
    in the first process of a container.
    """

    def __init__(self) -> None:
        self.act: Callable[[int], None] = self.before_serving
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Self":
        if threading.current_thread() is threading.main_thread():
            for received in (signal.SIGTERM, signal.SIGINT, _RELOAD):
                if received is not None:
                    self._before[received] = signal.signal(received, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for received, handler in self._before.items():
            signal.signal(received, handler)

    def _handle(self, received: int, _: "FrameType | None") -> None:
        self.act(received)

    @staticmethod
    def before_serving(received: int) -> None:
        """End the process, which has nothing to finish. SIGHUP has no effect yet."""
        if received == _RELOAD:
            return
        line = f"cloud-serve: stopped by {signal.Signals(received).name} before it served\n"
        with suppress(OSError):  # not through sys.stderr, which may be in the middle of a line
            os.write(2, line.encode())
        os._exit(EXIT_DONE)

    @staticmethod
    def at_the_end(_: int) -> None:
        """Do nothing: the process ends in a moment."""


@command("cloud-serve")
def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    with Signals() as signals:
        return _main(argv, signals)


def _main(argv: list[str] | None, signals: Signals) -> int:
    args = _parser().parse_args(argv)
    try:
        # Before the socket is opened, so that a missing package is reported first.
        from ..service import http_server  # noqa: F401

        listener = _listen(args.host, args.port)
        from ..service.app import create_app

        app = create_app(settings_of(args), False, args.allow_origin or ())
    except ImportError as error:
        say(
            f"cloud-serve: {error}: install what it needs with "
            "`pip install 'edgecloud-features[cloud]'`",
            sys.stderr,
        )
        return EXIT_FAILURE
    except OSError as error:
        say(f"cloud-serve: {error}", sys.stderr)
        return EXIT_FAILURE
    return _run(app, listener, args, signals)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Several processes can bind the same port, but only one can listen on it.
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener:
            listener.close()
        raise OSError(
            f"cannot listen on {host} port {port}, {error.strerror}: "
            "choose another --host or --port"
        ) from None
    return listener


def _run(
    app: "Starlette", listener: "socket.socket", args: argparse.Namespace, signals: Signals
) -> int:
    import asyncio

    from ..service.log import start_log

    service: Service = app.state.service
    log = start_log(LOG_LEVELS[args.log], service.metrics.lost_lines.inc)
    status = EXIT_FAILURE
    try:
        status = asyncio.run(_Serving(app, listener, args).run(signals))
    finally:
        # The interpreter would wait for the log's reader, or for a bundle to be loaded.
        if not log.close() or service.loading:
            os._exit(status)
    return status


class _Serving:
    """The server and its service on an event loop, while the command runs."""

    def __init__(self, app: "Starlette", listener: "socket.socket", args: argparse.Namespace):
        import asyncio

        from ..service.http_connections import allowed_connections
        from ..service.http_server import make_server

        self._service: Service = app.state.service
        self._listener, self._args = listener, args
        self._started = asyncio.Event()
        self._server = make_server(app, listener, self._started.set, allowed_connections())
        self._tasks: set[asyncio.Task[object]] = set()  # the loop itself keeps no tasks alive

    async def run(self, signals: Signals) -> int:
        """Serve until a signal ends it. Returns the exit status."""
        import asyncio

        loop = asyncio.get_running_loop()
        signals.act = lambda number: self._act(number, loop)
        try:
            serving = asyncio.ensure_future(self._server.serve())
            await self._started.wait()
            status = await self._load()
            await serving
        finally:
            signals.act = signals.at_the_end
        return status

    async def _load(self) -> int:
        """Load the bundles, and say so. Returns the exit status so far."""
        from ..service.http_connections import allowed_connections

        try:
            await self._service.open()
        except (EdgeCloudError, OSError) as error:
            say(f"cloud-serve: {error}", sys.stderr)
            self._server.should_exit = True
            return EXIT_FAILURE
        # Again, because some engines keep the files of bundles open.
        connections = self._server.connections
        connections.limit = allowed_connections(connections.count)
        _say_listening(self._listener, self._args)
        return EXIT_DONE

    def _act(self, number: int, loop: "AbstractEventLoop") -> None:
        """Called by a signal handler, which may interrupt anything."""
        if number == _RELOAD:  # waits until bundles that are being loaded have been loaded
            loop.call_soon_threadsafe(lambda: self._start_task(self._service.reload()))
        elif not self._service.loaded:
            Signals.before_serving(number)
        else:
            loop.call_soon_threadsafe(lambda: self._start_task(self._stop()))

    def _start_task(self, work: "Coroutine[Any, Any, object]") -> None:
        import asyncio

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        """Answer admitted requests, and end the server. A second call ends it at once."""
        if self._service.draining:
            for request in self._server.server_state.tasks:
                request.cancel()  # it is answered that the service stops
        else:
            self._service.drain()
            await self._service.drained()
        self._server.should_exit = True


def _say_listening(listener: "socket.socket", args: argparse.Namespace) -> None:
    if not args.token_file and not _is_local(args.host):
        say(
            f"cloud-serve: listening on {args.host} without a token, anybody who reaches it may "
            "use it: give it a --token-file",
            sys.stderr,
        )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    say(f"listening on http://{address}", sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
