"""Safepoints: where in a thread an exception from outside breaks nothing that others use.

A cancellation raises an exception between any two bytecodes. Right after a lock was taken in
Python code, while a thread starts or while a module is imported, it would leave a lock held or
work half done, and other tasks would wait for ever. So a thread's frames are looked at first.
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
"""Modules and packages whose own code keeps locks, or state that all threads share."""
LOCKING = frozenset({
    "__enter__", "__exit__", "acquire", "release",
    "handle", "_acquireLock", "_releaseLock",  # of logging
    "_execute_child", "_internal_poll",  # of subprocess.Popen
})  # fmt: skip
"""Functions, in any module, that take or free something."""
IMPORT = frozenset({"importlib", "_frozen_importlib"})
BELOW_THE_CELL = "ipytaskpersist.runners.thread"


def is_safepoint(innermost: FrameType, *, in_delicate: bool) -> bool:
    """Whether an exception may be raised in a frame, as far as that frame itself is concerned.

    After a while it may also be `in_delicate` code. What imports is never broken off.
    """
    package = _package(innermost)
    if package in IMPORT:
        return False
    return in_delicate or not (package in DELICATE or innermost.f_code.co_name in LOCKING)


def may_break_off(innermost: FrameType, *, in_del: bool, in_imports: bool) -> bool:
    """Whether all that a thread is in may be broken off.

    In ``__del__`` an exception can only be ignored, which is allowed after a while; and so is to
    break off the code of a module that is being imported.
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
    """Call `call(frame)` before the line that the calling thread runs next, and before others.

    That is a place which no random moment may ever hit. What the call raises is raised there, and
    is the last of it. Where a debugger traces the thread, nothing is done.
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
    """Trace no function that is called from now on."""


def stop_tracing() -> None:
    """Undo `before_next_line` in the calling thread."""
    if sys.gettrace() is _trace_no_call:
        sys.settrace(None)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def place(thread_id: int) -> tuple[FrameType, int] | None:
    """Where a thread is now: its innermost frame, and the bytecode. None when it has ended."""
    frame = sys._current_frames().get(thread_id)
    return None if frame is None else (frame, frame.f_lasti)


def is_handling(thread_id: int, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether a thread is in an ``except`` or ``finally`` block because of such an exception."""
    known: object = sys._current_exceptions().get(thread_id)
    error = known[1] if isinstance(known, tuple) else known  # Python 3.11 gives a whole triple
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        if isinstance(error, kinds):
            return True
        seen.add(id(error))
        error = error.__context__
    return False
