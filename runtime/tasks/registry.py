"""The list of tasks, and the choice among them.

Always holds: a bundle's manifest names its task, and an answer of the service is known by the name
of its list, so code outside tasks/ asks here and never compares names itself.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import UnsupportedBundleError
from .base import Task
from .classification import Classification

# One line per task. A program registers its own with TASKS.append(MyTask).
TASKS: list[type[Task]] = [
    Classification,
]


def task_named(name: str) -> type[Task]:
    """The task that a bundle's manifest names. Raises UnsupportedBundleError."""
    for task in TASKS:
        if name == task.NAME:
            return task
    known = ", ".join(task.NAME for task in TASKS)
    raise UnsupportedBundleError(
        f"the bundle is for the task {name[:80]!r}, and the tasks here are {known}: "
        "register the task (TASKS in runtime.tasks.registry), or take another bundle"
    )


def find_answers(
    content: Mapping[str, Any], top_k: int | None = None
) -> tuple[type[Task], list[dict[str, Any]]] | None:
    """The task and the answers that a JSON object for one image holds.

    Args:
        content: such as the service writes; it may come from anywhere.
        top_k: how many answers to take; None for all.

    Returns the answers with the members FIELDS alone, best first; None if they are missing, or not
    as the task writes them.
    """
    for task in TASKS:
        entries = content.get(task.ANSWERS)
        if entries is None:
            continue
        if not isinstance(entries, list) or not entries:
            return None
        for entry in entries[:top_k]:
            if not isinstance(entry, dict) or not all(
                field.accepts(entry.get(field.name)) for field in task.FIELDS
            ):
                return None
        names = [field.name for field in task.FIELDS]
        return task, [{name: entry[name] for name in names} for entry in entries[:top_k]]
    return None


def deviation(
    task: type[Task], expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> tuple[float, bool]:
    """As Task.deviation, for all outputs of a cloud graph by name."""
    return task.deviation(expected[task.OUTPUT], found[task.OUTPUT])
