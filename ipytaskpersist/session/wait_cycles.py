"""Detect tasks of this process that wait for each other, and so would never end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.running.running_task import active_task

INSTEAD = "give the wait a timeout, or wait in the notebook"


def refuse_own(tasks: Sequence[TaskRecord]) -> None:
    """Raise `InvalidRequest` if the calling task is one of these: it would wait forever."""
    active = active_task.get()
    for task in tasks:
        if active is not None and task.id == active.record.id:
            raise InvalidRequest(f"task {task.label} cannot wait for its own end; {INSTEAD}")


class Waits:
    """The waits without a timeout by which tasks of this process keep themselves from ending."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: dict[str, Sequence[TaskRecord]] = {}
        """The tasks that each task waits for, by its id."""

    @contextmanager
    def endless(self, tasks: Sequence[TaskRecord]) -> Iterator[None]:
        """Register that the calling task waits for these unfinished tasks without a timeout.

        Raise `InvalidRequest` if one of them waits for it. A thread started by a task may wait for
        anything: the task can still end.
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
