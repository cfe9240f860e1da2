"""Whether a task is about to be ended, and what its code wants to do before that.

Only a task whose code asks is given time: any other one is ended at once, as ever.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from types import FrameType
from typing import Any

from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import InvalidRequest, NoThread


def _nothing() -> None:
    """Do nothing, where nothing has to be done."""


class Ending:
    """What one task's code is told of its end."""

    def __init__(self) -> None:
        self.is_soon = False
        """Whether the task will be ended in a moment."""
        self.is_watched = False
        """Whether the code looks for it, and ends by itself in time."""
        self.has_calls = False
        """Whether functions are called before the end."""
        self.listen: Callable[[], None] = _nothing
        """Begins to notice the request, where that takes more than to be told."""
        self.when_told: Callable[[], None] = _nothing
        """Called when all functions have been called."""
        self._calls: list[Callable[[], None]] = []
        # `put` is safe in a signal handler, unlike any lock.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def is_expected(self) -> bool:
        """Whether the code has asked for time."""
        return self.is_watched or self.has_calls

    @property
    def was_used(self) -> bool:
        """Whether the code was told, and had time to end by itself."""
        return self.is_soon and self.is_expected

    def look(self) -> bool:
        """Return whether the end is near, for code that ends by itself then."""
        self.listen()
        self.is_watched = True
        return self.is_soon

    def call(self, function: Callable[[], Any]) -> None:
        """Have a function called before the end, in a thread of its own. Raises `NoThread`."""
        self.listen()
        context = copy_context()

        def call() -> None:
            try:
                function()
            except BaseException:  # whatever it raises, the others are called, too
                traceback.print_exc()

        with self._lock:
            self._calls.append(lambda: context.run(call))
            self._start()
            self.has_calls = True
        if self.is_soon:
            self._news.put(True)

    def _start(self) -> None:
        """Start the thread that makes the calls. Later, there may be no time or no room."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ipytaskpersist-ending", daemon=True)
            if not start_outside(thread):
                raise NoThread
            self._thread = thread

    def _run(self) -> None:
        while self._news.get():
            while self._calls:
                self._calls.pop(0)()
            self.when_told()

    def announce(self) -> None:
        """Note that the task will be ended. Safe in a signal handler."""
        if not self.is_soon:
            self.is_soon = True
            self._news.put(True)

    def close(self, timeout_s: float) -> None:
        """Note that the code has ended. Wait for calls that are being made."""
        self._news.put(False)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)


class Termination:
    """SIGTERM in the process of a task, which has time until SIGKILL once its code asks for it."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._owner = os.getpid()
        self._before: Any = None
        self._is_heard = False
        self._is_over = False
        """Whether nothing is left to do before the end."""
        ending.listen, ending.when_told = self._listen, self._be_told

    def _listen(self) -> None:
        if self._is_heard:
            return
        if threading.current_thread() is not threading.main_thread():
            raise InvalidRequest(
                "only the thread of the cell itself can begin to listen for the end of its task; "
                "call ending_soon() there once, before the other threads do"
            )
        self._before = signal.signal(signal.SIGTERM, self._take)
        self._is_heard = True

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._is_over or os.getpid() != self._owner:  # a pool ends its forked workers so
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._ending.announce()
        if callable(self._before):
            self._before(number, frame)

    def stop(self) -> None:
        """Put back what the cell, which has ended, had before. It may have its own by now."""
        if self._is_heard and signal.getsignal(signal.SIGTERM) == self._take:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _be_told(self) -> None:
        """End the process when its code only had functions to be called."""
        if not self._ending.is_watched and not callable(self._before):
            self._is_over = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
