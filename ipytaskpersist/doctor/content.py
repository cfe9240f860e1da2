"""Checks of sessions, supervisors, tasks and processes, and of what they have left."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from ipytaskpersist.base import checkpoint_folders, leftover_processes, process_tree
from ipytaskpersist.base.leftover_processes import Mark
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import WARM, SessionRecord, SupervisorRecord, TaskState
from ipytaskpersist.doctor.files import how_to_repair, locked
from ipytaskpersist.doctor.findings import (
    LIVE,
    Examined,
    Finding,
    broken,
    ok,
    warning,
)
from ipytaskpersist.runners import liveness
from ipytaskpersist.store.aside import kept_elsewhere
from ipytaskpersist.store.examination import ExaminedStore
from ipytaskpersist.store.file.file_systems import journal_mode_for
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting

TASKS_COUNTED = 20
STUCK_S = 60.0
"""Silence after which a supervisor with tasks is stuck; it sends four heartbeats in this time."""


def check_content(examined: Examined) -> Iterator[Finding]:
    """Check that SQLite finds the store intact."""
    damage = examined.store.file.damage()
    if damage:
        yield broken(
            f"the store is damaged: {'; '.join(damage)}", how_to_repair(examined.directory)
        )
    else:
        yield ok("SQLite finds nothing wrong")


def check_journal(examined: Examined) -> Iterator[Finding]:
    """Check the journal mode against the file system."""
    mode, expected = examined.store.file.journal_mode, journal_mode_for(examined.directory.root)
    if (mode == "WAL") == (expected == "WAL"):
        yield ok(f"journal mode {mode}")
    else:
        yield warning(
            f"journal mode {mode}, where {expected} is right for this file system",
            "was the state directory moved? Make a backup there (%bg_backup) and restore it here",
        )


def check_lock(examined: Examined) -> Iterator[Finding]:
    """Check that the store can be written now."""
    if examined.store.file.can_be_written():
        yield ok("the store can be written now")
    else:
        yield locked(examined, "another program keeps the store from being written")


def check_sessions(examined: Examined) -> Iterator[Finding]:
    """Check that open sessions have a living kernel."""
    store = examined.store
    dead = liveness.find_dead(store, except_session=examined.own_session)
    for death in dead:
        count = live_tasks(store, death.owner.id, "thread")
        if count:
            yield warning(
                f"session {store.sessions.short(death.owner.id)} is gone ({death.reason}) and left "
                f"{formatting.counted(count, 'task')} "
                "that the store has as running",
                "the next command, %bg_list, marks them as interrupted",
            )
    if dead:
        yield ok(f"{formatting.counted(len(dead), 'session')} ended without saying so")
    uncertain = _out_of_sight(examined)
    for session in uncertain:
        yield ok(f"of session {store.sessions.short(session.id)} {_not_certain(session)}")
    if not dead and not uncertain:
        yield ok("every one that has not ended is alive")


def check_interpreters(examined: Examined) -> Iterator[Finding]:
    """Say how many of the last Python process tasks have begun in a warm interpreter."""
    found = Counter(examined.store.processes.interpreters(TASKS_COUNTED))
    if found:
        count, warm = found.total(), found.pop(WARM, 0)
        reasons = ", ".join(f"{times} {interpreter}" for interpreter, times in found.most_common())
        more = f"; {reasons}" if reasons else ""
        yield ok(f"of the last {count} Python process tasks, {warm} began in a warm one{more}")


def check_kept_aside(examined: Examined) -> Iterator[Finding]:
    """Name the files in which a process keeps data that the store could not take."""
    for file, process in kept_elsewhere(examined.store):
        yield ok(
            f"{file} is what process {process.pid} of {process.host} keeps since a newer version "
            "took over the store: the next command takes in what is new, and one that runs there "
            "removes it when the process has ended; delete it when that host or container is gone"
        )


def check_checkpoints(examined: Examined) -> Iterator[Finding]:
    """Say how much checkpoints take, and name those that no task goes on from any more."""
    directory = examined.directory
    places = checkpoint_folders.all_places(directory)
    used = examined.store.tasks.places_in_use(places) if places else set[str]()
    if used:
        size = formatting.size(checkpoint_folders.size_of(directory, used))
        yield ok(f"of {formatting.counted(len(used), 'task')}, {size}")
    for place in places:
        if place not in used:
            folder = checkpoint_folders.folder_of(directory, place)
            size = formatting.size(checkpoint_folders.size_of(directory, [place]))
            yield warning(
                f"{legible(str(folder))} ({size}) is that of no task any more",
                legible(f"rm -r {shlex.quote(str(folder))}"),
            )


def _out_of_sight(examined: Examined) -> list[SessionRecord]:
    """Return the sessions with running tasks whose liveness a single look cannot determine."""
    store = examined.store
    return [
        session
        for session in store.sessions.with_live_tasks()
        if session.id != examined.own_session
        and session.end_reason is None
        and liveness.is_out_of_sight(store, session)
    ]


def _not_certain(owner: SessionRecord | SupervisorRecord) -> str:
    return (
        f"it is not certain whether it is alive: it is on another host ({legible(owner.host)}) or "
        f"in another container, with its last heartbeat at {owner.heartbeat_at:%Y-%m-%d %H:%M:%S} "
        f"UTC by its clock; a notebook that watches for {liveness.SILENCE_S:.0f} s decides"
    )


def live_tasks(store: ExaminedStore, session_id: str, runner: str) -> int:
    """Return the number of live tasks of a session."""
    tasks = store.tasks.select(Selection(states=LIVE, session_prefix=session_id))
    return sum(task.runner == runner for task in tasks)


def check_supervisors(examined: Examined) -> Iterator[Finding]:
    """Check that the supervisors with live tasks are alive."""
    store = examined.store
    dead = liveness.find_dead_supervisors(store)
    for death in dead:
        count = len(store.processes.live_of(death.owner.key))
        yield warning(
            f"that of session {store.sessions.short(death.owner.session)} is gone "
            f"({death.reason}) and left {formatting.counted(count, 'task')}",
            "the next command, %bg_list, ends what is left of it and marks its tasks as "
            "interrupted; %bg_resume --all runs those again"
            if count
            else "the next command, %bg_list, notes that",
        )
    gone = {death.owner.key for death in dead}
    alive = [each for each in store.supervisors.unfinished() if each.key not in gone]
    for supervisor in alive:
        yield _supervisor(examined, supervisor)
    for session_id in store.supervisors.orphaned_sessions():
        yield warning(
            f"tasks of session {store.sessions.short(session_id)} wait, and it has none",
            "the next command, %bg_list, starts one; what was about to start is interrupted",
        )


def _supervisor(examined: Examined, supervisor: SupervisorRecord) -> Finding:
    count = len(examined.store.processes.live_of(supervisor.key))
    session = examined.store.sessions.short(supervisor.session)
    if liveness.is_out_of_sight(examined.store, supervisor):
        said = f"of that of session {session}, with {formatting.counted(count, 'task')}, "
        return ok(said + _not_certain(supervisor))
    silent_s = (examined.now - supervisor.heartbeat_at).total_seconds()
    who = f"that of session {session} (process {supervisor.pid})"
    if count and silent_s > STUCK_S:
        log = examined.directory.supervisor_log(supervisor.session)
        return warning(
            f"{who} has {formatting.counted(count, 'task')}, but gave its last sign of life "
            f"{formatting.age(silent_s)}{_state_of(supervisor)}",
            f"see {log}; 'kill -CONT {supervisor.pid}' if it is stopped, "
            f"'kill -KILL {supervisor.pid}' ends it, and %bg_list then its tasks",
        )
    return ok(f"{who} is alive, with {formatting.counted(count, 'task')}")


def _state_of(supervisor: SupervisorRecord) -> str:
    return "; it is stopped" if process_tree.is_stopped(supervisor.pid) else ""


def check_left_processes(examined: Examined) -> Iterator[Finding]:
    """Name the processes that tasks of dead kernels have left."""
    left: dict[Mark, list[process_tree.Process]] = {}
    for process, mark in leftover_processes.find(leftover_processes.of_gone_kernels()).items():
        if examined.store.sessions.find(mark.task_id.rpartition("-")[0]):
            left.setdefault(mark, []).append(process)
    for mark, found in left.items():
        yield _left(examined, mark, found)
    if not left:
        yield ok("no process of a task in a thread runs on after its kernel")


def _left(examined: Examined, mark: Mark, found: Sequence[process_tree.Process]) -> Finding:
    task = examined.store.tasks.by_id(mark.task_id)
    which = f"task {mark.task_id if task is None else task.label}"
    names = ", ".join(leftover_processes.in_words(each) for each in found)
    is_known = task is not None and task.state is TaskState.INTERRUPTED
    ends = f"%bg_cancel {mark.task_id}" if is_known else f"kill {' '.join(_pids(found))}"
    are, them = ("is", "it") if len(found) == 1 else ("are", "them")
    return warning(
        f"{legible(names)} {are} left of {which}, whose kernel (process {mark.kernel.pid}) is gone",
        f"{ends} ends {them}",
    )


def _pids(found: Sequence[process_tree.Process]) -> list[str]:
    return [str(each.pid) for each in found]
