"""Safepoints: places in a thread where an exception from outside breaks nothing shared.

A cancellation raises an exception between any two bytecodes. Right after Python code takes a lock,
while a thread starts, or while a module is imported, the exception would leave a lock held or work
half done. Other tasks would then wait for ever. So the thread's frames are inspected first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

DELICATE = frozenset({
    "importlib", "_frozen_importlib", "threading", "_weakrefset", "weakref", "contextlib", "queue",
    "concurrent", "multiprocessing", "asyncio", "random", "ipytaskpersist", "IPython", "ipykernel",
    "comm", "traitlets", "jupyter_client", "tornado", "zmq",
})  # fmt: skip
"""Modules and packages whose own code holds locks or changes state shared between threads."""
LOCKING = frozenset({
    "__enter__", "__exit__", "acquire", "release",
    "handle", "_acquireLock", "_releaseLock",  # of logging
    "_execute_child", "_internal_poll",  # of subprocess.Popen
})  # fmt: skip
"""Functions of any module that acquire or release a resource."""
IMPORT = frozenset({"importlib", "_frozen_importlib"})
BELOW_THE_CELL = "ipytaskpersist.runners.thread"


def is_safepoint(innermost: FrameType, *, in_delicate: bool) -> bool:
    """Whether an exception may be raised in this frame, regardless of its callers.

    After a while, `in_delicate` also permits delicate code. Import machinery is never interrupted.
    """
    package = _package(innermost)
    if package in IMPORT:
        return False
    return in_delicate or not (package in DELICATE or innermost.f_code.co_name in LOCKING)


def may_break_off(innermost: FrameType, *, in_del: bool, in_imports: bool) -> bool:
    """Whether everything the thread is doing may be interrupted.

    After a while, `in_del` permits ``__del__``, where the exception can only be ignored, and
    `in_imports` permits the code of a module that is being imported.
    """
    return not any(
        (not in_del and frame.f_code.co_name == "__del__")
        or (not in_imports and _package(frame) in IMPORT)
        for frame in _frames_of_cell(innermost)
    )


def _frames_of_cell(innermost: FrameType) -> Iterator[FrameType]:
    frame: FrameType | None = innermost
    while frame is not None and frame.f_globals.get("__name__") != BELOW_THE_CELL:
        yield frame
        frame = frame.f_back


def before_next_line(innermost: FrameType, call: Callable[[FrameType], None]) -> None:
    """Call `call(frame)` before each line that the calling thread runs next.

    A poll at random moments might never find the thread at such a place. An exception from the call
    is raised there and ends the tracing. If a debugger traces the thread, nothing is done.
    """
    if sys.gettrace() is not None:
        return

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            call(frame)
        return trace

    for frame in _frames_of_cell(innermost):
        if _package(frame) not in DELICATE:
            frame.f_trace = trace
    sys.settrace(_trace_no_call)


def _trace_no_call(_frame: FrameType, _event: str, _argument: Any) -> None:
    """Ignore functions that are called from now on."""


def stop_tracing() -> None:
    """Undo `before_next_line` in the calling thread."""
    if sys.gettrace() is _trace_no_call:
        sys.settrace(None)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def place(thread_id: int) -> tuple[FrameType, int] | None:
    """Return a thread's innermost frame and its current bytecode. None when it has ended."""
    frame = sys._current_frames().get(thread_id)
    return None if frame is None else (frame, frame.f_lasti)


def is_handling(thread_id: int, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether a thread is handling such an exception in an ``except`` or ``finally`` block."""
    known: object = sys._current_exceptions().get(thread_id)
    error = known[1] if isinstance(known, tuple) else known  # Python 3.11 returns a triple
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        if isinstance(error, kinds):
            return True
        seen.add(id(error))
        error = error.__context__
    return False
