"""Update the store with what has happened to kernels and supervisors."""

from __future__ import annotations

from dataclasses import dataclass

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.process_tree import Process, kill_tasks
from ipytaskpersist.base.records import (
    SILENT,
    ProcessRecord,
    SessionRecord,
    SupervisorRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.notify import dispatch
from ipytaskpersist.runners.liveness import Death, Watch, find_dead, find_dead_supervisors
from ipytaskpersist.runners.starting import start_supervisor
from ipytaskpersist.store import environments, problems
from ipytaskpersist.store.aside import take_in
from ipytaskpersist.store.task_store import TaskStore


@dataclass(frozen=True, slots=True)
class Loss:
    """A supervisor that was found dead, and what became of its tasks."""

    supervisor: SupervisorRecord
    reason: str
    interrupted: int
    """How many of its tasks were running."""
    tried_again: int = 0
    """How many of these are tried again."""

    def in_words(self) -> str:
        """Return a description of the loss, with what to do about it."""
        is_presumed = self.reason.startswith(SILENT)
        said = f"the supervisor gives {self.reason}" if is_presumed else f"the {self.reason}"
        if not self.interrupted:
            return f"{said}; it had no running task"
        is_one = self.interrupted == 1
        if self.tried_again == self.interrupted:
            which = (
                "1 task interrupted, and tried"
                if is_one
                else (f"{self.interrupted} tasks interrupted, and all tried")
            )
            return f"{said}: {which} again"
        tasks, them = ("1 task", "it") if is_one else (f"{self.interrupted} tasks", "them")
        resume = "%bg_resume NUMBER" if is_presumed else "%bg_resume --all"
        return f"{said}: {tasks} interrupted; {resume} runs {them} again"


def reconcile(store: TaskStore, own_session: str, watch: Watch | None = None) -> list[Loss]:
    """Record the end of every session and supervisor that is gone, and of its tasks.

    Processes left by a dead supervisor are ended: their output is no longer recorded, and they
    would run unseen. `watch` holds this process's observations of owners elsewhere.
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
    _adopt_or_interrupt(store, own_session)
    if dead or losses:
        dispatch.notify(store)
    else:
        dispatch.notify_overdue(store)
    return losses


def _end_left_by(store: TaskStore, death: Death[SessionRecord]) -> None:
    """End the processes left by the threads of a dead kernel, unless its guard does.

    If its processes cannot be seen from here, a command on the kernel's own host will end them.
    """
    process = death.owner.process
    if not death.is_proven or not process.is_local or not process.start:
        return

    survivors = leftover_processes.end_of_kernel(process.pid, process.start)
    if survivors:
        problems.record_once(
            store.directory,
            f"session {store.sessions.short(death.owner.id)} has left {survivors}, which could "
            "not be ended; %bg_doctor says when it is still there",
        )


def end_left(*tasks: TaskRecord) -> int:
    """End the processes that interrupted thread tasks have left. Returns how many.

    Raises `InvalidRequest` if some survive.
    """
    interrupted = {
        task.id: task.label
        for task in tasks
        if task.state is TaskState.INTERRUPTED and task.runner == "thread"
    }
    if not interrupted:
        return 0
    count, survivors = leftover_processes.end(lambda mark: mark.task_id in interrupted)
    if survivors:
        raise InvalidRequest(
            f"what {', '.join(interrupted.values())} left when interrupted could not be ended: "
            f"{survivors}; end it, and try again"
        )
    return count


def _lose_safely(store: TaskStore, death: Death[SupervisorRecord]) -> Loss | None:
    """Call `_lose`. A failure with one supervisor is reported and does not affect the others."""
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
    """End a supervisor's processes and record its loss. Returns None while some survive."""
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
    forget_environments(store)
    return Loss(supervisor, reason, count, store.processes.tried_again(supervisor.key))


def _leader(process: ProcessRecord) -> Process | None:
    """Return the task's own process as recorded. None if its pid may be another process's here."""
    pid = process.pid_here
    if pid is None or not process.process_start:
        return None
    return Process(pid, 0, pid, process.process_start, is_zombie=False)


def _adopt_or_interrupt(store: TaskStore, own_session: str) -> None:
    """Start a supervisor for tasks that wait although their kernel and their supervisor are gone.

    Those that were about to start are interrupted: another supervisor lacks their environment. A
    living kernel starts a new supervisor, but until then only this function can cancel its waiting
    tasks. A kernel that is merely silent may come back, and its tasks lose nothing by waiting.
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
            _adopt(store, session)


def _adopt(store: TaskStore, session: SessionRecord) -> None:
    """Start a supervisor for the waiting tasks of a session without kernel and supervisor.

    And for what runs at places. On their own machine alone. Their environments are kept whole, so
    any supervisor can start them.
    """
    if session.host != ProcessIdentity.own().host:
        return
    if store.processes.may_be_adopted(session.id) or store.elsewhere.are_left(session.id):
        try:
            start_supervisor(store, session.id)
        except StoreError as error:
            problems.record_once(
                store.directory,
                f"tasks of session {store.sessions.short(session.id)} wait without it, but "
                f"{error}; the next command tries to start it again",
            )


def forget_environments(store: TaskStore) -> None:
    """Remove the stored environments of tasks that will not begin, or not again."""
    kept = environments.kept(store.directory)
    if not kept:
        return
    # In this order, because a task may be recorded meanwhile.
    known = store.tasks.existing([*kept])
    for task_id in kept - store.tasks.environments_needed():
        if task_id in known or not environments.is_new(store.directory, task_id):
            environments.remove(store.directory, task_id)
