"""Look at all processes of a task, in one moment."""

from __future__ import annotations

import linecache
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.process_tree import PROC, Process
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.inspection import asking
from ipytaskpersist.inspection.listening import CAN_BE_ASKED
from ipytaskpersist.inspection.looks import Look
from ipytaskpersist.inspection.observing import AROUND, observe
from ipytaskpersist.inspection.stacks import Frame, ProcessStacks, Stack

STOPPED = ("stopped", "tracing-stop")


def look_at_processes(task: TaskRecord, processes: Sequence[Process], *, is_python: bool) -> Look:
    """Return what processes of a task do. `is_python` says that the first runs the cell itself."""
    at, began = datetime.now(UTC), time.perf_counter()
    states = {process.pid: _state(process.pid) for process in processes}
    awake = [each for each in processes if states[each.pid] not in STOPPED]
    answers = asking.ask(awake)
    found = []
    for place, process in enumerate(processes):
        state = states[process.pid]
        stacks, note = answers.get(process.pid, ([], ""))
        if not stacks and not note and is_python and place == 0:
            note = _why_silent(state)
        sourced = tuple(_with_source(stack, task) for stack in stacks)
        found.append(_process(process, state, sourced, note))
    return Look(at, time.perf_counter() - began, found)


def look_at_kernel(task: TaskRecord, kernel: Process, children: Sequence[Process]) -> Look:
    """Return what the threads of a task do in its kernel, and the processes that it started."""
    at, began = datetime.now(UTC), time.perf_counter()
    if kernel.pid == os.getpid():
        stacks, note = observe(None), ""
        below = look_at_processes(task, children, is_python=False).processes
    else:
        both = look_at_processes(task, [kernel, *children], is_python=True).processes
        stacks, note, below = [*both[0].stacks], both[0].note, both[1:]
    owners = asking.tasks_of_threads(kernel.pid) if note.startswith(asking.IN_C) else {}
    own = tuple(stack for stack in stacks if task.id in (stack.task_id, owners.get(stack.ident)))
    state = _state(kernel.pid)
    return Look(at, time.perf_counter() - began, [_process(kernel, state, own, note), *below])


def _why_silent(state: str) -> str:
    if not CAN_BE_ASKED:
        return "the stacks of another process can be had on Linux only"
    if state in STOPPED:
        return "it is stopped, and cannot say what it does until it goes on"
    return "it does not say what it does: it is just starting or just ending"


def _with_source(stack: Stack, task: TaskRecord) -> Stack:
    """Return a stack whose calls have lines of source, as far as they can be found.

    Of cells, a dump has only the names. The first on the stack is the task's own.
    """
    own = next((frame.file for frame in stack.frames if frame.is_cell), None)
    frames = (
        frame if frame.code else _of_cell(frame, task) if frame.file == own else _of_file(frame)
        for frame in stack.frames
    )
    return replace(stack, frames=tuple(frames))


def _of_cell(frame: Frame, task: TaskRecord) -> Frame:
    number = task.execution_count if frame.number is None else frame.number
    return replace(frame.with_lines(task.source.splitlines(), AROUND), number=number)


def _of_file(frame: Frame) -> Frame:
    if frame.is_cell:
        return frame
    linecache.checkcache(frame.file)
    return frame.with_lines(linecache.getlines(frame.file), 0)


def _process(process: Process, state: str, stacks: tuple[Stack, ...], note: str) -> ProcessStacks:
    import psutil

    cpu_s = None
    with suppress(psutil.Error, OSError):
        times = psutil.Process(process.pid).cpu_times()
        cpu_s = times.user + times.system
    return ProcessStacks(
        process.pid,
        process.parent,
        process_tree.command_of(process.pid),
        state,
        _wait_channel(process.pid),
        cpu_s,
        stacks,
        note,
    )


def _state(pid: int) -> str:
    import psutil

    with suppress(psutil.Error, OSError):
        return str(psutil.Process(pid).status())
    return "gone"


def _wait_channel(pid: int) -> str | None:
    """Return the function of the system's kernel in which a process waits."""
    with suppress(OSError):
        name = (PROC / str(pid) / "wchan").read_text(encoding="ascii", errors="replace").strip()
        return name if name not in ("", "0") else None
    return None
