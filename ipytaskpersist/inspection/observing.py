"""What the threads and asyncio tasks of the calling process do now."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

from ipytaskpersist.inspection.stacks import Frame, Stack
from ipytaskpersist.inspection.trimming import CELL, OWN, trimmed
from ipytaskpersist.running.running_task import FOREGROUND, RunningTask

AROUND = 2
"""How many lines of a cell are shown before and after the one where it is."""
DEEPEST = 100
"""How many calls of a stack are shown, the innermost; a recursion may have many more."""


def observe(
    task: RunningTask | None, interrupted: FrameType | None = None, *, is_fork: bool = False
) -> list[Stack]:
    """Return the stacks of this process, those of cells first.

    `task` is the one whose own process this is; None for a kernel, whose threads name theirs.
    `interrupted` is where the calling thread was, if it is in a signal handler. A fork has copies
    of its parent's coroutines, which do not run.
    """
    numbers = _numbers()
    first = {_main_thread(), *(each.cancellation.thread_id for each in [*FOREGROUND.tasks])}
    threads = sorted(_threads(task, interrupted, numbers), key=lambda each: each.ident not in first)
    coroutines = () if is_fork else _asyncio_tasks(task, numbers)
    return [stack for stack in (*threads, *coroutines) if stack.frames]


def _main_thread() -> int:
    return threading.main_thread().ident or 0


def tasks_of_threads() -> dict[int, str]:
    """Return the ids of the tasks for which this process's threads work, by identifier."""
    found = {
        thread.ident: task_id
        for thread in threading.enumerate()
        if thread.ident and (task_id := getattr(thread, "ipytaskpersist_task", None))
    }
    return found | {task.cancellation.thread_id: task.record.id for task in [*FOREGROUND.tasks]}


def _threads(
    task: RunningTask | None, interrupted: FrameType | None, numbers: dict[str, int]
) -> Iterator[Stack]:
    here, owners = threading.get_ident(), {} if task else tasks_of_threads()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, innermost in sys._current_frames().items():
        frame = innermost if interrupted is None or ident != here else interrupted
        calls = [_frame(each, line, numbers) for each, line in traceback.walk_stack(frame)]
        calls.reverse()
        yield Stack(
            names.get(ident, f"0x{ident:x}"),
            trimmed(calls)[-DEEPEST:],
            ident=ident,
            task_id=owners.get(ident),
        )


def _asyncio_tasks(task: RunningTask | None, numbers: dict[str, int]) -> Iterator[Stack]:
    for owner in [task] if task else [*FOREGROUND.tasks]:
        for loop in _loops(owner, is_alone=task is not None):
            running = asyncio.current_task(loop)
            for each in sorted(asyncio.all_tasks(loop), key=_name):
                if each is not running:
                    calls = [_frame(frame, frame.f_lineno, numbers) for frame in _awaits(each)]
                    yield Stack(
                        f"{each.get_name()} ({_what_runs(each)})",
                        trimmed(calls)[-DEEPEST:],
                        is_asyncio=True,
                        task_id=owner.record.id,
                    )


def _loops(task: RunningTask, *, is_alone: bool) -> set[asyncio.AbstractEventLoop]:
    """Return the event loops known to run for a task."""
    loops = {task.cancellation.loop}
    if is_alone:
        loops.add(asyncio._get_running_loop())
    return {loop for loop in loops if loop is not None}


def _awaits(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Yield the frames of a task's coroutine and of those that it awaits in turn."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        kind = next((each for each in ("cr", "gi", "ag") if hasattr(awaited, f"{each}_frame")), "")
        frame = getattr(awaited, f"{kind}_frame", None)
        if frame is None:
            return
        yield frame
        awaited = getattr(awaited, f"{kind}_{'yieldfrom' if kind == 'gi' else 'await'}", None)


def _name(task: asyncio.Task[Any]) -> str:
    return task.get_name()


def _what_runs(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    code = getattr(coroutine, "cr_code", None)
    if code is not None and OWN.search(code.co_filename):
        return "the cell"
    return str(getattr(coroutine, "__qualname__", "a coroutine"))


def _numbers() -> dict[str, int]:
    """Return the execution counts of this process's cells, by file name."""
    module: Any = sys.modules.get("IPython.core.getipython")
    shell = module.get_ipython() if module is not None else None
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers


def _frame(frame: FrameType, line: int | None, numbers: dict[str, int]) -> Frame:
    code, name = frame.f_code, frame.f_code.co_filename
    found = Frame(name, line or 0, code.co_name)
    if not CELL.search(name):
        return found
    entry: Any = linecache.cache.get(name, ())
    lines = entry[2] if len(entry) > 1 else ()
    return replace(found.with_lines(lines, AROUND), is_cell=True, number=numbers.get(name))
