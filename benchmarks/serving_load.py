"""A load generator: starts a server, sends it requests, and checks every answer.

An open load sends each request when it is due, whatever has been answered, at intervals of a
Poisson process; a latency counts from that time, so a slow server cannot slow the load down (no
coordinated omission). A closed load keeps a number of requests under way, which finds the
server's capacity.

Always holds: every answer is checked. A 200 has the class that CloudDecoder gives; anything else
is a refusal with a code; every request is answered. Otherwise BenchmarkError is raised.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import numpy as np

from benchmarks.common import PROJECT, BenchmarkError

ANSWER_TIMEOUT = 20.0  # seconds; cloud-serve's own limits are far below
MORE_SECONDS = 120.0  # that a closed load may last beyond its time, to gather enough answers
DAMAGED_EVERY = 20  # requests, of a load that watches the server's memory

T = TypeVar("T")


class Sample(NamedTuple):
    """A request's body, and the class to be answered; None for a file to be refused."""

    data: bytes
    class_index: int | None


class Outcome(NamedTuple):
    """When a request was due, sent and answered, in seconds; `code` is 200 or the refusal's."""

    due: float
    sent: float
    done: float
    status: int
    code: str


@dataclass
class Target:
    """A server that is measured."""

    name: str
    url: str
    pid: int
    log: Path


@contextlib.contextmanager
def serving(name: str, command: list[str]) -> Iterator[Target]:
    """A server process, which listens already. Raises BenchmarkError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
            )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().decode().split()
            if not words:
                raise BenchmarkError(f"{name} does not start: {log.read_text()[-1000:]}")
            yield Target(name, words[-1], process.pid, log)
            if process.poll() is not None:
                raise BenchmarkError(
                    f"{name} ended with status {process.returncode}: {log.read_text()[-1000:]}"
                )
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def damaged(sample: Sample) -> Sample:
    """The same file with one bit flipped, which must be refused."""
    data = bytearray(sample.data)
    data[len(data) // 2] ^= 0x40
    return Sample(bytes(data), None)


def resident_mb(pid: int) -> float:
    """Memory that a process holds now."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


async def post(
    session: aiohttp.ClientSession, target: Target, sample: Sample, due: float
) -> Outcome:
    """Send one file and check the answer.

    Raises BenchmarkError for a wrong class, an answer that is no expected refusal, or none.
    """
    sent = time.perf_counter()
    try:
        async with session.post(f"{target.url}/v1/classify", data=sample.data) as response:
            content = json.loads(await response.read())
            status = response.status
    except TimeoutError:
        raise BenchmarkError(
            f"{target.name} gave no answer in {ANSWER_TIMEOUT:g} seconds"
        ) from None
    except (aiohttp.ClientError, ValueError) as error:
        raise BenchmarkError(f"{target.name} gave no readable answer: {error!r}") from error
    done = time.perf_counter()
    if status == 200:
        first = content["classes"][0] if "classes" in content else content
        if first["class_index"] != sample.class_index:
            raise BenchmarkError(
                f"{target.name} answers class {first['class_index']}, "
                f"CloudDecoder gives {sample.class_index}"
            )
        return Outcome(due, sent, done, status, "200")
    expected = (429, 503, 504) if sample.class_index is not None else (400, 429, 503, 504)
    if status not in expected or "code" not in content:
        raise BenchmarkError(
            f"{target.name} answers {status} {content}, which is not an expected refusal"
        )
    return Outcome(due, sent, done, status, f"{status} {content['code']}")


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(ANSWER_TIMEOUT)
    )


def run(load: Coroutine[Any, Any, T]) -> T:
    """Run a load to its end. Raises the first BenchmarkError of its requests, alone."""
    try:
        return asyncio.run(load)
    except ExceptionGroup as group:
        errors, others = group.split(BenchmarkError)
        if errors is None or others is not None:
            raise
        raise errors.exceptions[0] from None


async def closed_load(
    target: Target, samples: Sequence[Sample], seconds: float, in_flight: int
) -> float:
    """Correct answers a second with `in_flight` requests under way at any time."""
    end = time.perf_counter() + seconds
    choose = random.Random(0)
    answered: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while (now := time.perf_counter()) < end or (
            len(answered) < 3 * in_flight and now < end + MORE_SECONDS
        ):
            outcome = await post(session, target, choose.choice(samples), now)
            if outcome.status == 200:
                answered.append(outcome.done)
            else:
                await asyncio.sleep(0.02)

    async with _session() as shared, asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(client(shared))
    # Answers come a batch at a time, so the slope of their number over time is steadier than their
    # number in a window. The first and last ones are left out: batches were filling or emptying.
    steady = answered[in_flight : max(2 * in_flight, len(answered) - in_flight)]
    if len(steady) < in_flight:
        raise BenchmarkError(
            f"{target.name} gave {len(answered)} answers in {seconds + MORE_SECONDS:g} seconds, "
            "too few to know its capacity"
        )
    return float(np.polyfit(steady, np.arange(len(steady)), 1)[0])


async def open_load(
    target: Target,
    samples: Sequence[Sample],
    rate: float,
    seconds: float,
    memory: list[tuple[float, float]] | None = None,
) -> list[Outcome]:
    """Requests at `rate` a second on average, at intervals of a Poisson process.

    With `memory`, every second (seconds, MB of the server) is appended to it, and every
    DAMAGED_EVERYth request is a damaged file.
    """
    choose = random.Random(1)
    outcomes: list[Outcome] = []
    start = time.perf_counter() + 0.1

    async def one(session: aiohttp.ClientSession, sample: Sample, due: float) -> None:
        outcomes.append(await post(session, target, sample, due))

    async def watch() -> None:
        while memory is not None:
            now = time.perf_counter() - start
            memory.append((round(now, 1), round(resident_mb(target.pid), 1)))
            await asyncio.sleep(1)

    async with _session() as session, asyncio.TaskGroup() as group:
        watching = asyncio.ensure_future(watch())
        due = start
        for number in range(1, sys.maxsize):
            due += choose.expovariate(rate)
            if due >= start + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sample = choose.choice(samples)
            if memory is not None and number % DAMAGED_EVERY == 0:
                sample = damaged(sample)
            group.create_task(one(session, sample, due))
        await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
        watching.cancel()
    return outcomes
