"""Bring the store up to date with what has happened to kernels and supervisors."""

from __future__ import annotations

from dataclasses import dataclass

from ipytaskpersist import environments
from ipytaskpersist.liveness import find_dead, find_dead_supervisors
from ipytaskpersist.processes import Process, kill_tasks
from ipytaskpersist.records import ProcessRecord, SupervisorRecord, TaskState
from ipytaskpersist.runners import telling
from ipytaskpersist.store import TaskStore


@dataclass(frozen=True, slots=True)
class Loss:
    """A supervisor that has been found dead, and what became of its tasks."""

    supervisor: SupervisorRecord
    reason: str
    interrupted: int
    """How many of its tasks were running."""


def reconcile(store: TaskStore, own_session: str) -> list[Loss]:
    """Say of every session and supervisor that is gone that it ended, and of its tasks why.

    Processes that a dead supervisor has left are ended: nothing that they print is kept any more,
    and nobody would see them.
    """
    dead = find_dead(store, except_session=own_session)
    for session, reason in dead:
        at = session.heartbeat_at.timestamp()
        store.tasks.interrupt_session(session.id, "thread", session.end_reason or reason, at)
        store.sessions.end(session.id, reason, at)
    losses = [_lose(store, *found) for found in find_dead_supervisors(store)]
    _interrupt_unserved(store, own_session)
    if dead or losses:
        telling.tell(store)
    else:
        telling.tell_overdue(store)
    return losses


def _lose(store: TaskStore, supervisor: SupervisorRecord, reason: str) -> Loss:
    if reason == "supervisor died":
        left = store.processes.live_of(supervisor.key)
        kill_tasks((process.task_id, _leader(process)) for process in left)
    at = supervisor.heartbeat_at.timestamp()
    count = store.processes.interrupt(supervisor.key, reason, at)
    store.supervisors.end(supervisor.key, reason, at)
    return Loss(supervisor, reason, count)


def _leader(process: ProcessRecord) -> Process | None:
    """The task's own process, as it was recorded."""
    if process.pid is None or process.process_start is None:
        return None
    return Process(process.pid, 0, process.pid, process.process_start, is_zombie=False)


def _interrupt_unserved(store: TaskStore, own_session: str) -> None:
    """Tasks that wait for a supervisor whose kernel is gone wait in vain.

    While the kernel is there it starts another; until then nobody else can cancel what waits.
    """
    for session_id in store.supervisors.orphaned_sessions():
        store.tasks.cancel_pending(session_id)
        session = store.sessions.get(session_id)
        if session_id != own_session and session is not None and session.end_reason is not None:
            store.tasks.interrupt_pending(
                session_id, session.end_reason, session.heartbeat_at.timestamp()
            )
            forget_environments(store)


def forget_environments(store: TaskStore) -> None:
    """Remove the environments that wait for tasks which do not wait any more."""

    def is_waiting(task_id: str) -> bool | None:
        task = store.tasks.by_id(task_id)
        return None if task is None else task.state is TaskState.PENDING

    environments.remove_left(store.directory, is_waiting)
