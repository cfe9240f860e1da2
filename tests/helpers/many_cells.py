"""Several background cells at once, and what became of them."""

from __future__ import annotations

from kernels import NotebookKernel, until

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection


def run_all(kernel: NotebookKernel, cells: dict[str, str]) -> None:
    """Launch these cells, by their names, one after the other."""
    for name, source in cells.items():
        kernel.run(f"%%background {name}\n{source}")


def ended(store: TaskStore, count: int) -> dict[str, TaskRecord]:
    """The tasks by their names, once so many have ended."""

    def all_of_them() -> list[TaskRecord]:
        final = [task for task in store.tasks.select(Selection()) if task.state.is_final]
        return final if len(final) >= count else []

    tasks = until(all_of_them, timeout=60, message=f"the end of {count} tasks")
    return {task.name: task for task in tasks}


def printed(store: TaskStore, task: TaskRecord) -> str:
    """All that a task has printed and shown."""
    return b"".join(output.data for output in store.outputs.of(task.key)).decode()


def check_completed(store: TaskStore, tasks: dict[str, TaskRecord]) -> None:
    failed = {
        name: (task.reason, printed(store, task))
        for name, task in tasks.items()
        if task.state is not TaskState.COMPLETED
    }
    assert not failed
