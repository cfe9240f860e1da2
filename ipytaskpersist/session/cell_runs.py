"""Find out whether an earlier run of a cell is still running, and do what the user wants then."""

from __future__ import annotations

from dataclasses import dataclass

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

REPLACE_S = 1.0
"""Time beyond the grace that a launch waits for the end of the task that it replaces."""
ALSO_RUNNING = "also_running"
"""Member of a task's provenance: the ids of the earlier runs of its cell that still ran, in one
text."""


@dataclass(frozen=True, slots=True)
class CellRun:
    """The run of a cell that launches a task."""

    source: str
    name: str
    is_whole: bool
    """Whether the task is the whole cell, as below ``%%background``."""
    cell_id: str | None
    execution_count: int
    session: str

    def is_again(self, task: TaskRecord) -> bool:
        """Return whether a task is from an earlier run of the same cell."""
        if task.is_call or (
            (task.session, task.execution_count) == (self.session, self.execution_count)
        ):
            return False
        is_same_source = task.source == self.source
        if task.cell_id and self.cell_id:
            return task.cell_id == self.cell_id and (self.is_whole or is_same_source)
        return is_same_source and task.name == self.name


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
        key = self._session.notebook_key()
        if key is None or active_task.get() is not None or not self._matching(key, run):
            return []
        self._runners.reconcile()  # the kernel of a live task may be gone
        return self._matching(key, run)

    def _matching(self, notebook_key: int, run: CellRun) -> list[TaskRecord]:
        tasks = self._store.tasks
        live = tasks.of_keys(tasks.live(notebook_key))
        return sorted(filter(run.is_again, live), key=lambda task: task.number)

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
