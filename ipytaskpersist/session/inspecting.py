"""Find the processes of running tasks, and look at what they do and use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ipytaskpersist.base import leftover_processes, process_tree
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.process_tree import Process, Snapshot
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.base.usage import Point, Usage
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.inspection import usage
from ipytaskpersist.inspection.looking import look_at_kernel, look_at_processes
from ipytaskpersist.inspection.looks import Look
from ipytaskpersist.inspection.usage import Counters, counters_of
from ipytaskpersist.runners import gpus, machine
from ipytaskpersist.session.finding import TaskFinder
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting


@dataclass(frozen=True, slots=True)
class InUse:
    """What one running task uses."""

    task: TaskRecord
    point: Point | None
    """What it has used since the look before; None if that cannot be had here."""
    gpu_bytes: int | None = None
    """Memory of GPUs that it uses; None where no driver says so."""
    history: Usage | None = None
    """What it has used before, as far as that is stored."""
    note: str = ""
    """What has to be known about these numbers."""


@dataclass(frozen=True, slots=True)
class Top:
    """What running tasks use, and what the machine has."""

    tasks: Sequence[InUse]
    cpus: float
    memory_bytes: int
    free_bytes: int


class Inspecting:
    """Says what tasks do now, and what they use."""

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

    def top(
        self,
        tasks: Callable[[], Sequence[TaskRecord]],
        every_s: float,
        *,
        shared_once: bool = False,
    ) -> Iterator[Top]:
        """Yield what the tasks that run then use, again and again.

        Each is over the time since the one before, `every_s` in seconds. With `shared_once`,
        memory that processes share is counted once, which takes longer.
        """
        before = self._counters(tasks())
        while True:
            time.sleep(every_s)
            now = self._counters(tasks())
            gpu_bytes = gpus.memory_by_process()
            rows = [
                self._in_use(each, before.get(each.task.key), gpu_bytes, shared_once=shared_once)
                for each in now.values()
            ]
            yield Top(rows, machine.cpu_count(), *machine.memory())
            before = now

    def _counters(self, tasks: Sequence[TaskRecord]) -> dict[int, _Seen]:
        running = [task for task in tasks if task.state is TaskState.RUNNING]
        snapshot = Snapshot() if running else None
        found = {}
        for task in running:
            assert snapshot is not None
            family, note = self._family(task, snapshot)
            found[task.key] = _Seen(task, family, counters_of(family), note)
        return found

    def _family(self, task: TaskRecord, snapshot: Snapshot) -> tuple[Sequence[Process], str]:
        """Return the processes of a task, and what has to be known about them."""
        if task.place:
            return (), f"at {task.place}"
        if task.runner == "thread":
            session = self._store.sessions.get(task.session)
            kernel = _alive(session.process) if session and session.process.is_local else None
            return ([kernel] if kernel else []), "its whole kernel" if kernel else "out of sight"
        process = self._store.processes.get(task.key)
        if process is None or process.pid is None:
            return (), "just starting"
        if process.pid_here is None:
            return (), "out of sight"
        leader = Process(process.pid, 0, process.pid, process.process_start or "", False)
        return snapshot.of_task(task.id, leader), ""

    def _in_use(
        self,
        seen: _Seen,
        before: _Seen | None,
        gpu_bytes: Mapping[int, int] | None,
        *,
        shared_once: bool,
    ) -> InUse:
        history = self._store.processes.usage(seen.task.key)
        if before is None or not seen.family:
            note = seen.note or "just started"
            return InUse(seen.task, None, history=history, note=note)
        point = seen.counters.since(before.counters)
        if shared_once:
            point = replace(point, memory_bytes=usage.shared_once(seen.family))
        own = None
        if gpu_bytes is not None:
            own = sum(gpu_bytes.get(process.pid, 0) for process in seen.family)
        return InUse(seen.task, point, own, history, seen.note)

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


@dataclass(frozen=True, slots=True)
class _Seen:
    """A running task at one moment."""

    task: TaskRecord
    family: Sequence[Process]
    counters: Counters
    note: str


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
