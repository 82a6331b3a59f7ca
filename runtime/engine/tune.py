"""Finds the fastest engine for a bundle on this device, and saves the choice beside the bundle.

All candidates of the registry run the same inputs in turn. Their outputs are compared with those of
the safe choice, onnxruntime's CPU provider in float32. The choice is saved in BUNDLE/tuned.json;
`auto` follows it until the processor, an engine's version or the bundle changes.

Always holds: an engine whose output deviates too far is never chosen. One of a lower precision than
float32 is chosen only if it is clearly faster. Export decides on many images whether int8 is good
enough for a model; the few inputs here only show that this device computes it correctly.
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
from .registry import SAFE, TUNED, candidates, describe_device, engine_of, open_choice

MAX_CHANGED = 0.01  # largest accepted share of changed symbols of the edge graph
CLEARLY = 0.95  # clearly faster: at most this share of the best float32 time
WARM_UP, ROUNDS = 5, 40  # runs of each candidate: unmeasured, measured
INPUTS = 8  # at most so many are measured with

Outputs = dict[str, NDArray[Any]]  # of a graph, by name
# (expected outputs, found outputs) -> (how far apart they are, whether that is too far)
Deviation = Callable[[Outputs, Outputs], tuple[float, bool]]


def edge_deviation(bundle: Bundle) -> Deviation:
    """How far outputs of a bundle's edge graph are apart: as `changed_symbols`.

    A variable-rate bundle's latents are compared after rounding at its default level. They raise
    NotANumberError if they are not finite.
    """
    rates = bundle.rates
    if rates is None:
        return changed_symbols

    def deviation(expected: Outputs, found: Outputs) -> tuple[float, bool]:
        step = bundle.default_step
        rounded = [
            {"symbols": np.stack([rates.symbols(latent, step) for latent in outputs["latent"]])}
            for outputs in (expected, found)
        ]
        return changed_symbols(*rounded)

    return deviation


def changed_symbols(expected: Outputs, found: Outputs) -> tuple[float, bool]:
    """The share of an edge graph's symbols that differ, 0 to 1, and whether that is too much."""
    symbols, ours = expected["symbols"], found["symbols"]
    if ours.shape != symbols.shape or ours.dtype != symbols.dtype:
        return 1.0, True
    changed = float((ours != symbols).mean())
    return changed, not changed <= MAX_CHANGED


def readable_inputs(
    names: Iterable[str], read: Callable[[str], NDArray[Any]]
) -> list[NDArray[Any]]:
    """The contents of the first readable files, at most INPUTS; `read` gives those of one.

    Skips pipes and standard input, which can be read only once.
    Raises TuneError if no file can be read, with the reason for the first.
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
            "there is nothing to measure with: name at least one readable input "
            f"({reasons[0] if reasons else 'there is no file among them'})"
        )
    return inputs


def tune(
    bundle: Bundle,
    end: str,
    inputs: Sequence[NDArray[Any]],
    deviation: Deviation,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure the candidates for an `end`, "edge" or "cloud", and save the choice.

    Args:
        inputs: batches of one: pixels uint8 [1, H, W, 3], or what the cloud graph
            takes, [1, C, H', W'].
        deviation: `edge_deviation`, or a comparison of a task's outputs.
        threads: for one call of each engine; None for one per core.

    Returns {"provider", "precision", "threads", "candidates": [...]}. A candidate has "provider",
    "precision" and "accepted", and either "deviation" and "milliseconds" (the median for one input)
    or "error".

    Raises TuneError, also where onnxruntime is not installed; the BundleErrors if the safe choice
    does not load; and what `deviation` raises for its output, such as NotFiniteLogitsError.
    """
    if not inputs:
        raise TuneError("there is nothing to measure with: name at least one readable input")
    if lacking := engine_of(SAFE.provider).lacks(SAFE):
        raise TuneError(f"every engine is compared with {SAFE}, which needs {lacking}: install it")
    safe = open_choice(bundle, end, threads, SAFE)
    for batch in inputs:
        # Raises if the safe output is not finite, before anything is compared with it.
        deviation(*[safe.run(batch)] * 2)
    engines: dict[Choice, Engine] = {}
    rows: dict[Choice, dict[str, Any]] = {}
    for choice in dict.fromkeys((SAFE, *candidates(bundle, end))):
        row = rows[choice] = {
            "provider": choice.provider,
            "precision": choice.precision,
            "accepted": False,
        }
        try:
            engine = safe if choice == SAFE else open_choice(bundle, end, threads, choice)
            results = [deviation(safe.run(batch), engine.run(batch)) for batch in inputs]
        except Exception as error:  # such as an installed engine that does not work on this device
            row["error"] = str(error).splitlines()[0] if str(error) else repr(error)
            continue
        row["deviation"] = max(far for far, _ in results)
        row["accepted"] = not any(too_far for _, too_far in results)
        engines[choice] = engine
    for choice, milliseconds in _median_times(engines, inputs).items():
        rows[choice]["milliseconds"] = milliseconds
    best = _fastest(rows)
    result = {
        "provider": best.provider,
        "precision": best.precision,
        "threads": threads,
        "candidates": list(rows.values()),
    }
    _save(bundle, end, result)
    return result


def _median_times(
    engines: dict[Choice, Engine], inputs: Sequence[NDArray[Any]]
) -> dict[Choice, float]:
    """Milliseconds of one input. Engines take turns, so that a slow moment falls on all of them."""
    times: dict[Choice, list[float]] = {choice: [] for choice in engines}
    for index in range(WARM_UP + ROUNDS):
        for choice, engine in engines.items():
            start = time.perf_counter()
            engine.run(inputs[index % len(inputs)])
            if index >= WARM_UP:
                times[choice].append(time.perf_counter() - start)
    return {choice: round(1e3 * statistics.median(seconds), 3) for choice, seconds in times.items()}


def _fastest(rows: dict[Choice, dict[str, Any]]) -> Choice:
    """The fastest accepted choice; a lower precision must be clearly faster than float32."""
    accepted = {choice: row["milliseconds"] for choice, row in rows.items() if row["accepted"]}
    best = min(accepted, key=accepted.__getitem__)
    exact = min((c for c in accepted if c.precision == "fp32"), key=accepted.__getitem__)
    return best if accepted[best] <= CLEARLY * accepted[exact] else exact


def _save(bundle: Bundle, end: str, result: dict[str, Any]) -> None:
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
            f"the choice cannot be saved in {path} ({error}): tune as a user who may write there"
        ) from error


def table(result: dict[str, Any]) -> str:
    """The measurements as text, one line per candidate, fastest first."""
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
                f"{name:<16} {row['milliseconds']:8.2f} ms   "
                f"deviation {row['deviation']:.4%}{note}{chosen}"
            )
    return "\n".join(lines)
