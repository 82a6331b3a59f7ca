"""Which engine runs a bundle's graph: the list of engines, and the choice among them.

`auto` follows the choice that `--tune` made on this device (tune.py). Without one it is onnxruntime
on the CPU, in the precision that the bundle names, mostly fp32: that needs no other package, and
its symbols are those of torch.

Always holds: if this device lacks what a choice needs, the CPU provider runs instead and one line
of the log says so. Where onnxruntime is not installed, that is the first engine that is there and
has a file in the bundle: the native encoder needs no package.
"""

import logging
import os
from collections.abc import Sequence

from ..codec import strict_json
from ..codec.bundle import CLOUD_GRAPH, CLOUD_GRAPH_INT8, EDGE_GRAPH, EDGE_GRAPH_INT8, Bundle
from ..errors import EngineChoiceError, InconsistentBundleError
from . import processor
from .base import PRECISIONS, Choice, Engine
from .native import Native
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino

log = logging.getLogger(__name__)

# One line per engine. A program registers its own with ENGINES.append(MyEngine).
ENGINES: list[type[Engine]] = [
    OnnxRuntime,
    OpenVino,
    Native,
]
GRAPHS = {
    "edge": {"fp32": EDGE_GRAPH, "int8": EDGE_GRAPH_INT8},
    "cloud": {"fp32": CLOUD_GRAPH, "int8": CLOUD_GRAPH_INT8},
}
SAFE = Choice("cpu", "fp32")
TUNED = "tuned.json"
_MAX_TUNED_BYTES = 1 << 20


def providers() -> list[str]:
    """The names of all providers, in the order of ENGINES."""
    return [provider for engine in ENGINES for provider in engine.PROVIDERS]


def engine_of(provider: str) -> type[Engine]:
    """The class that has a provider of that name. Raises EngineChoiceError."""
    for engine in ENGINES:
        if provider in engine.PROVIDERS:
            return engine
    raise EngineChoiceError(f"no provider {provider}: providers are auto, {', '.join(providers())}")


def candidates(bundle: Bundle, end: str) -> list[Choice]:
    """What `--tune` measures here for the bundle's graph of an `end`, "edge" or "cloud".

    SAFE comes first.
    """
    return [
        choice
        for engine in ENGINES
        for provider in engine.PROVIDERS
        for choice in (Choice(provider, precision) for precision in engine.PRECISIONS)
        if not engine.lacks(choice)
        and engine.is_worth_trying(choice)
        and graph_file(bundle, end, choice)
    ]


def graph_file(bundle: Bundle, end: str, choice: Choice) -> str | None:
    """The bundle's file of an `end`, "edge" or "cloud", for a choice; None if it has none.

    bf16 runs the float32 graph.
    """
    files = getattr(engine_of(choice.provider), "GRAPHS", GRAPHS)[end]
    name = files.get("int8" if choice.precision == "int8" else "fp32")
    return name if name and bundle.has(name) else None


def describe_device() -> dict[str, str]:
    """What a tuned choice depends on: processor, number of cores, and versions of the engines."""
    versions = {engine.__name__.lower(): engine.version() for engine in ENGINES}
    found = {"processor": processor.name(), "cores": str(os.cpu_count())}
    return found | {name: version for name, version in versions.items() if version}


def tuned_choice(bundle: Bundle, end: str) -> Choice | None:
    """What `--tune` chose for this bundle and `end` on this device.

    None if it has not run, or if the device, an engine's version or the bundle has changed since;
    the log then says so.
    """
    path = bundle.folder / TUNED
    try:
        if not path.is_file() or path.stat().st_size > _MAX_TUNED_BYTES:
            return None
        tuned = strict_json.loads(path.read_text())
        if tuned["device"] != describe_device() or tuned["fingerprint"] != bundle.fingerprint.hex():
            log.warning("%s is of another device or bundle and is not used: tune again", path)
            return None
        if end not in tuned:
            return None
        choice = Choice(str(tuned[end]["provider"]), str(tuned[end]["precision"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is not understood (%r) and is not used: tune again", path, error)
        return None
    return choice if choice in candidates(bundle, end) else None


def choose(bundle: Bundle, end: str, provider: str = "auto", precision: str = "auto") -> Choice:
    """What will run on this device, for the provider and precision that the caller asked for.

    Raises EngineChoiceError for a name that does not exist, for a precision that the provider does
    not have, and for one that the bundle does not have.
    """
    if provider not in ("auto", *providers()) or precision not in ("auto", *PRECISIONS):
        raise EngineChoiceError(
            f"no engine {provider} {precision}: providers are auto, {', '.join(providers())}; "
            f"precisions auto, {', '.join(PRECISIONS)}"
        )
    able = [
        name
        for engine in ENGINES
        if precision in ("auto", *engine.PRECISIONS)
        for name in engine.PROVIDERS
    ]
    if provider not in ("auto", *able):
        raise EngineChoiceError(
            f"provider {provider} has no {precision}: "
            f"choose --provider {able[0]}, or another --precision"
        )
    if provider == "auto":
        tuned = tuned_choice(bundle, end)
        if tuned and precision in ("auto", tuned.precision):
            return tuned
        provider = SAFE.provider if SAFE.provider in able else able[0]
    choice = Choice(provider, _precision(bundle, end, provider, precision))
    if choice.precision == "int8" and not graph_file(bundle, end, choice):
        raise _no_int8(bundle, end, provider)
    lacking = engine_of(provider).lacks(choice)
    if not lacking:
        return choice
    fallback = _fallback(bundle, end, choice, precision)
    log.warning("%s needs %s: %s runs instead", choice, lacking, fallback)
    return fallback


def _precision(bundle: Bundle, end: str, provider: str, precision: str) -> str:
    """What `choose` makes of a precision that may be "auto"."""
    if precision != "auto":
        return precision
    able = engine_of(provider).PRECISIONS
    int8 = Choice(provider, "int8")
    wanted = bundle.manifest.precision == "int8" and graph_file(bundle, end, int8)
    return "int8" if wanted or "fp32" not in able else "fp32"


def _no_int8(bundle: Bundle, end: str, provider: str) -> EngineChoiceError:
    """Why a provider has nothing to run in int8."""
    if hasattr(engine_of(provider), "GRAPHS"):
        return EngineChoiceError(
            f"{bundle.folder} has no file for the {end} that {provider} runs: "
            "choose another --provider, or export with --calibrate DIR"
        )
    return EngineChoiceError(
        f"{bundle.folder} has no int8 graph for the {end}: "
        "leave out --precision, or export with --calibrate DIR"
    )


def _fallback(bundle: Bundle, end: str, choice: Choice, precision: str) -> Choice:
    """What runs where this device lacks what `choice` needs; `precision` is what was asked for.

    Raises EngineChoiceError where there is nothing.
    """
    safe = engine_of(SAFE.provider)
    able = choice.precision in safe.PRECISIONS
    fallback = Choice(SAFE.provider, choice.precision if able else SAFE.precision)
    if not safe.lacks(fallback):
        return fallback
    there = [one for one in candidates(bundle, end) if precision in ("auto", one.precision)]
    if not there:
        raise EngineChoiceError(
            f"no engine that is installed here can run the {end} of {bundle.folder}: "
            "pip install onnxruntime"
        )
    return there[0]


def open_engine(
    bundle: Bundle,
    end: str,
    threads: int | None,
    provider: str = "auto",
    precision: str = "auto",
    workers: int = 1,
) -> Engine:
    """Load the bundle's graph of an `end`, "edge" or "cloud".

    Args:
        threads: for one call; None for one per core.
        provider, precision: "auto", or what the caller asks for.
        workers: how many threads will call the engine at the same time.

    Raises EngineChoiceError, the BundleErrors of Bundle.read, and InconsistentBundleError if the
    engine cannot load the graph or the graph is another bundle's.
    """
    return open_choice(bundle, end, threads, choose(bundle, end, provider, precision), workers)


def open_choice(
    bundle: Bundle, end: str, threads: int | None, choice: Choice, workers: int = 1
) -> Engine:
    """As `open_engine`, for a choice that `choose` or `candidates` gave."""
    name = graph_file(bundle, end, choice)
    assert name
    data = bundle.read(name)
    try:
        engine = engine_of(choice.provider)(data, choice, threads, workers)
    except Exception as error:  # the libraries' errors have no common base class
        raise InconsistentBundleError(
            f"{choice.provider} cannot load {bundle.folder / name}: {error}"
        ) from error
    if engine.fingerprint not in (None, bundle.fingerprint.hex()):
        raise InconsistentBundleError(
            f"{bundle.folder / name} is of bundle {str(engine.fingerprint)[:8]}, "
            f"the manifest of {bundle.fingerprint.hex()[:8]}: export the bundle again"
        )
    return engine


def group_by_shape(shapes: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """Indexes into `shapes`, in groups of one shape and at most `size`: one graph call each."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [
        members[i : i + size] for members in groups.values() for i in range(0, len(members), size)
    ]
