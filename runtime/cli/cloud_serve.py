"""cloud-serve: a service that takes feature files over HTTP and gives their classes. docs/SERVING.md is its manual.

    SIGHUP            read bundles and tokens again
    SIGTERM, SIGINT   while it loads: stop at once; then: refuse what comes, answer what was admitted, stop; a second one stops at once

    signals -> socket -> imports -> "live", but refuses as `starting` -> bundles are loaded -> "listening on" -> serves

Always holds: standard output has one line, when the service takes feature files; all else goes to standard error,
one JSON object a line once it does; a reader that is too slow or gone loses lines rather than hold up a request.
Each signal is handled from the command's first line to its last.
"""

import argparse
import ipaddress
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import EdgeCloudError
from ..options import number
from ..service.options import LOG_LEVELS, add_service_options, settings_of
from .command import EXIT_DONE, EXIT_FAILURE, command, say

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from types import FrameType
    from typing import Any, Self

    from starlette.applications import Starlette

    from ..service.app import Service

_RELOAD = getattr(signal, "SIGHUP", None)  # which Windows lacks
_BACKLOG = 1024  # connections that the system holds until they are taken


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-serve",
        description="Serve bundles: feature files come in over HTTP, classes go out.",
        epilog="SIGHUP reads bundles and tokens again; SIGTERM answers what was admitted and stops. "
        "Exit status: 0 stopped when it was told to, 1 failure, 2 wrong usage.",
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
        help="port, 0 for any that is free (default: 8000)",
    )
    add_service_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class Signals:
    """What SIGTERM, SIGINT and SIGHUP do. Without handlers, SIGHUP would kill while bundles load, and the first
    process of a container would not notice SIGTERM.

    `act` is called with the received of each that comes.
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
        """End the process: it has nothing to finish. SIGHUP changes nothing, because nothing has been read yet."""
        if received == _RELOAD:
            return
        line = f"cloud-serve: stopped by {signal.Signals(received).name} before it served\n"
        with suppress(OSError):  # not by way of sys.stderr, on which this may interrupt a line
            os.write(2, line.encode())
        os._exit(EXIT_DONE)

    @staticmethod
    def at_the_end(_: int) -> None:
        """The process ends in a moment."""


@command("cloud-serve")
def main(argv: list[str] | None = None) -> int:
    with Signals() as signals:
        return _main(argv, signals)


def _main(argv: list[str] | None, signals: Signals) -> int:
    args = _parser().parse_args(argv)
    try:
        from ..service import http  # noqa: F401 - a missing package is told before the socket is opened

        listener = _listen(args.host, args.port)
        from ..service.app import create_app

        app = create_app(settings_of(args), load=False)
    except ImportError as error:
        say(
            f"cloud-serve: {error}: install what it needs with `pip install 'edgecloud-features[cloud]'`",
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
        listener.listen(
            _BACKLOG
        )  # several processes can bind the same port, but only one can listen on it
    except OSError as error:
        if listener:
            listener.close()
        raise OSError(
            f"cannot listen on {host} port {port}, {error.strerror}: choose another --host or --port"
        ) from None
    return listener


def _run(
    app: "Starlette", listener: "socket.socket", args: argparse.Namespace, signals: Signals
) -> int:
    import asyncio

    from ..service.http import allowed_connections, make_server

    service: Service = app.state.service
    started = asyncio.Event()
    server = make_server(app, started.set, allowed_connections())
    kept: set[asyncio.Task[object]] = set()  # the loop keeps no tasks alive by itself

    async def stop() -> None:
        if service.draining:
            for request in server.server_state.tasks:
                request.cancel()  # is answered that the service stops
        else:
            service.drain()
            await service.drained()
        server.should_exit = True

    async def serve() -> int:
        loop, status = asyncio.get_running_loop(), EXIT_DONE

        def begin(work: "Coroutine[Any, Any, object]") -> None:
            task = asyncio.ensure_future(work)
            kept.add(task)
            task.add_done_callback(kept.discard)

        def act(number: int) -> None:
            if number == _RELOAD:  # if bundles are being loaded, it waits until they are
                loop.call_soon_threadsafe(lambda: begin(service.reload()))
            elif service.models is None:
                signals.before_serving(number)
            else:
                loop.call_soon_threadsafe(lambda: begin(stop()))

        signals.act = act
        try:
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            await started.wait()
            try:
                await service.open()
                server.crowd.most = allowed_connections(
                    server.crowd.count
                )  # bundles hold files open on some providers
                _say_listening(listener, args)
            except (EdgeCloudError, OSError) as error:
                say(f"cloud-serve: {error}", sys.stderr)
                status, server.should_exit = EXIT_FAILURE, True
            await serving
        finally:
            signals.act = signals.at_the_end
        return status

    from ..service.log import start_log

    log = start_log(LOG_LEVELS[args.log], service.metrics.lost_lines.inc)
    status = EXIT_FAILURE
    try:
        status = asyncio.run(serve())
    finally:
        if (
            not log.close() or service.loading
        ):  # the interpreter would wait for the log's reader, or for a bundle
            os._exit(status)
    return status


def _say_listening(listener: "socket.socket", args: argparse.Namespace) -> None:
    if not args.token_file and not _is_local(args.host):
        say(
            f"cloud-serve: listening on {args.host} without a token, anybody who reaches it may use it: give it a --token-file",
            sys.stderr,
        )
    host, port = listener.getsockname()[:2]
    say(
        f"listening on http://[{host}]:{port}"
        if ":" in host
        else f"listening on http://{host}:{port}",
        sys.stdout,
    )


if __name__ == "__main__":
    sys.exit(main())
