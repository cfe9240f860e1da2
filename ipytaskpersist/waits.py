"""Which task waits for which in this process: those that wait for each other would never end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ipytaskpersist.active import active_task
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.records import TaskRecord

INSTEAD = "give the wait a timeout, or wait in the notebook"


def refuse_own(tasks: Sequence[TaskRecord]) -> None:
    """Raise `InvalidRequest` where the calling task is one of these: its end would never come."""
    active = active_task.get()
    for task in tasks:
        if active is not None and task.id == active.record.id:
            raise InvalidRequest(f"task {task.label} cannot wait for its own end; {INSTEAD}")


class Waits:
    """The waits without a timeout by which tasks of this process keep themselves from ending."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: dict[str, Sequence[TaskRecord]] = {}
        """For which tasks each one waits, by its id."""

    @contextmanager
    def endless(self, tasks: Sequence[TaskRecord]) -> Iterator[None]:
        """While the calling task waits for these, which have not ended, however long it takes.

        Raises `InvalidRequest` where one of them waits for it. A thread that a task has started may
        wait for whatever it likes: the task can end all the same.
        """
        active = active_task.get()
        if active is None or not active.is_own_thread:
            yield
            return
        refuse_own(tasks)
        waiter = active.record
        try:
            with self._lock:
                self._refuse_circle(waiter, tasks)
                self._awaited[waiter.id] = tasks
            yield
        finally:
            self._awaited.pop(waiter.id, None)

    def _refuse_circle(self, waiter: TaskRecord, tasks: Sequence[TaskRecord]) -> None:
        ahead, seen = list(tasks), set()
        while ahead:
            task = ahead.pop()
            if task.id == waiter.id:
                first = tasks[0].label
                raise InvalidRequest(
                    f"task {waiter.label} cannot wait for task {first}, which waits for task "
                    f"{waiter.number}: neither would end; {INSTEAD}"
                )
            if task.id not in seen:
                seen.add(task.id)
                ahead.extend(self._awaited.get(task.id, ()))
