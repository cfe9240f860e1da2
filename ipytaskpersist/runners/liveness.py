"""Decide which sessions and supervisors are still alive. No other module does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import SILENT, SessionRecord, SupervisorRecord, TaskRecord
from ipytaskpersist.base.retries import REBOOTED
from ipytaskpersist.store.task_store import TaskStore

SILENCE_S = 180.0
"""How long a heartbeat must be seen unchanged before its sender counts as dead.

By then, twelve are missing. With less than 150 s, a live process would be declared dead after a
call that blocks the interpreter for two minutes, or while the store is locked for as long.
"""
PROCESS_NAMES = {"kernel": "kernel", "terminal": "IPython", "program": "process"}
Owner = TypeVar("Owner", bound=SessionRecord | SupervisorRecord)


@dataclass(frozen=True, slots=True)
class Death(Generic[Owner]):
    """A session or supervisor that this process judges dead."""

    owner: Owner
    reason: str
    is_proven: bool
    """Whether the process is certainly gone. Otherwise it is only silent."""

    @property
    def declared(self) -> str:
        """The value of `TaskRecord.declared_dead` for this death."""
        return "proven" if self.is_proven else "presumed"


class Watch:
    """Observed heartbeats of the owners that this process cannot inspect.

    Only a heartbeat that changes under observation proves life, because its timestamp comes from
    another machine's clock. So the first look proves nothing, and declares no owner dead.
    """

    def __init__(
        self, silence_s: float = SILENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._seen: dict[str | int, tuple[object, float]] = {}
        """The last sign of life of each owner, and when this process first saw it."""

    def is_silent(self, owner: str | int, sign: object) -> bool:
        """Whether an owner's last sign of life has been unchanged for too long."""
        now = self._clock()
        known, since = self._seen.get(owner, (None, now))
        if known != sign:
            since = now
        self._seen[owner] = sign, since
        return now - since >= self._silence_s

    def forget_others(self, owners: Collection[str | int], kind: type) -> None:
        """Forget other owners with keys of this kind: they may be silent from now on."""
        self._seen = {
            owner: seen
            for owner, seen in self._seen.items()
            if owner in owners or not isinstance(owner, kind)
        }


def find_dead(
    store: TaskStore, *, except_session: str, watch: Watch | None = None
) -> list[Death[SessionRecord]]:
    """Return the sessions that are gone, with the reason.

    These are the sessions without a recorded end, and those that ended but left live tasks. `watch`
    holds earlier observations. Without it, no session is found dead by silence.
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
            # A launch is a sign of life too: before it, there may have been no heartbeat for a long
            # time.
            sign = session.heartbeat_at, store.sessions.latest_task(session.id)
            death = _presumed(session, session.id, sign, watch)
        found.append(death)
    return [death for death in found if death is not None]


def _died(session: SessionRecord) -> str:
    return f"{PROCESS_NAMES[session.front_end]} died"


def _said(session: SessionRecord) -> Death[SessionRecord] | None:
    """Return a session's recorded end, if it has one although it left live tasks."""
    reason = session.end_reason
    return None if reason is None else Death(session, reason, not reason.startswith(SILENT))


def find_dead_supervisors(
    store: TaskStore, watch: Watch | None = None
) -> list[Death[SupervisorRecord]]:
    """Return the supervisors that are gone without a recorded end, with the reason."""
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
    """Whether this process cannot judge the owner's life by its pid."""
    shared = store.database.is_shared_by_hosts
    return owner.process.is_out_of_sight(shared=shared)


def _seen(
    store: TaskStore, owner: Owner, died: str, alive: dict[ProcessIdentity, bool]
) -> Death[Owner] | None:
    """Return the owner's proven death, where this process can inspect its process."""
    process = owner.process
    if process.is_of_earlier_boot(shared=store.database.is_shared_by_hosts):
        return Death(owner, REBOOTED, is_proven=True)
    if is_out_of_sight(store, owner):
        return None
    if process not in alive:
        alive[process] = process.may_be_alive
    if alive[process]:
        return None
    is_rebooted = process_tree.is_from_before_boot(process.start)
    return Death(owner, REBOOTED if is_rebooted else died, is_proven=True)


def _presumed(owner: Owner, key: str | int, sign: object, watch: Watch) -> Death[Owner] | None:
    """Return the owner's presumed death, if it has been silent for too long."""
    if not watch.is_silent(key, sign):
        return None
    since = f"{owner.heartbeat_at:%Y-%m-%d %H:%M} UTC"
    return Death(owner, f"{SILENT} from {owner.host} since {since}", is_proven=False)


def is_proven(store: TaskStore, task: TaskRecord) -> bool:
    """Whether the task's owner, once presumed dead, has since been proven dead."""
    process = store.processes.get(task.key)
    key = None if process is None else process.supervisor_key
    owner = store.sessions.get(task.session) if key is None else store.supervisors.get(key)
    return owner is not None and _seen(store, owner, "", {}) is not None
