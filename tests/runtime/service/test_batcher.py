"""The queue before the graph: who shares a call, who is refused, and what a failure costs. Graphs are stand-ins that record their calls."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import DeadlineError, GraphFailedError, QueueFullError
from runtime.service.batcher import Answer, Batcher


class Graph:
    """Each image's logits are its sum and its largest symbol. A call waits for `gate`."""

    def __init__(self, max_symbols: int = 1 << 20):
        self.max_symbols = max_symbols
        self.calls: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        self.calls.append(symbols.shape)
        self.entered.set()
        assert self.gate.wait(30)
        if (symbols == -1).any():
            raise ArithmeticError("a bad image")
        rows = np.stack([symbols.sum((1, 2, 3)), symbols.max((1, 2, 3))], 1).astype(np.float32)
        rows[symbols.max((1, 2, 3)) == 99] = np.nan
        return rows

    async def busy(self) -> None:
        """Until a call is under way."""
        assert await asyncio.to_thread(self.entered.wait, 30)


def image(value: int, side: int = 4) -> NDArray[np.int16]:
    return np.full((2, side, side), value, np.int16)


def batcher(
    max_batch: int = 4,
    max_wait: float = 0.0,
    max_queue: int = 100,
    max_delay: float = 100.0,
    pace: float = 0.0,
) -> Batcher:
    return Batcher(max_batch, max_wait, max_queue, max_delay, pace)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def later() -> float:
    return asyncio.get_running_loop().time() + 60


def test_those_that_wait_while_a_call_runs_share_the_next_ones() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.gate.clear()
        futures = [queue.submit(graph, image(0), later())]
        await graph.busy()
        futures += [queue.submit(graph, image(value), later()) for value in range(1, 7)]
        graph.gate.set()
        answers = await asyncio.gather(*futures)
        assert [answer.logits.tolist() for answer in answers] == [
            [32.0 * value, value] for value in range(7)
        ]
        assert [shape[0] for shape in graph.calls] == [1, 4, 2]
        assert all(answer.graph > 0 for answer in answers)
        assert answers[6].queue >= answers[1].queue > 0
        queue.close()

    run(work)


def test_an_idle_graph_waits_for_company_and_not_longer_than_it_should() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2, max_wait=0.05)
        first = queue.submit(graph, image(1), later())
        await asyncio.sleep(0)
        assert graph.calls == []
        await asyncio.gather(first, queue.submit(graph, image(2), later()))  # full: goes at once
        alone = await queue.submit(graph, image(3), later())
        assert [shape[0] for shape in graph.calls] == [2, 1]
        assert alone.queue >= 0.05
        queue.close()

    run(work)


def test_shapes_and_bundles_never_share_a_call_and_the_oldest_goes_first() -> None:
    async def work() -> None:
        graph, other, queue = Graph(), Graph(), batcher()
        graph.gate.clear()
        first = queue.submit(graph, image(0), later())
        await graph.busy()
        rest = [
            queue.submit(graph, image(1, side=6), later()),
            queue.submit(other, image(1), later()),
            queue.submit(graph, image(2), later()),
            queue.submit(graph, image(3, side=6), later()),
        ]
        graph.gate.set()
        await asyncio.gather(first, *rest)
        assert graph.calls == [(1, 2, 4, 4), (2, 2, 6, 6), (1, 2, 4, 4)]
        assert other.calls == [(1, 2, 4, 4)]
        queue.close()

    run(work)


def test_a_call_has_no_more_symbols_than_one_image_may_have() -> None:
    async def work() -> None:
        graph, queue = Graph(max_symbols=3 * 32), batcher(max_batch=8)
        graph.gate.clear()
        futures = [queue.submit(graph, image(0), later())]
        await graph.busy()
        futures += [queue.submit(graph, image(value), later()) for value in range(1, 6)]
        graph.gate.set()
        await asyncio.gather(*futures)
        assert [shape[0] for shape in graph.calls] == [1, 3, 2]
        queue.close()

    run(work)


def test_past_its_deadline_an_image_is_refused_and_takes_no_place() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.gate.clear()
        running = queue.submit(graph, image(0), asyncio.get_running_loop().time() + 0.02)
        await graph.busy()
        late = queue.submit(graph, image(1), asyncio.get_running_loop().time() + 0.02)
        patient = queue.submit(graph, image(2), later())
        with pytest.raises(DeadlineError, match="no turn came in"):
            await late
        assert not running.done()  # it got its turn in time, and is answered
        graph.gate.set()
        assert (await running).logits[0] == 0
        assert (await patient).logits[1] == 2
        assert graph.calls == [(1, 2, 4, 4), (1, 2, 4, 4)]
        queue.close()

    run(work)


def test_who_has_gone_takes_no_place() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.gate.clear()
        running = queue.submit(graph, image(0), later())
        await graph.busy()
        gone = [queue.submit(graph, image(value), later()) for value in (1, 2)]
        for future in (running, *gone):
            future.cancel()
        graph.gate.set()
        assert (await queue.submit(graph, image(3), later())).logits[1] == 3
        assert [shape[0] for shape in graph.calls] == [1, 1]
        queue.close()

    run(work)


def test_a_failing_call_fails_its_own_batch_alone() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2)
        graph.gate.clear()
        first = queue.submit(graph, image(0), later())
        await graph.busy()
        futures = [queue.submit(graph, image(value), later()) for value in (1, -1, 2, 3)]
        graph.gate.set()
        results = await asyncio.gather(first, *futures, return_exceptions=True)
        assert [type(result) for result in results] == [
            Answer,
            GraphFailedError,
            GraphFailedError,
            Answer,
            Answer,
        ]
        assert "ArithmeticError" in str(results[1])
        queue.close()

    run(work)


def test_logits_that_are_not_numbers_are_no_answer() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2, max_wait=1.0)
        bad, good = queue.submit(graph, image(99), later()), queue.submit(graph, image(1), later())
        with pytest.raises(GraphFailedError, match="not numbers"):
            await bad
        assert (await good).logits[1] == 1
        queue.close()

    run(work)


def test_the_queue_is_bounded_in_images() -> None:
    async def work() -> None:
        queue = batcher(max_queue=5)
        with queue.admit(3):
            with pytest.raises(QueueFullError, match="3 images are waiting") as refused:
                queue.require_room(3)
            assert refused.value.seconds == 1
            with queue.admit(2), pytest.raises(QueueFullError), queue.admit(1):
                pass
            assert queue.admitted == 3
        assert queue.admitted == 0
        queue.close()

    run(work)


def test_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_again() -> None:
    async def work() -> None:
        queue = batcher(max_delay=10.0, pace=2.0)
        queue.require_room(50)  # an idle graph takes all that the queue holds
        with (
            queue.admit(6),
            pytest.raises(QueueFullError, match=r"takes 12\.0 s: ask again in 12 s") as refused,
        ):
            queue.require_room()
        assert refused.value.seconds == 12
        queue.close()

    run(work)


def test_the_pace_is_measured() -> None:
    async def work() -> None:
        told: list[tuple[int, float]] = []
        queue = Batcher(
            4, 0.0, 100, 100.0, 50.0, lambda images, seconds: told.append((images, seconds))
        )
        graph = Graph()
        for _ in range(60):
            await queue.submit(graph, image(1), later())
        assert 0 < queue.seconds_per_image < 1
        assert [images for images, _ in told] == [1] * 60
        queue.close()

    run(work)


def test_drained_waits_for_all_that_was_admitted() -> None:
    async def work() -> None:
        queue = batcher()
        await queue.drained()
        with queue.admit(1):
            waiting = asyncio.ensure_future(queue.drained())
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await waiting
        queue.close()

    run(work)
