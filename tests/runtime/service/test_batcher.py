"""The queue in front of the graph: shared calls, refusals, and failures.

Graphs are stand-ins that record their calls.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import DeadlineError, GraphFailedError, QueueFullError
from runtime.service.batcher import Answer, Batcher


class Graph:
    """Each image's logits are its sum and its largest symbol. A call waits for `release`."""

    def __init__(self, max_symbols: int = 1 << 20):
        self.max_symbols = max_symbols
        self.calls: list[tuple[int, ...]] = []
        self.release = threading.Event()
        self.release.set()
        self.entered = threading.Event()

    def run(self, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
        self.calls.append(symbols.shape)
        self.entered.set()
        assert self.release.wait(30)
        if (symbols == -1).any():
            raise ArithmeticError("a bad image")
        rows = np.stack([symbols.sum((1, 2, 3)), symbols.max((1, 2, 3))], 1).astype(np.float32)
        rows[symbols.max((1, 2, 3)) == 99] = np.nan
        return rows

    async def busy(self) -> None:
        """Wait until a call is under way."""
        assert await asyncio.to_thread(self.entered.wait, 30)


def image(value: int, side: int = 4) -> NDArray[np.int16]:
    return np.full((2, side, side), value, np.int16)


def batcher(
    max_batch: int = 4,
    max_wait: float = 0.0,
    max_queue: int = 100,
    max_delay: float = 100.0,
    seconds_per_image: float = 0.0,
) -> Batcher:
    return Batcher(max_batch, max_wait, max_queue, max_delay, seconds_per_image)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def later() -> float:
    return asyncio.get_running_loop().time() + 60


def test_images_that_wait_while_a_call_runs_share_the_next_calls() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.release.clear()
        futures = [queue.submit(graph, image(0), later())]
        await graph.busy()
        futures += [queue.submit(graph, image(value), later()) for value in range(1, 7)]
        graph.release.set()
        answers = await asyncio.gather(*futures)
        assert [answer.logits.tolist() for answer in answers] == [
            [32.0 * value, value] for value in range(7)
        ]
        assert [shape[0] for shape in graph.calls] == [1, 4, 2]
        assert all(answer.graph > 0 for answer in answers)
        assert answers[6].queue >= answers[1].queue > 0
        queue.close()

    run(work)


def test_an_idle_graph_waits_for_more_images_up_to_max_wait() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2, max_wait=0.05)
        first = queue.submit(graph, image(1), later())
        await asyncio.sleep(0)
        assert graph.calls == []
        await asyncio.gather(first, queue.submit(graph, image(2), later()))  # a full batch
        alone = await queue.submit(graph, image(3), later())
        assert [shape[0] for shape in graph.calls] == [2, 1]
        assert alone.queue >= 0.05
        queue.close()

    run(work)


def test_shapes_and_graphs_never_share_a_call_and_the_oldest_goes_first() -> None:
    async def work() -> None:
        graph, other, queue = Graph(), Graph(), batcher()
        graph.release.clear()
        first = queue.submit(graph, image(0), later())
        await graph.busy()
        rest = [
            queue.submit(graph, image(1, side=6), later()),
            queue.submit(other, image(1), later()),
            queue.submit(graph, image(2), later()),
            queue.submit(graph, image(3, side=6), later()),
        ]
        graph.release.set()
        await asyncio.gather(first, *rest)
        assert graph.calls == [(1, 2, 4, 4), (2, 2, 6, 6), (1, 2, 4, 4)]
        assert other.calls == [(1, 2, 4, 4)]
        queue.close()

    run(work)


def test_a_call_has_no_more_symbols_than_are_allowed_for_one_image() -> None:
    async def work() -> None:
        graph, queue = Graph(max_symbols=3 * 32), batcher(max_batch=8)
        graph.release.clear()
        futures = [queue.submit(graph, image(0), later())]
        await graph.busy()
        futures += [queue.submit(graph, image(value), later()) for value in range(1, 6)]
        graph.release.set()
        await asyncio.gather(*futures)
        assert [shape[0] for shape in graph.calls] == [1, 3, 2]
        queue.close()

    run(work)


def test_an_image_past_its_deadline_is_refused_and_dropped() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.release.clear()
        running = queue.submit(graph, image(0), asyncio.get_running_loop().time() + 0.02)
        await graph.busy()
        late = queue.submit(graph, image(1), asyncio.get_running_loop().time() + 0.02)
        other = queue.submit(graph, image(2), later())
        with pytest.raises(DeadlineError, match="no graph call was free within"):
            await late
        assert not running.done()  # its call began in time, so it is answered
        graph.release.set()
        assert (await running).logits[0] == 0
        assert (await other).logits[1] == 2
        assert graph.calls == [(1, 2, 4, 4), (1, 2, 4, 4)]
        queue.close()

    run(work)


def test_cancelled_images_are_dropped() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher()
        graph.release.clear()
        running = queue.submit(graph, image(0), later())
        await graph.busy()
        gone = [queue.submit(graph, image(value), later()) for value in (1, 2)]
        for future in (running, *gone):
            future.cancel()
        graph.release.set()
        assert (await queue.submit(graph, image(3), later())).logits[1] == 3
        assert [shape[0] for shape in graph.calls] == [1, 1]
        queue.close()

    run(work)


def test_a_failing_call_fails_its_own_batch_alone() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2)
        graph.release.clear()
        first = queue.submit(graph, image(0), later())
        await graph.busy()
        futures = [queue.submit(graph, image(value), later()) for value in (1, -1, 2, 3)]
        graph.release.set()
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


def test_logits_that_are_not_numbers_are_refused() -> None:
    async def work() -> None:
        graph, queue = Graph(), batcher(max_batch=2, max_wait=1.0)
        bad, good = queue.submit(graph, image(99), later()), queue.submit(graph, image(1), later())
        with pytest.raises(GraphFailedError, match="not numbers"):
            await bad
        assert (await good).logits[1] == 1
        queue.close()

    run(work)


def test_the_queue_has_a_limit_of_images() -> None:
    async def work() -> None:
        queue = batcher(max_queue=5)
        with queue.admit(3):
            with pytest.raises(QueueFullError, match="3 images are waiting") as refused:
                queue.require_capacity(3)
            assert refused.value.seconds == 1
            with queue.admit(2), pytest.raises(QueueFullError), queue.admit(1):
                pass
            assert queue.admitted == 3
        assert queue.admitted == 0
        queue.close()

    run(work)


def test_an_image_that_would_wait_too_long_is_refused_with_a_time_to_retry() -> None:
    async def work() -> None:
        queue = batcher(max_delay=10.0, seconds_per_image=2.0)
        queue.require_capacity(50)  # an idle graph accepts as many as the queue holds
        with (
            queue.admit(6),
            pytest.raises(QueueFullError, match=r"takes 12\.0 s: ask again in 12 s") as refused,
        ):
            queue.require_capacity()
        assert refused.value.seconds == 12
        queue.close()

    run(work)


def test_seconds_per_image_are_measured() -> None:
    async def work() -> None:
        calls: list[tuple[int, float]] = []
        queue = Batcher(
            4, 0.0, 100, 100.0, 50.0, lambda images, seconds: calls.append((images, seconds))
        )
        graph = Graph()
        for _ in range(60):
            await queue.submit(graph, image(1), later())
        assert 0 < queue.seconds_per_image < 1
        assert [images for images, _ in calls] == [1] * 60
        queue.close()

    run(work)


def test_drained_waits_for_all_admitted_images() -> None:
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
