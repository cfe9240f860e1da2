"""Find the processes of a running task, and look at what they do."""

from __future__ import annotations

from collections.abc import Sequence

from ipytaskpersist.base import leftover_processes, process_tree
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.process_tree import Process, Snapshot
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.inspection.looking import look_at_kernel, look_at_processes
from ipytaskpersist.inspection.looks import Look
from ipytaskpersist.session.finding import TaskFinder
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting


class Inspecting:
    """Says what tasks do now."""

    def __init__(self, store: TaskStore, tasks: TaskFinder) -> None:
        self._store = store
        self._tasks = tasks

    def look(self, task: TaskRecord) -> Look:
        """Return what a task does now. Raises `InvalidRequest` if that cannot be had."""
        task = self._tasks.refresh(task)
        _require_running(task)
        if task.runner == "thread":
            return self._look_at_thread(task)
        process = self._store.processes.get(task.key)
        if process is None or process.pid is None:
            raise InvalidRequest(
                f"task {task.label} is just starting: it has no process yet; type the same again"
            )
        if process.pid_here is None:
            raise _out_of_sight(task)
        leader = Process(process.pid, 0, process.pid, process.process_start or "", False)
        family = _leader_first(Snapshot().of_task(task.id, leader), leader)
        if not family:
            raise InvalidRequest(
                f"task {task.label} is just ending: it has no process any more; "
                f"%bg_show {task.number} shows how it ended"
            )
        return look_at_processes(task, family, is_python=process.kind == "python")

    def _look_at_thread(self, task: TaskRecord) -> Look:
        session = self._store.sessions.get(task.session)
        if session is None or not session.process.is_local:
            raise _out_of_sight(task)
        kernel = _alive(session.process)
        if kernel is None:
            raise InvalidRequest(
                f"the kernel of task {task.label} has ended; %bg_list shows what became of it"
            )
        children = leftover_processes.find(lambda mark: mark.task_id == task.id)
        return look_at_kernel(task, kernel, [*children])


def _require_running(task: TaskRecord) -> None:
    if task.state.is_final:
        raise InvalidRequest(
            f"task {task.label} has ended ({task.state.value}), so it does nothing now; "
            f"%bg_show {task.number} shows how it ended"
        )
    if task.place:
        raise InvalidRequest(
            f"task {task.label} runs at {task.place}, where its stack cannot be had; "
            f"%bg_output {task.number} shows what it has printed"
        )
    if task.state is TaskState.PENDING:
        why = formatting.waits_for(task) or "it has not started yet"
        raise InvalidRequest(
            f"task {task.label} is pending: {why}; %bg_wait {task.number} waits for it"
        )


def _out_of_sight(task: TaskRecord) -> InvalidRequest:
    return InvalidRequest(
        f"task {task.label} runs on another machine or in another container; type the command there"
    )


def _alive(process: ProcessIdentity) -> Process | None:
    try:
        found = process_tree.find(process.pid)
    except OSError:
        return None
    return found if found is not None and found.start == process.start else None


def _leader_first(family: Sequence[Process], leader: Process) -> list[Process]:
    return sorted(family, key=lambda each: (each.pid != leader.pid, each.pid))
