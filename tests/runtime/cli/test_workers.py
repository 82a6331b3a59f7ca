"""Work in several threads: in order, a few jobs at a time, with one encoder."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import EdgeEncoder, files
from runtime.cli import workers as workers_module
from runtime.cli.workers import map_ordered


def test_only_a_few_images_are_under_way() -> None:
    """Even if there are many, and the first is slow. The order is kept."""
    begun, given, most = [], 0, 0
    lock = threading.Lock()

    def work(job: tuple[str, str]) -> tuple[dict[str, Any], None]:
        nonlocal most
        with lock:
            begun.append(job)
            most = max(most, len(begun) - given)
        if job[0] == "0":
            time.sleep(0.2)
        return {"image": job[0]}, None

    jobs = [(str(index), "") for index in range(1000)]
    for result, _ in map_ordered(work, jobs, 3):
        assert result["image"] == str(given)
        with lock:
            given += 1
    assert given == 1000
    assert most <= workers_module._AHEAD * 3 + 1


def test_temporary_files_of_many_threads(tmp_path: Path) -> None:
    """The umask belongs to the process, so no thread may change it, even briefly."""
    before = os.umask(0o027)
    try:
        threads = [
            threading.Thread(target=files.write_atomically, args=(tmp_path / f"{index}", b"x"))
            for index in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert len(list(tmp_path.iterdir())) == 50
    finally:
        os.umask(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_the_results_begins_no_more_jobs(workers: int) -> None:
    begun: list[int] = []
    results = map_ordered(lambda job: begun.append(job) or job, range(1000), workers)
    for result in results:
        if result == 5:
            break
    results.close()
    assert 6 <= len(begun) <= 6 + workers_module._AHEAD * workers
    assert threading.active_count() == 1 or not any(
        "ThreadPool" in thread.name for thread in threading.enumerate()
    )


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_workers_share_an_encoder(
    bundle: Path, golf_ball: NDArray[np.uint8], provider: str
) -> None:
    """Four threads at once give the same feature files as one."""
    if provider == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra")
    encoder = EdgeEncoder(bundle, 1, provider=provider, workers=4)
    images = [np.roll(golf_ball, 31 * index, axis=1) for index in range(24)]
    expected = [encoder.encode(image) for image in images]
    jobs = [(str(index), "") for index in range(len(images))]
    assert [
        data
        for _, data in map_ordered(lambda job: ({}, encoder.encode(images[int(job[0])])), jobs, 4)
    ] == expected
    assert len(set(expected)) > 12
