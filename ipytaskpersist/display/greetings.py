"""What became of a notebook's tasks since the last visit, when the extension is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ipytaskpersist.base.process_identity import host_name
from ipytaskpersist.base.records import LIVE_STATES, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.output.counts import OutputCounts, counts_of
from ipytaskpersist.session import missing_names
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Absence, Selection

VISITS = 8
"""Number of latest sessions that are examined; more are never open side by side."""
ENDED_SHOWN = 4
URGENCY = (
    TaskState.FAILED,
    TaskState.INTERRUPTED,
    TaskState.CANCELLED,
    TaskState.COMPLETED,
)
"""Order in which tasks are reported."""


@dataclass(frozen=True, slots=True)
class News:
    """What has become of the tasks of earlier sessions."""

    now: datetime
    since: datetime | None = None
    """Beginning of the absence in which tasks have ended; None if none has."""
    why: str = ""
    """How the last session ended: ``kernel restarted``."""
    ended_counts: Mapping[TaskState, int] = field(default_factory=dict)
    """Number of tasks that ended in each state since then."""
    ended: Sequence[TaskRecord] = ()
    """The first few of them, the most urgent first."""
    running: Sequence[TaskRecord] = ()
    """The tasks that are still running, oldest first."""
    counts: Mapping[TaskState, int] = field(default_factory=dict)
    """Number of all earlier tasks in each state."""
    outputs: Mapping[str, OutputCounts] = field(default_factory=dict)
    """How much the shown tasks have printed and displayed, by their ids."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """What to run before interrupted tasks are resumed, by their ids."""
    resumed: Mapping[str, TaskRecord] = field(default_factory=dict)
    """The tasks that were just run again, each with the id of the old task."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not self.counts and not self.ended and not self.resumed


class Greeting:
    """The greeting when the extension is loaded."""

    def __init__(self, manager: BackgroundTasks) -> None:
        """Record what reconciling changes, and begin the session. Raise `StoreError`."""
        self._manager = manager
        # Read this before the session goes on, which erases how it had ended.
        self._earlier = manager.store.sessions.get(manager.session.identity.id)
        self._session = manager.session.record()
        self._why = ""
        self._absence = self._reconcile()

    def _reconcile(self) -> Absence | None:
        """Bring the store up to date; return None if there was no absence."""
        tasks, key = self._manager.store.tasks, self._session.notebook_key
        live = tasks.live(key)
        self._manager.runners.reconcile()
        visits = self._visits()
        self._why = (visits[0].end_reason or "") if visits else ""
        since = left_at(visits, datetime.now(UTC))
        if since is None:
            return None
        return Absence(key, since.timestamp(), just_lost=[*live], cut_off=cut_off(visits))

    def _visits(self) -> list[SessionRecord]:
        """Return the earlier sessions, latest first. A reloaded session has only itself."""
        if self._earlier is not None:
            return [self._earlier]
        sessions = self._manager.store.sessions
        return sessions.visits(self._session.notebook_key, self._session.id, VISITS)

    def news(self, resumed: Mapping[str, TaskRecord]) -> News:
        """Return what to report, and what was just run again: new tasks by the old ones' ids."""
        store, session, now = self._manager.store, self._session, datetime.now(UTC)
        counts = store.tasks.counts(session.notebook_key, except_session=session.id)
        live = store.tasks.select(Selection(session.notebook_key, LIVE_STATES, cleared=False))
        running = [task for task in live if task.session != session.id]
        ended = [] if self._absence is None else store.tasks.ended_in(self._absence)
        ended.sort(key=lambda each: URGENCY.index(each[1]))
        found = (store.tasks.get(key) for key, _state in ended[:ENDED_SHOWN])
        shown = [task for task in found if task is not None]
        outputs = {task.id: counts_of(store, task.key) for task in shown}
        if self._absence is None or not shown:
            return News(now, running=running, counts=counts, outputs=outputs, resumed=resumed)
        needs = self._needs([task for task in shown if task.id not in resumed])
        since = datetime.fromtimestamp(self._absence.since, UTC)
        by_state = Counter(state for _key, state in ended)
        return News(
            now, since, self._why, by_state, shown, running, counts, outputs, needs, resumed
        )

    def _needs(self, tasks: Sequence[TaskRecord]) -> dict[str, str]:
        """Return what to run before those of these tasks are resumed that were interrupted."""
        shell, store = self._manager.shell, self._manager.store
        if shell is None:
            return {}
        lost = [task for task in tasks if task.state is TaskState.INTERRUPTED]
        found = {
            task.id: missing_names.missing(shell, store, task)
            for task in lost
            if task.runner == "thread" and not task.is_call
        }
        return {task.id: found[task.id].in_words(task) for task in lost if found.get(task.id)}


def left_at(visits: Sequence[SessionRecord], now: datetime) -> datetime | None:
    """Return the time of the last visit; now, if the latest earlier session is still running.

    None if there was no visit. An older session that was left open says nothing about a visit. A
    session on another machine says only when it was last heard of: a container that is thrown away
    does not report its end.
    """
    if not visits:
        return None
    if _is_open(visits[0]):
        return now
    return max(
        max(visit.heartbeat_at, visit.ended_at or visit.heartbeat_at)
        for visit in visits
        if not _is_open(visit)
    )


def _is_open(session: SessionRecord) -> bool:
    return session.ended_at is None and session.host == host_name()


def cut_off(visits: Sequence[SessionRecord]) -> list[str]:
    """Return the sessions whose end interrupted tasks that no later session has reported."""
    last_begun = max(visit.started_at for visit in visits) if visits else None
    return [
        visit.id
        for visit in visits
        if visit.ended_at is not None and last_begun is not None and visit.ended_at >= last_begun
    ]
