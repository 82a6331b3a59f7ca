"""Which engine is fastest on this very device: measured once, kept beside the bundle.

Every provider and precision that is installed here and that the bundle has runs the same inputs in
turn, and is held to what the safe choice, onnxruntime's CPU provider in float32, gives. The choice goes
to BUNDLE/tuned.json, and `auto` follows it until the processor, an engine's version or the bundle changes.

Always holds: an engine whose output strays too far is never chosen, and one that computes in less than
float32 only if it is clearly faster. Whether int8 is good enough for a model is decided at export,
on many images; here a few show that this device computes it right.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec import strict_json
from ..codec.bundle import Bundle
from ..errors import EdgeCloudError, TuneError
from ..files import write_atomically
from .base import Choice, Engine
from .registry import SAFE, TUNED, candidates, describe_device, open_choice

MAX_CHANGED = 0.01  # of an edge graph's symbols
CLEARLY = 0.95  # of the best float32 time
WARM_UP, ROUNDS = 5, 40
INPUTS = 8  # that are measured with

Deviation = Callable[[NDArray[Any], NDArray[Any]], tuple[float, bool]]


def changed_symbols(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, bool]:
    """The share of an edge graph's symbols that differ, and whether that is too much."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return 1.0, True
    changed = float((found != expected).mean())
    return changed, not changed <= MAX_CHANGED


def readable_inputs(
    names: Iterable[str], read: Callable[[str], NDArray[Any]]
) -> list[NDArray[Any]]:
    """What the first few files hold that can be read. A pipe can be read once, and is not for this.

    Raises TuneError where there is none, with the first one's reason.
    """
    inputs: list[NDArray[Any]] = []
    reasons = []
    for name in names:
        if name == "-" or (Path(name).exists() and not Path(name).is_file()):
            continue
        try:
            inputs.append(read(name))
        except (EdgeCloudError, OSError) as error:
            reasons.append(f"{name}: {error}")
        if len(inputs) == INPUTS:
            break
    if not inputs:
        raise TuneError(
            f"there is nothing to measure with: name at least one readable input ({(reasons or ['there is no file among them'])[0]})"
        )
    return inputs


def tune(
    bundle: Bundle,
    end: str,
    inputs: Sequence[NDArray[Any]],
    output: str,
    deviation: Deviation,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure and choose the engine of an `end`, "edge" or "cloud", and keep the choice in BUNDLE/tuned.json.

    Args:
        inputs: batches of one as the graph takes them: pixels uint8 [1, H, W, 3], or symbols int16 [1, C, H', W'].
        output: the graph's output that is held to the safe engine's.
        deviation: how far one output is from the safe one, and whether that is too far: `changed_symbols`, or a task's.
        threads: of each engine; None for one a core.

    Gives {"provider", "precision", "threads", "candidates": [{"provider", "precision", "milliseconds",
    "deviation", "accepted", "error"}]}, milliseconds being medians of one input. Raises TuneError; the
    BundleErrors where not even the safe choice loads; NotFiniteLogitsError where it gives no logits.
    """
    if not inputs:
        raise TuneError("there is nothing to measure with: name at least one readable input")
    engines: dict[Choice, Engine] = {SAFE: open_choice(bundle, end, threads, SAFE)}
    for batch in inputs:  # what is not finite raises here, before anything is compared with it
        deviation(*[engines[SAFE].run(batch)[output]] * 2)
    rows: dict[Choice, dict[str, Any]] = {}
    for choice in dict.fromkeys((SAFE, *candidates(bundle, end))):
        rows[choice] = {
            "provider": choice.provider,
            "precision": choice.precision,
            "accepted": False,
        }
        try:
            engine = engines.setdefault(
                choice,
                engines[SAFE] if choice == SAFE else open_choice(bundle, end, threads, choice),
            )
            results = [
                deviation(engines[SAFE].run(batch)[output], engine.run(batch)[output])
                for batch in inputs
            ]
            rows[choice]["deviation"] = max(far for far, _ in results)
            rows[choice]["accepted"] = not any(too_far for _, too_far in results)
        except (
            Exception
        ) as error:  # an engine that is installed and does not work here is one not to choose
            engines.pop(choice, None)
            rows[choice]["error"] = str(error).splitlines()[0] if str(error) else repr(error)
    times: dict[Choice, list[float]] = {choice: [] for choice in engines}
    for index in range(WARM_UP + ROUNDS):
        for choice, engine in engines.items():
            start = time.perf_counter()
            engine.run(inputs[index % len(inputs)])
            if index >= WARM_UP:
                times[choice].append(time.perf_counter() - start)
    for choice, seconds in times.items():
        rows[choice]["milliseconds"] = round(1e3 * statistics.median(seconds), 3)

    def fastest(choices: list[Choice]) -> Choice:
        return min(choices, key=lambda choice: rows[choice]["milliseconds"])

    accepted = [choice for choice in engines if rows[choice]["accepted"]]
    best, exact = (
        fastest(accepted),
        fastest([choice for choice in accepted if choice.precision == "fp32"]),
    )
    if rows[best]["milliseconds"] > CLEARLY * rows[exact]["milliseconds"]:
        best = exact
    result = {
        "provider": best.provider,
        "precision": best.precision,
        "threads": threads,
        "candidates": list(rows.values()),
    }
    _keep(bundle, end, result)
    return result


def _keep(bundle: Bundle, end: str, result: dict[str, Any]) -> None:
    path = bundle.folder / TUNED
    head = {"device": describe_device(), "fingerprint": bundle.fingerprint.hex()}
    try:
        before = strict_json.loads(path.read_text())
        kept = before if {key: before.get(key) for key in head} == head else head
    except (OSError, ValueError, AttributeError):
        kept = head
    try:
        write_atomically(
            path,
            (json.dumps(kept | {end: result}, indent=1, allow_nan=False) + os.linesep).encode(),
        )
    except OSError as error:
        raise TuneError(
            f"the choice cannot be kept in {path} ({error}): tune as a user who may write there"
        ) from error


def table(result: dict[str, Any]) -> str:
    """The measurements, a line an engine, fastest first."""
    rows = sorted(result["candidates"], key=lambda row: row.get("milliseconds", np.inf))
    lines = []
    for row in rows:
        name = f"{row['provider']} {row['precision']}"
        chosen = (
            "  <- chosen"
            if (row["provider"], row["precision"]) == (result["provider"], result["precision"])
            else ""
        )
        if "error" in row:
            lines.append(f"{name:<16} {row['error']}")
        else:
            note = "" if row["accepted"] else "  too far from float32"
            lines.append(
                f"{name:<16} {row['milliseconds']:8.2f} ms   deviation {row['deviation']:.4%}{note}{chosen}"
            )
    return "\n".join(lines)
