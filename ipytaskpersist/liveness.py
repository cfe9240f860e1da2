"""Decide which sessions and supervisors are still alive. The only place that does."""

from __future__ import annotations

from datetime import UTC, datetime

from ipytaskpersist.identity import ProcessIdentity, boot_id, host_name
from ipytaskpersist.records import SessionRecord, SupervisorRecord
from ipytaskpersist.store import TaskStore

SILENCE_S = 120.0
"""After how long without a heartbeat a session on another host counts as gone."""
PROCESS_NAMES = {"kernel": "kernel", "terminal": "IPython", "program": "process"}


def find_dead(store: TaskStore, *, except_session: str) -> list[tuple[SessionRecord, str]]:
    """The sessions that did not say how they ended and are gone, or left live tasks, with why."""
    with_tasks = store.sessions.with_live_tasks()
    candidates = {session.id: session for session in (*store.sessions.unfinished(), *with_tasks)}
    candidates.pop(except_session, None)
    has_tasks = {session.id for session in with_tasks}
    alive: dict[ProcessIdentity, bool] = {}
    dead = []
    for session in candidates.values():
        reason = session.end_reason or _cause(session, session.id in has_tasks, alive)
        if reason is not None:
            dead.append((session, reason))
    return dead


def find_dead_supervisors(store: TaskStore) -> list[tuple[SupervisorRecord, str]]:
    """The supervisors that did not say how they ended and are gone, with why."""
    found = ((each, _gone(each, "supervisor died", {})) for each in store.supervisors.unfinished())
    return [(supervisor, reason) for supervisor, reason in found if reason is not None]


def _cause(
    session: SessionRecord, has_tasks: bool, alive: dict[ProcessIdentity, bool]
) -> str | None:
    """Why the session is gone; None while it is alive, or nobody can tell."""
    if session.host != host_name() and not has_tasks:
        return None  # only a session with running tasks sends heartbeats
    return _gone(session, f"{PROCESS_NAMES[session.front_end]} died", alive)


def _gone(
    owner: SessionRecord | SupervisorRecord, died: str, alive: dict[ProcessIdentity, bool]
) -> str | None:
    process = ProcessIdentity(owner.host, owner.boot_id, owner.pid, owner.process_start)
    if not process.is_local:
        silent_s = (datetime.now(UTC) - owner.heartbeat_at).total_seconds()
        since = f"{owner.heartbeat_at:%Y-%m-%d %H:%M} UTC"
        return None if silent_s < SILENCE_S else f"no sign of life from {owner.host} since {since}"
    if owner.boot_id != boot_id():
        return "machine rebooted"
    if process not in alive:
        alive[process] = _may_be_alive(process)
    return None if alive[process] else died


def _may_be_alive(process: ProcessIdentity) -> bool:
    try:
        return process.is_alive
    except OSError:
        return True  # this process cannot look at any other: that is no death of theirs
