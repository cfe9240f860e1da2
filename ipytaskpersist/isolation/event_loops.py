"""Event loops of tasks, which other threads can wake as they would the kernel's own loop.

In the foreground, code that waits for a widget's event awaits a future in the same thread that sets
its result. In a task, the event still arrives in the main thread. There, ``future.set_result`` and
``event.set()`` call the loop's ``call_soon``, which does not wake a loop that is waiting in another
thread.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from functools import cache
from threading import get_ident
from types import FrameType
from typing import Any

AGAIN_S = 0.001
"""Delay before the loop checks again whether the asyncio function has returned."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Create an event loop of the policy's kind for the calling thread."""
    loop: Any = asyncio.new_event_loop()
    kind: Any = type(loop)
    loop.__class__ = _waking(kind)
    loop._ipytaskpersist_thread = get_ident()
    return loop  # type: ignore[no-any-return]


@cache
def _waking(plain: Any) -> type:
    """Create a subclass whose loop wakes up when another thread schedules a call.

    ``call_later`` needs no override, because it calls ``call_at``.
    """

    def call_soon(
        self: Any, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if get_ident() == self._ipytaskpersist_thread:
            own: asyncio.Handle = plain.call_soon(self, callback, *args, context=context)
            return own
        handle = asyncio.Handle(callback, args, self, context)
        plain.call_soon_threadsafe(self, _run_after, _caller_in_asyncio(), self, handle)
        return handle

    def call_at(
        self: Any,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if get_ident() == self._ipytaskpersist_thread:
            own: asyncio.TimerHandle = plain.call_at(self, when, callback, *args, context=context)
            return own
        # Another thread must not change the loop's own list of timers.
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        plain.call_soon_threadsafe(self, self.call_at, when, _run, timer)
        return timer

    namespace = {"call_soon": call_soon, "call_at": call_at, "__module__": plain.__module__}
    return type(plain.__name__, (plain,), namespace)


def _caller_in_asyncio() -> FrameType | None:
    """Return the asyncio function that schedules in the calling thread, if there is one."""
    frame = sys._getframe(2)
    return frame if frame.f_globals.get("__name__", "").startswith("asyncio.") else None


def _run_after(caller: FrameType | None, loop: Any, handle: asyncio.Handle) -> None:
    """Run a call scheduled by another thread once asyncio's function there has returned.

    ``Event.set`` iterates over the waiting futures. A future that is woken meanwhile must not
    remove itself from that list.
    """
    if caller is None or _has_returned(caller):
        _run(handle)
    else:
        loop.call_later(AGAIN_S, _run_after, caller, loop, handle)


def _has_returned(frame: FrameType) -> bool:
    try:
        frame.clear()
    except RuntimeError:  # it is running
        return False
    return True


def _run(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()
