"""Which task a cloud graph is made for: the list of tasks, and the choice among them.

Always holds: the names of the graph's outputs decide, so a bundle needs no other mark of its task.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import InconsistentBundleError
from .base import Task
from .classification import Classification

# One line per task. A program registers its own with TASKS.append(MyTask).
TASKS: list[type[Task]] = [
    Classification,
]


def task_of(outputs: Iterable[str]) -> type[Task]:
    """The task whose OUTPUT is among a graph's outputs. Raises InconsistentBundleError."""
    names = list(outputs)
    for task in TASKS:
        if task.OUTPUT in names:
            return task
    known = ", ".join(task.OUTPUT for task in TASKS)
    raise InconsistentBundleError(f"a cloud graph without any of the outputs {known}")


def deviation(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> tuple[float, bool]:
    """As Task.deviation, for all outputs of a cloud graph by name."""
    task = task_of(expected)
    return task.deviation(expected[task.OUTPUT], found[task.OUTPUT])
