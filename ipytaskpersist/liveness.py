"""Decide which sessions and supervisors are still alive. The only place that does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from ipytaskpersist import processes
from ipytaskpersist.identity import ProcessIdentity
from ipytaskpersist.records import SILENT, SessionRecord, SupervisorRecord, TaskRecord
from ipytaskpersist.store import TaskStore

SILENCE_S = 180.0
"""How long a heartbeat must not have changed, as one watches, before its sender counts as dead.

Twelve of them are missing then. Less than 150 s would take a call for death that keeps the
interpreter for two minutes, or a store that is locked for as long."""
PROCESS_NAMES = {"kernel": "kernel", "terminal": "IPython", "program": "process"}
Owner = TypeVar("Owner", bound=SessionRecord | SupervisorRecord)


@dataclass(frozen=True, slots=True)
class Death(Generic[Owner]):
    """A session or a supervisor that is dead, as far as this process can tell."""

    owner: Owner
    reason: str
    is_proven: bool
    """Whether its process is certainly gone; else it has only given no sign of life."""

    @property
    def declared(self) -> str:
        """What the store keeps of that: `TaskRecord.declared_dead`."""
        return "proven" if self.is_proven else "presumed"


class Watch:
    """What this process has seen of the heartbeats of those at which it cannot look.

    Only whether a heartbeat changes while one watches says anything: its time is that of another
    machine's clock. So who looks for the first time knows nothing, and declares nobody dead.
    """

    def __init__(
        self, silence_s: float = SILENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._seen: dict[str | int, tuple[object, float]] = {}
        """The last sign of life of each, and when this process has first seen it."""

    def is_silent(self, owner: str | int, sign: object) -> bool:
        """Whether this has been the last sign of life of an owner for too long."""
        now = self._clock()
        known, since = self._seen.get(owner, (None, now))
        if known != sign:
            since = now
        self._seen[owner] = sign, since
        return now - since >= self._silence_s

    def forget_others(self, owners: Collection[str | int], kind: type) -> None:
        """Forget the owners of this kind of key that are not among these: they may be silent."""
        self._seen = {
            owner: seen
            for owner, seen in self._seen.items()
            if owner in owners or not isinstance(owner, kind)
        }


def find_dead(
    store: TaskStore, *, except_session: str, watch: Watch | None = None
) -> list[Death[SessionRecord]]:
    """The sessions that did not say how they ended and are gone, or left live tasks, with why.

    `watch` is what this process has seen before; without it none is found dead by its silence.
    """
    watch = watch or Watch()
    with_tasks = store.sessions.with_live_tasks()
    candidates = {session.id: session for session in (*store.sessions.unfinished(), *with_tasks)}
    candidates.pop(except_session, None)
    has_tasks = {session.id for session in with_tasks}
    watch.forget_others(has_tasks, str)
    alive: dict[ProcessIdentity, bool] = {}
    found = []
    for session in candidates.values():
        death = _said(session) or _seen(store, session, _died(session), alive)
        # Only a session with running tasks sends heartbeats.
        if death is None and session.id in has_tasks and is_out_of_sight(store, session):
            # To launch a task is a sign of life: before, there may have been none for a long time.
            sign = session.heartbeat_at, store.sessions.latest_task(session.id)
            death = _presumed(session, session.id, sign, watch)
        found.append(death)
    return [death for death in found if death is not None]


def _died(session: SessionRecord) -> str:
    return f"{PROCESS_NAMES[session.front_end]} died"


def _said(session: SessionRecord) -> Death[SessionRecord] | None:
    """What is known of its end already, though it has left live tasks."""
    reason = session.end_reason
    return None if reason is None else Death(session, reason, not reason.startswith(SILENT))


def find_dead_supervisors(
    store: TaskStore, watch: Watch | None = None
) -> list[Death[SupervisorRecord]]:
    """The supervisors that did not say how they ended and are gone, with why."""
    watch = watch or Watch()
    unfinished = store.supervisors.unfinished()
    out_of_sight = [each for each in unfinished if is_out_of_sight(store, each)]
    # Only a supervisor with running tasks sends heartbeats.
    watched = {each.key for each in out_of_sight if store.processes.has_live(each.key)}
    watch.forget_others(watched, int)
    seen = (_seen(store, each, "supervisor died", {}) for each in unfinished)
    presumed = (
        _presumed(each, each.key, each.heartbeat_at, watch)
        for each in out_of_sight
        if each.key in watched
    )
    return [death for death in (*seen, *presumed) if death is not None]


def is_out_of_sight(store: TaskStore, owner: SessionRecord | SupervisorRecord) -> bool:
    """Whether this process cannot tell by its pid whether the owner is alive."""
    shared = store.database.is_shared_by_hosts
    return ProcessIdentity.recorded(owner).is_out_of_sight(shared=shared)


def _seen(
    store: TaskStore, owner: Owner, died: str, alive: dict[ProcessIdentity, bool]
) -> Death[Owner] | None:
    """Its death, where this process can see it: it is certain."""
    process = ProcessIdentity.recorded(owner)
    if process.is_of_earlier_boot(shared=store.database.is_shared_by_hosts):
        return Death(owner, "machine rebooted", is_proven=True)
    if is_out_of_sight(store, owner):
        return None
    if process not in alive:
        alive[process] = process.may_be_alive
    if alive[process]:
        return None
    is_rebooted = processes.is_from_before_boot(process.start)
    return Death(owner, "machine rebooted" if is_rebooted else died, is_proven=True)


def _presumed(owner: Owner, key: str | int, sign: object, watch: Watch) -> Death[Owner] | None:
    """Its death, where all that can be said is that it has given no sign of life for long."""
    if not watch.is_silent(key, sign):
        return None
    since = f"{owner.heartbeat_at:%Y-%m-%d %H:%M} UTC"
    return Death(owner, f"{SILENT} from {owner.host} since {since}", is_proven=False)


def is_proven(store: TaskStore, task: TaskRecord) -> bool:
    """Whether the owner of a task, which was presumed dead, has been proven so meanwhile."""
    process = store.processes.get(task.key)
    key = None if process is None else process.supervisor_key
    owner = store.sessions.get(task.session) if key is None else store.supervisors.get(key)
    return owner is not None and _seen(store, owner, "", {}) is not None
