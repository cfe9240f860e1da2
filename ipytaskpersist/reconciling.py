"""Bring the store up to date with what has happened to kernels and supervisors."""

from __future__ import annotations

from dataclasses import dataclass

from ipytaskpersist import environments, leftovers, problems
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.identity import ProcessIdentity
from ipytaskpersist.liveness import Death, Watch, find_dead, find_dead_supervisors
from ipytaskpersist.processes import Process, kill_tasks
from ipytaskpersist.records import (
    SILENT,
    ProcessRecord,
    SessionRecord,
    SupervisorRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.runners import telling
from ipytaskpersist.store import TaskStore
from ipytaskpersist.store.aside import take_in


@dataclass(frozen=True, slots=True)
class Loss:
    """A supervisor that has been found dead, and what became of its tasks."""

    supervisor: SupervisorRecord
    reason: str
    interrupted: int
    """How many of its tasks were running."""

    def in_words(self) -> str:
        """What to say of it, and what to do."""
        is_presumed = self.reason.startswith(SILENT)
        said = f"the supervisor gives {self.reason}" if is_presumed else f"the {self.reason}"
        if not self.interrupted:
            return f"{said}; it had no running task"
        is_one = self.interrupted == 1
        tasks, them = ("1 task", "it") if is_one else (f"{self.interrupted} tasks", "them")
        resume = "%bg_resume NUMBER" if is_presumed else "%bg_resume --all"
        return f"{said}: {tasks} interrupted; {resume} runs {them} again"


def reconcile(store: TaskStore, own_session: str, watch: Watch | None = None) -> list[Loss]:
    """Say of every session and supervisor that is gone that it ended, and of its tasks why.

    Processes that a dead supervisor has left are ended: nothing that they print is kept any more,
    and nobody would see them. `watch` is what this process has seen of those that are elsewhere.
    """
    watch = watch or Watch()
    take_in(store)
    dead = find_dead(store, except_session=own_session, watch=watch)
    for death in dead:
        session, at = death.owner, death.owner.heartbeat_at.timestamp()
        store.tasks.interrupt_session(session.id, "thread", death.reason, at, death.declared)
        store.sessions.end(session.id, death.reason, at)
        _end_left_by(store, death)
    found = (_lose_safely(store, each) for each in find_dead_supervisors(store, watch))
    losses = [loss for loss in found if loss is not None]
    _interrupt_unserved(store, own_session)
    if dead or losses:
        telling.tell(store)
    else:
        telling.tell_overdue(store)
    return losses


def _end_left_by(store: TaskStore, death: Death[SessionRecord]) -> None:
    """End what the threads of a kernel that died have started, unless its guard does.

    What cannot be looked at from here is left to a command that runs where the kernel did.
    """
    process = ProcessIdentity.recorded(death.owner)
    if not death.is_proven or not process.is_local or not process.start:
        return

    survivors = leftovers.end_of_kernel(process.pid, process.start)
    if survivors:
        problems.record_once(
            store.directory,
            f"session {store.sessions.short(death.owner.id)} has left {survivors}, which could "
            "not be ended; %bg_doctor says when it is still there",
        )


def end_left(*tasks: TaskRecord) -> int:
    """End the processes that interrupted tasks in threads have left. Returns how many.

    Raises `InvalidRequest` when some go on all the same.
    """
    interrupted = {
        task.id: task.label
        for task in tasks
        if task.state is TaskState.INTERRUPTED and task.runner == "thread"
    }
    if not interrupted:
        return 0
    count, survivors = leftovers.end(lambda mark: mark.task_id in interrupted)
    if survivors:
        raise InvalidRequest(
            f"what {', '.join(interrupted.values())} left when interrupted could not be ended: "
            f"{survivors}; end it, and try again"
        )
    return count


def _lose_safely(store: TaskStore, death: Death[SupervisorRecord]) -> Loss | None:
    """The same as `_lose`; what goes wrong with one supervisor is said, and is not the others'."""
    try:
        return _lose(store, death)
    except StoreError:
        raise
    except Exception as error:
        problems.record_once(
            store.directory,
            f"what the supervisor of session {store.sessions.short(death.owner.session)} has left "
            f"could not be ended ({type(error).__name__}: {error}); the next command tries again",
        )
        return None


def _lose(store: TaskStore, death: Death[SupervisorRecord]) -> Loss | None:
    """End what a supervisor has left, and say so. None while some of it goes on all the same."""
    supervisor, reason = death.owner, death.reason
    survivors: dict[str, str] = {}
    if reason == "supervisor died":
        left = store.processes.live_of(supervisor.key)
        survivors = kill_tasks((process.task_id, _leader(process)) for process in left)
    at = supervisor.heartbeat_at.timestamp()
    count = store.processes.interrupt(
        supervisor.key, reason, at, except_tasks=survivors, declared_dead=death.declared
    )
    for task_id, which in survivors.items():
        problems.record_once(
            store.directory,
            f"task {task_id} counts as running though its supervisor is dead: {which} could not "
            "be ended; end it, and the next command says what became of the task",
        )
    if survivors and not count:
        return None
    if not survivors:
        store.supervisors.end(supervisor.key, reason, at)
    return Loss(supervisor, reason, count)


def _leader(process: ProcessRecord) -> Process | None:
    """The task's own process, as it was recorded; None where its pid may be another's here."""
    pid = process.pid_here
    if pid is None or not process.process_start:
        return None
    return Process(pid, 0, pid, process.process_start, is_zombie=False)


def _interrupt_unserved(store: TaskStore, own_session: str) -> None:
    """Tasks that wait for a supervisor whose kernel is gone wait in vain.

    While the kernel is there it starts another; until then nobody else can cancel what waits. One
    that has only given no sign of life may come back, and its tasks have lost nothing by waiting.
    """
    for session_id in store.supervisors.orphaned_sessions():
        store.tasks.cancel_pending(session_id)
        session = store.sessions.get(session_id)
        reason = None if session is None else session.end_reason
        if session_id == own_session or session is None or reason is None:
            continue
        if not reason.startswith(SILENT):
            store.tasks.interrupt_pending(session_id, reason, session.heartbeat_at.timestamp())
            forget_environments(store)


def forget_environments(store: TaskStore) -> None:
    """Remove the environments that wait for tasks which do not wait any more."""

    def is_waiting(task_id: str) -> bool | None:
        task = store.tasks.by_id(task_id)
        return None if task is None else task.state is TaskState.PENDING

    environments.remove_left(store.directory, is_waiting)
