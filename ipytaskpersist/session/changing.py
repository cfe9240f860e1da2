"""Cancel tasks, clear them from the list, and delete them."""

from __future__ import annotations

from collections.abc import Sequence

from ipytaskpersist.base.records import LIVE_STATES, SessionRecord, TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import UpkeepTimer
from ipytaskpersist.runners import reconciling
from ipytaskpersist.session.finding import TaskFinder
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.session.waiting import Waiting
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.values.payloads import Payloads

CLEAR_S = 3.0
"""Time that clearing waits for the tasks that it cancels."""


class TaskChanges:
    """Cancels, clears and deletes tasks."""

    def __init__(
        self,
        store: TaskStore,
        archives: Archives,
        payloads: Payloads,
        upkeep: UpkeepTimer,
        session: OwnSession,
        tasks: TaskFinder,
        waiting: Waiting,
        runners: Runners,
    ) -> None:
        self._store = store
        self._archives = archives
        self._payloads = payloads
        self._upkeep = upkeep
        self._session = session
        self._tasks = tasks
        self._waiting = waiting
        self._runners = runners

    def cancel(self, task: TaskRecord) -> bool:
        """Request a task's cancellation, wherever it runs. Return whether it was still live."""
        if task.archive:
            return False
        self._store.require_writable()
        asked = self._store.tasks.request_cancel(task.key)
        if asked and (threads := self._runners.existing_threads) is not None:
            threads.cancel(task.key)
        return asked

    def end_left(self, task: TaskRecord) -> int:
        """End the processes that an interrupted task has left here. Return their number.

        Raise `InvalidRequest` for processes that could not be ended.
        """
        return reconciling.end_left(task)

    def clear(self) -> tuple[int, int]:
        """Cancel this session's live tasks and take ended ones off the default list.

        Return how many were cancelled, and how many were taken off.
        """
        key = self._session.notebook_key()
        if key is None:
            return 0, 0
        self._store.require_writable()
        self._runners.reconcile()
        mine = Selection(key, LIVE_STATES, self._session.identity.id)
        cancelled = [task for task in self._store.tasks.select(mine) if self.cancel(task)]
        self._waiting.wait(cancelled, timeout_s=CLEAR_S)
        cleared = self._store.tasks.clear(key)
        return len(cancelled), cleared

    def delete(self, tasks: Sequence[TaskRecord]) -> None:
        """Remove ended tasks for good, with everything stored about them."""
        self._store.require_own_version()
        for task in tasks:
            if not task.state.is_final:
                raise InvalidRequest(
                    f"task {task.label} is {task.state}; cancel it first: %bg_cancel {task.number}"
                )
            self._refuse_needed(task)
        reconciling.end_left(*tasks)  # no command would find them later
        self._archives.delete(tasks)
        threads = self._runners.existing_threads
        for task in tasks:
            self._payloads.delete(task.id)
            if threads is not None and not task.archive:
                threads.forget(task.key)
        self._upkeep.soon()

    def archive(self, tasks: Sequence[TaskRecord]) -> dict[str, int]:
        """Move ended tasks to the archives of their months. Return how many went into each.

        Tasks that are archived already stay where they are.
        """
        for task in tasks:
            if not task.state.is_final:
                raise InvalidRequest(
                    f"task {task.label} is {task.state.value}; it can be archived when it has ended"
                )
            self._refuse_needed(task)
        return self._archives.archive([task for task in tasks if not task.archive])

    def _refuse_needed(self, task: TaskRecord) -> None:
        """Raise `InvalidRequest` if a later try or run of a task needs what it was given."""
        last = task if task.archive else self._store.tasks.last_try(task)
        if not last.state.is_final:
            raise InvalidRequest(
                f"task {task.label} is tried again as task {last.label}; cancel that first: "
                f"%bg_cancel {last.number}"
            )
        following = None if task.archive else self._store.tasks.next_run(task)
        if following is not None and following.inputs_of == task.id:
            raise InvalidRequest(
                f"task {task.label} has what task {following.label} is to be given, which is "
                f"due by the same schedule; cancel that first: %bg_cancel {following.number}"
            )

    def delete_session(self, session: SessionRecord) -> None:
        """Remove an ended session's tasks, and the session itself, for good."""
        self.delete(self._tasks.of_session(session))
        if session.ended_at is not None:
            self._store.sessions.delete(session.id)
            for archive in self._archives.all():
                archive.sessions.delete(session.id)
