"""The service on a Ray cluster: `serve run runtime.cluster.app:app`. docs/SCALING.md is its manual. An extra: `[ray]`.

    serve run runtime.cluster.app:app bundle=bundles/ours_n4 threads=4      # arguments are the options of cloud-serve
    serve deploy docs/ray/serve.yaml                                    # the same ones, under `args`

    clients -> Ray's HTTP proxies, one a node -> replicas: each runs the application of service/app.py, with its own queue and batches

Ray places replicas, starts those again that die, and adds some where many requests are under way. It
starts as many threads of the cloud graph in each as it has reserved CPUs for it.

Always holds: what an application answers and refuses here is what it does behind `cloud-serve`: nothing is in front
of it that waits, batches or refuses while one replica has room. A replica that stops gets no more requests, and
answers those that it has.
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

DEPLOYMENT = "edgecloud"  # its name, under which a config file changes what it is made of

_MAX_REPLICAS = 100
# Ray holds back what exceeds this many times the queue of the application, which refuses what exceeds it once.
_ONGOING = 4
_HELD = (
    4096  # requests that each proxy holds at most, while it looks for a replica, or there is none
)
_HEALTH_PERIOD, _HEALTH_TIMEOUT = (
    5.0,
    10.0,
)  # seconds; after three checks that fail, a replica is replaced
_MARGIN = 5.0  # seconds, for a replica to stop after it has drained


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RayArgumentsError(
            f"{message.replace('--', '')}: arguments are written NAME=VALUE, and are the options of cloud-serve"
        )


def app(arguments: dict[str, Any]) -> serve.Application:
    """The Ray Serve application.

    Args:
        arguments: options of cloud-serve, by their names without dashes in front; a list for one that may be given several times.
            `host` and `port` belong to Ray. `replicas`: how many; without it, as many as the load asks for.

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
        logging_config={
            "enable_access_log": False
        },  # the application writes a line for each request itself
        **(
            {"num_replicas": args.replicas}
            if args.replicas
            else {"autoscaling_config": _autoscaling(settings)}
        ),
    )
    return deployment(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """What serve.ingress makes an application's replica of."""

    async def check_health(self) -> None:
        """Runs on the event loop of the application: whether it turns."""


def _application(settings: Settings, level: str) -> Starlette:
    """In a replica: the application, with the threads that Ray has reserved CPUs for."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    application = create_app(replace(settings, threads=max(1, int(cpus))))
    start_log(level, application.state.service.metrics.lost_lines.inc)
    return application


def _autoscaling(settings: Settings) -> dict[str, float]:
    """Two batches a replica: one in the graph, and the next."""
    return {
        "min_replicas": 1,
        "max_replicas": _MAX_REPLICAS,
        "target_ongoing_requests": 2 * settings.max_batch,
    }


def _options(arguments: dict[str, Any]) -> list[str]:
    options = []
    for name, value in arguments.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            options.append(f"--{name.replace('_', '-')}={one}")
    return options


def _absolute(settings: Settings) -> Settings:
    """With paths that do not depend on where a replica runs. All nodes have them in the same place."""
    bundles = tuple(Path(folder).absolute() for folder in settings.bundles or (default_bundle(),))
    token_file = Path(settings.token_file).absolute() if settings.token_file is not None else None
    return replace(settings, bundles=bundles, token_file=token_file)
