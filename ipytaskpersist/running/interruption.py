"""Delay exceptions from outside while an operation has to be completed.

A stop button raises `KeyboardInterrupt` in the main thread, and a cancellation raises
`TaskCancelled` in a task's thread. Both may come between any two bytecodes, for example between the
beginning of a transaction and the code that would end it. Inside `HeldBack`, neither is raised. An
exception that arrives meanwhile is raised at the end of the block.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from ipytaskpersist.running.cancellation import raised
from ipytaskpersist.running.running_task import active_task


class Holder(Protocol):
    """Holds back the exceptions of one thread. Calls to `hold_back` are counted."""

    def hold_back(self) -> None:
        """Raise an exception that has already arrived, then no more."""

    def let_go(self) -> None:
        """Undo one `hold_back`. The last call raises an exception that has arrived meanwhile."""

    def let_through(self) -> None:
        """Raise an exception that has arrived meanwhile, and continue to hold back."""


class HeldBack:
    """A block in whose thread no exception is raised from outside."""

    def __init__(self) -> None:
        self._holder = _holder()

    def __enter__(self) -> None:
        self._holder.hold_back()

    def __exit__(self, *_exception: object) -> None:
        self._holder.let_go()


def let_through() -> None:
    """Raise an exception held back in the calling thread, at a convenient moment."""
    _holder().let_through()


def is_from_outside(error: BaseException) -> bool:
    """Whether an exception is from a stop button or a cancellation, not from the code called.

    In the main thread, a `KeyboardInterrupt` raised by that code looks like the stop button's.
    """
    task = active_task.get()
    if task is not None:
        return task.cancelled and issubclass(type(error), raised())
    is_main = threading.get_ident() == threading.main_thread().ident
    return is_main and issubclass(type(error), KeyboardInterrupt)


def _holder() -> Holder:
    here, task = threading.get_ident(), active_task.get()
    if task is not None and task.cancellation.runs_in(here):
        return task.cancellation
    return _INTERRUPTS if here == threading.main_thread().ident else _NOTHING


class _Interrupts:
    """Holds back SIGINT, the signal of the stop button and of Ctrl-C in the main thread."""

    def __init__(self) -> None:
        self._depth = 0
        self._plain: Callable[[int, FrameType | None], Any] | None = None
        self._arrived: tuple[int, FrameType | None] | None = None

    def hold_back(self) -> None:
        if self._depth == 0:
            handler = signal.getsignal(signal.SIGINT)
            self._plain = handler if callable(handler) else None
            self._arrived = None
            if self._plain is not None:
                signal.signal(signal.SIGINT, self._keep)
        self._depth += 1

    def let_go(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._plain is not None:
            plain, arrived, self._plain = self._plain, self._arrived, None
            if signal.getsignal(signal.SIGINT) == self._keep:
                signal.signal(signal.SIGINT, plain)
            if arrived is not None:
                plain(*arrived)

    def let_through(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None and self._plain is not None:
            self._plain(*arrived)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._arrived = (number, frame)


class _Nothing:
    """The holder of a thread in which nothing is raised from outside."""

    def hold_back(self) -> None:
        pass

    def let_go(self) -> None:
        pass

    def let_through(self) -> None:
        pass


_INTERRUPTS = _Interrupts()
_NOTHING = _Nothing()
