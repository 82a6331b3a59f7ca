"""The service on a Ray cluster. docs/SCALING.md is its manual. Needs the extra `[ray]`.

    serve run runtime.cluster.app:app bundle=bundles/ours_n4 threads=4   # options of cloud-serve
    serve deploy docs/ray/serve.yaml                                     # the same, under `args`

    clients -> Ray's HTTP proxies, one on each node -> replicas

Each replica runs the application of service/app.py, with its own queue and batches. Ray places the
replicas, restarts those that die, and adds some when many requests are under way. A replica starts
as many threads of the cloud graph as Ray has reserved CPUs for it.

Always holds: an application answers and refuses here what it does behind `cloud-serve`. Nothing in
front of it waits, batches or refuses while a replica has room. A replica that stops gets no more
requests, and answers those that it has.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ..codec.bundle import default_bundle
from ..errors import MissingExtraError, RayArgumentsError
from ..options import number
from ..service.log import start_log
from ..service.options import LOG_LEVELS, add_service_options, settings_of

try:
    import ray
    from ray import serve
    from starlette.applications import Starlette

    from ..service.app import Settings, create_app
except ImportError as error:
    raise MissingExtraError(
        f"serving on a cluster needs Ray ({error}): pip install 'edgecloud-features[ray]'"
    ) from error

DEPLOYMENT = "edgecloud"  # the name by which a config file refers to the deployment

_MAX_REPLICAS = 100
# Requests that Ray lets through to a replica, in queues of the application. The application itself
# refuses what exceeds one queue; Ray holds back only what exceeds this many.
_ONGOING = 4
_HELD = 4096  # requests that a proxy holds at most, while there is no replica to send them to
_HEALTH_PERIOD, _HEALTH_TIMEOUT = 5.0, 10.0  # seconds; a replica is replaced after three failures
_MARGIN = 5.0  # seconds, for a replica to stop after it has drained


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RayArgumentsError(
            f"{message.replace('--', '')}: arguments are written NAME=VALUE, "
            "and are the options of cloud-serve"
        )


def app(arguments: dict[str, Any]) -> serve.Application:
    """The Ray Serve application.

    Args:
        arguments: options of cloud-serve, by their names without leading dashes; a list for an
            option that may be given several times. `host` and `port` are not among them, because
            Ray listens. `replicas` is their number; without it, Ray follows the load.

    Raises RayArgumentsError.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_service_options(parser)
    parser.add_argument("--replicas", type=number(int, 1, _MAX_REPLICAS))
    args = parser.parse_args(_options(arguments))
    settings = _absolute(settings_of(args))
    level = LOG_LEVELS[args.log]

    def build() -> Starlette:
        return _application(settings, level)

    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=_ONGOING * settings.max_queue,
        max_queued_requests=_HELD,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options={"num_cpus": args.threads or 1},
        health_check_period_s=_HEALTH_PERIOD,
        health_check_timeout_s=_HEALTH_TIMEOUT,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_seconds + _MARGIN,
        # The application writes its own line for each request.
        logging_config={"enable_access_log": False},
        **(
            {"num_replicas": args.replicas}
            if args.replicas
            else {"autoscaling_config": _autoscaling(settings)}
        ),
    )
    return deployment(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """The class that serve.ingress turns into a replica of the application."""

    async def check_health(self) -> None:
        """Succeeds if the application's event loop, on which it runs, is not blocked."""


def _application(settings: Settings, level: str) -> Starlette:
    """The application, made in a replica, with a thread for each CPU that Ray has reserved."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    application = create_app(replace(settings, threads=max(1, int(cpus))))
    start_log(level, application.state.service.metrics.lost_lines.inc)
    return application


def _autoscaling(settings: Settings) -> dict[str, float]:
    """Aim at two batches for each replica: one in the graph, and the next."""
    return {
        "min_replicas": 1,
        "max_replicas": _MAX_REPLICAS,
        "target_ongoing_requests": 2 * settings.max_batch,
    }


def _options(arguments: dict[str, Any]) -> list[str]:
    """Arguments of Ray Serve as options of a command line."""
    options = []
    for name, value in arguments.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            options.append(f"--{name.replace('_', '-')}={one}")
    return options


def _absolute(settings: Settings) -> Settings:
    """With absolute paths, which are the same on all nodes, wherever a replica runs."""
    bundles = tuple(Path(folder).absolute() for folder in settings.bundles or (default_bundle(),))
    token_file = Path(settings.token_file).absolute() if settings.token_file is not None else None
    return replace(settings, bundles=bundles, token_file=token_file)
