"""Work of a command in several threads, in order, and the threads that libraries start."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 4  # jobs under way for each worker, so that a large one does not keep the others waiting


def without_blas_threads() -> None:
    """Before numpy is imported: nothing here multiplies matrices in it, and its threads for that spin as they start."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def map_ordered(
    work: Callable[[T], R], jobs: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """Results in the order of the jobs, a few of which are under way at a time.

    Jobs are taken from their iterable in this thread. Closing the iterator, or an exception such as Ctrl-C's, waits for the work
    that has begun and begins no more.
    """
    if workers < 2:
        yield from map(work, jobs)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        pending: deque[Future[R]] = deque()
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
