"""Find out whether an earlier run of a cell is still running, and do what the user wants then."""

from __future__ import annotations

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.session.changing import TaskChanges
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.requests import ASK, IF_RUNNING, REPLACE, Request
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.session.task_settings import TaskSettings
from ipytaskpersist.session.waiting import Waiting
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import CellRun

REPLACE_S = 1.0
"""Time beyond the grace that a launch waits for the end of the task that it replaces."""
ALSO_RUNNING = "also_running"
"""Member of a task's provenance: the ids of the earlier runs of its cell that still ran, in one
text."""


class CellRuns:
    """The running tasks of a cell that is run again."""

    def __init__(
        self,
        settings: TaskSettings,
        store: TaskStore,
        session: OwnSession,
        runners: Runners,
        changes: TaskChanges,
        waiting: Waiting,
    ) -> None:
        self._settings = settings
        self._store = store
        self._session = session
        self._runners = runners
        self._changes = changes
        self._waiting = waiting

    def wanted(self, request: Request) -> str:
        """Return what to do if the cell's task still runs. Raise `InvalidRequest`."""
        wanted = request.if_running or self._settings.if_running
        if wanted not in IF_RUNNING:
            raise InvalidRequest(f"if_running is one of {', '.join(IF_RUNNING)}, not {wanted!r}")
        return wanted

    def earlier(self, run: CellRun) -> list[TaskRecord]:
        """Return the live tasks of earlier runs of this cell, oldest first."""
        key, find = self._session.notebook_key(), self._store.tasks.earlier_runs
        if key is None or active_task.get() is not None or not find(key, run):
            return []
        self._runners.reconcile()  # the kernel of a live task may be gone
        return find(key, run)

    def make_room(self, request: Request) -> dict[str, str]:
        """Cancel the tasks that a launch replaces, and return what to note about the others.

        A task that cannot be ended in time runs on beside the new one.
        """
        earlier = request.earlier
        if request.if_running == REPLACE:
            asked = [task for task in earlier if self._changes.cancel(task)]
            ended = self._waiting.wait(asked, self._settings.cancel_grace_s + REPLACE_S)
            earlier = [task for task in ended if not task.state.is_final]
        elif request.if_running != ASK:
            earlier = []
        return {ALSO_RUNNING: " ".join(task.id for task in earlier)} if earlier else {}


def also_running(store: TaskStore, task: TaskRecord) -> list[TaskRecord]:
    """Return the earlier runs of a task's cell that still run beside it, oldest first."""
    if task.state.is_final:
        return []
    found = map(store.tasks.by_id, str(task.provenance.get(ALSO_RUNNING, "")).split())
    return [each for each in found if each is not None and not each.state.is_final]
