"""Wait until tasks have ended, wherever they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.running.running_task import FOREGROUND, active_task
from ipytaskpersist.session.finding import TaskFinder
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.session.wait_cycles import Waits
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.task_store import TaskStore

POLL_S = 0.02
RECONCILE_S = 1.0


class Waiting:
    """Waits for tasks."""

    def __init__(self, store: TaskStore, tasks: TaskFinder, runners: Runners) -> None:
        self._store = store
        self._tasks = tasks
        self._runners = runners
        self._waits = Waits()

    def wait(
        self,
        tasks: Sequence[TaskRecord],
        timeout_s: float | None = None,
        on_change: Callable[[list[TaskRecord]], None] | None = None,
    ) -> list[TaskRecord]:
        """Wait until all have ended, at most for this time, and return their current records.

        `on_change` is called at once, whenever the store has changed, and every second. Raise
        `InvalidRequest` for a task that would wait forever: for itself, or for one that waits for
        it.
        """
        with FOREGROUND.waiting(), self._not_in_a_circle(tasks, timeout_s):
            return self._wait(tasks, timeout_s, on_change)

    def _not_in_a_circle(
        self, tasks: Sequence[TaskRecord], timeout_s: float | None
    ) -> AbstractContextManager[None]:
        if timeout_s is not None or active_task.get() is None:
            return nullcontext()
        now = [self._tasks.refresh(task) for task in tasks]
        return self._waits.endless([task for task in now if not self._is_over(task)])

    def _wait(
        self,
        tasks: Sequence[TaskRecord],
        timeout_s: float | None,
        on_change: Callable[[list[TaskRecord]], None] | None,
    ) -> list[TaskRecord]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        reconciled_at, watch, shown_at = time.monotonic(), CommitWatch(self._store.database), 0.0
        current = list(tasks)
        while True:
            is_new = watch.has_news()
            is_old = time.monotonic() - shown_at > 1
            if is_old or is_new or any(self._just_ended(task) for task in current):
                shown_at = time.monotonic()
                current = [
                    task if self._is_over(task) else self._tasks.last_try(task) for task in current
                ]
                if on_change is not None:
                    on_change(current)
            if all(self._is_over(task) for task in current):
                return current
            if deadline is not None and time.monotonic() >= deadline:
                return current
            if time.monotonic() - reconciled_at > RECONCILE_S:
                self._runners.reconcile()
                self._refuse_to_wait_in_vain()
                reconciled_at = time.monotonic()
            self._pause(current)

    def _refuse_to_wait_in_vain(self) -> None:
        """Raise `StoreNewer` if the store no longer records the ends of this version's tasks."""
        if self._store.is_taken_over:
            self._store.require_writable()

    def _is_over(self, task: TaskRecord) -> bool:
        """Return whether a task has ended; of this process's own, its runner decides."""
        runner = self._runners.existing_threads
        is_own = (
            runner is not None and runner.owns(task.key) and not runner.ended(task.key).is_set()
        )
        return task.state.is_final and not (task.declared_dead and is_own and not task.archive)

    def _just_ended(self, task: TaskRecord) -> bool:
        runner = self._runners.existing_threads
        return (
            not task.state.is_final
            and runner is not None
            and runner.owns(task.key)
            and runner.ended(task.key).is_set()
        )

    def _pause(self, tasks: list[TaskRecord]) -> None:
        """Sleep briefly, but wake at once when a task of this process ends."""
        live = [task for task in tasks if not self._is_over(task)]
        threads = self._runners.existing_threads
        if live and threads is not None and threads.owns(live[0].key):
            threads.ended(live[0].key).wait(POLL_S)
        else:
            time.sleep(POLL_S)
