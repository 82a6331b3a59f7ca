"""The controller keeps the mean of a stream near its target, and stays within its bounds."""

import math

import numpy as np
import pytest

from runtime.codec.controller import HORIZON, Controller
from runtime.codec.feature_file import MAX_STEP


def run(
    controller: Controller, scales: np.ndarray, growth: float, start: int = 128
) -> tuple[np.ndarray, list[int]]:
    """Sizes and steps of images whose size is scale * exp(growth * step)."""
    sizes, steps = [], []
    for scale in scales:
        step = controller.step()
        step = start if step is None else step
        size = max(12, round(scale * math.exp(growth * step)))
        controller.record(step, size, size)
        sizes.append(size)
        steps.append(step)
    return np.array(sizes), steps


def images(count: int, seed: int, middle: float = 150, spread: float = 0.4) -> np.ndarray:
    """Sizes at step 0, around `middle`, of images as different as photographs are."""
    return middle * np.random.default_rng(seed).lognormal(0, spread, count)


@pytest.mark.parametrize("growth", [0.006, 0.01, 0.015])
@pytest.mark.parametrize("target", [250, 535, 1140])
@pytest.mark.parametrize("seed", range(5))
def test_the_mean_converges(growth: float, target: float, seed: int) -> None:
    """Though images grow otherwise with the step than the controller's model says."""
    scales = images(400, seed, target / math.exp(growth * 140))  # step 140 has about the target
    sizes, steps = run(Controller(target), scales, growth, start=90)
    assert abs(sizes[:64].mean() / target - 1) < 0.15
    assert abs(sizes.mean() / target - 1) < 0.02
    # The level follows the stream and not each image: sizes differ as images do.
    assert sizes.std() > 0.15 * target
    assert np.abs(np.diff(steps[64:])).mean() < 24


def test_equal_images_get_an_equal_level() -> None:
    _, steps = run(Controller(500), np.full(200, 150.0), 0.01)
    assert np.ptp(steps[100:]) <= 1


def test_the_same_sizes_give_the_same_steps() -> None:
    one, other = (run(Controller(500), images(100, 3), 0.01) for _ in range(2))
    assert one[1] == other[1]


@pytest.mark.parametrize(("target", "end"), [(20, 0), (1_000_000, MAX_STEP)])
def test_a_target_out_of_reach_leaves_the_level_at_its_end(target: float, end: int) -> None:
    controller = Controller(target)
    _, steps = run(controller, images(300, 0), 0.01)
    assert set(steps[1:]) == {end}
    # When images change, the stream recovers: what was missed counts for HORIZON images at most.
    scale = target / math.exp(0.01 * 128)
    sizes, steps = run(controller, np.full(400, scale), 0.01)
    assert abs(sizes[-100:].mean() / target - 1) < 0.05
    assert all(0 <= step <= MAX_STEP for step in steps)


def test_images_that_had_to_be_smaller_leave_bytes_for_others() -> None:
    controller, wanted = Controller(500), []
    for _ in range(3 * HORIZON):
        step = controller.step()
        step = 128 if step is None else step
        size = round(150 * math.exp(0.01 * step))
        wanted.append(size)
        controller.record(step, size, min(size, 400))
    assert np.mean(wanted[-10:]) > 600
    assert max(wanted) <= 1100, "the level rises to twice the target at most"
