"""Threads of a command: its workers, whose results stay in order, and those of libraries."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_AHEAD = 4  # jobs under way for each worker, so that the others need not wait for a large one


def without_blas_threads() -> None:
    """Keep numpy from starting threads for matrix products; to be called before it is imported.

    The commands multiply no matrices in numpy, and these threads use the processor while they wait.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def map_ordered(
    work: Callable[[_T], _R], jobs: Iterable[_T], workers: int
) -> Generator[_R, None, None]:
    """Do `work` on each job in threads; results come in the order of the jobs.

    `jobs` is iterated in the caller's thread, a few jobs ahead of the results. Closing the
    generator, or an exception such as KeyboardInterrupt, waits for the jobs that have begun, and
    begins no more.
    """
    if workers < 2:
        yield from map(work, jobs)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        pending: deque[Future[_R]] = deque()
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
