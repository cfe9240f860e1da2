"""The cancellation of a task that runs in a thread of this process.

`TaskCancelled` is raised in the cell's thread, at a moment when it breaks nothing that others use.
If it gets lost, it is raised again, until the cell has ended.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from _thread import LockType, allocate_lock
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from types import FrameType
from typing import TYPE_CHECKING, Any

from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.running import safepoints
from ipytaskpersist.running.ending import Ending

if TYPE_CHECKING:
    import asyncio

AGAIN_S = 1.0
"""Shortest interval between two requests. A request that follows sooner is ignored."""
REPEAT_S = 5.0
"""Delay before the exception is raised again in a cell that caught it and goes on."""
PERSIST_S = 15.0
"""Delay before the exception is raised at every check, even in the handler that catches it."""
SHORT_PATIENCE_S, LONG_PATIENCE_S = 1.0, 10.0
"""How long a cancellation waits for delicate code to end, and for the import of a module."""
STEP_S = 0.1
"""How long a cell's thread waits before it checks for a cancellation."""


class Cancellation:
    """Whether one task's cell is to end, and how it is made to."""

    def __init__(self, end_children: Callable[[bool], None]) -> None:
        """`end_children(whole)` ends the processes that the cell has started.

        Unless `whole`, it spares those of multiprocessing, which ends its own processes better.
        """
        self.is_asked = False
        """Whether a cancellation has ever been requested."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """Event loop in which the cell runs."""
        self.ending = Ending()
        """What the cell is told before the exception is raised."""
        self.ending.when_told = self._be_told
        self.grace_s = 0.0
        """Time between the request and the exception for a cell that asks for it."""
        self._patience_until: float | None = None
        """Until when such a cell may end by itself, by the monotonic clock."""
        self._end_children = end_children
        self._lock = threading.Lock()
        self._thread_id = 0
        self._is_running = False
        self._is_due = False
        """Whether the exception has yet to be raised."""
        self._is_scheduled = False
        """Whether the event loop is about to cancel its coroutines."""
        self._asked_at = self._raised_at = 0.0
        self._spares_children = False
        self._held = 0
        """How many `hold_back` calls are in effect."""
        self._sleeping: LockType | None = None

    # In the cell's thread.

    def begin(self) -> None:
        """Note that the calling thread now runs the cell.

        Raises `TaskCancelled` if a cancellation was requested before.
        """
        self.enter()
        if self.is_asked:
            raise TaskCancelled

    def enter(self) -> None:
        """Note that the calling thread now runs code that may be cancelled."""
        self._thread_id = threading.get_ident()
        with self._lock:
            self._is_running = True

    def of_more_code(self, end_children: Callable[[bool], None]) -> Cancellation:
        """Create a cancellation for code that runs after the cell: that of its value's class.

        Earlier requests were for the cell and are not raised again.
        """
        other = Cancellation(end_children)
        other.is_asked, other._asked_at = self.is_asked, self._asked_at
        return other

    def leave(self) -> bool:
        """Note that the cell has ended, so that nothing is raised in it any more.

        Returns whether a cancellation arrived at the last moment.
        """
        late = False
        while True:
            try:
                with self._lock:
                    self._is_running = False
                _be_hit()
                safepoints.stop_tracing()
                return late
            except TaskCancelled:
                late = True

    @property
    def has_begun(self) -> bool:
        """Whether the cell has a thread in which it can be cancelled."""
        return self._thread_id != 0

    @property
    def thread_id(self) -> int:
        """Identifier of the cell's thread; 0 before it has one."""
        return self._thread_id

    def runs_in(self, thread_id: int) -> bool:
        """Whether this is the cell's thread."""
        return thread_id == self._thread_id

    def hold_back(self) -> None:
        """Raise nothing in the calling thread, which is the cell's, until `let_go`.

        Raises `TaskCancelled` if it is due already.
        """
        held = self._held
        try:
            with self._lock:
                self._held = held + 1
            _be_hit()
        except TaskCancelled:
            self._held = held
            raise

    def let_go(self) -> None:
        """Undo one `hold_back`. Raises `TaskCancelled` if it has become due meanwhile."""
        with self._lock:
            self._held -= 1
        if not self._held:
            self.let_through()

    def let_through(self) -> None:
        """Raise `TaskCancelled` if it is due, even if it is held back."""
        with self._lock:
            is_due = self._is_due and self._is_running
            if is_due:
                self._note_raised()
        if is_due:
            raise TaskCancelled

    def sleep(self, seconds: float) -> None:
        """Sleep until the time is over or a cancellation arrives."""
        waiter = allocate_lock()
        waiter.acquire()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._sleeping = waiter
            self.look()
            waiter.acquire(True, left)
            self._sleeping = None
            self.look()

    def in_steps(self, wait: Callable[[float], bool], timeout: float | None) -> bool:
        """Call `wait(seconds)` in short steps until it returns True or a cancellation arrives.

        Returns whether `wait` succeeded before the timeout.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = STEP_S if until is None else max(0.0, until - time.monotonic())
            has_come = wait(min(STEP_S, left))
            self.look()
            if has_come or (until is not None and left <= STEP_S):
                return has_come

    def look(self) -> None:
        """Raise `TaskCancelled` if it is due and the calling code may be interrupted."""
        if self._is_due and not self._held and self._may_break_off(sys._getframe(1)):
            self.let_through()

    def _may_break_off(self, innermost: FrameType, in_del: bool = False) -> bool:
        in_imports = self._waited() > LONG_PATIENCE_S
        return safepoints.may_break_off(innermost, in_del=in_del, in_imports=in_imports)

    # In other threads.

    def ask(self) -> None:
        """Request the end of the cell and of the child processes that it has started.

        Requests in quick succession count as one: the store may repeat a request that was made
        directly, and a second exception would interrupt the cell's handling of the first.
        """
        with self._lock:
            now = time.monotonic()
            if self.is_asked and now - self._asked_at < AGAIN_S:
                return
            if self._patience_until is not None:
                return
            self.is_asked = True
            self._asked_at = now
            gives_time = self.ending.is_expected and not self.ending.is_soon
            if gives_time:
                self._patience_until = now + self.grace_s
            else:
                self._is_due = self._spares_children = True
        self.ending.announce()
        if gives_time:
            PURSUIT.add(self)
            return
        self.pursue()
        self._end_children(False)
        PURSUIT.add(self)

    @property
    def is_new(self) -> bool:
        """Whether the request is recent, so that the exception is likely to be raised soon."""
        return self._waited() < SHORT_PATIENCE_S

    def was_ignored(self) -> None:
        """Raise the exception again, because it came where Python could only ignore it.

        Called in the cell's thread.
        """
        self._is_due = True
        safepoints.before_next_line(sys._getframe(1), lambda _frame: self.look())

    def _be_told(self) -> None:
        """Wait no longer for a cell that only had functions to be called."""
        with self._lock:
            if self._patience_until is not None and not self.ending.is_watched:
                self._patience_until = 0.0

    def _is_patient(self) -> bool:
        """Whether the cell may still end by itself. Once it may not, the exception is due."""
        now = time.monotonic()
        if self._patience_until is None:
            return False
        if now < self._patience_until:
            return True
        self._patience_until = None
        self._is_due = self._spares_children = True
        self._asked_at = now
        return False

    def pursue(self) -> bool:
        """Raise a due exception if the moment allows it. Returns False once the cell has ended."""
        with self._lock:
            if not self._is_running:
                return False
            was_patient = self._patience_until is not None
            if self._is_patient():
                return True
            if not self._is_due and self._was_caught():
                self._is_due = True
            if self._is_due and not self._held:
                self._wake()
                self._raise()
        if was_patient:
            self._end_children(False)
        if self._spares_children and self._waited() > SHORT_PATIENCE_S:
            self._spares_children = False
            self._end_children(True)
        return True

    def _raise(self) -> None:
        loop, is_stuck = self.loop, self._waited() > SHORT_PATIENCE_S
        if loop is not None and not is_stuck and not _is_computing(loop):
            self._cancel_coroutines(loop)
        else:
            self._raise_in_thread()

    def _raise_in_thread(self) -> None:
        """Raise `TaskCancelled` if the thread is at the same safepoint before and after."""
        before = safepoints.place(self._thread_id)
        if before is None or not self._is_safepoint(before[0]):
            return
        self._set_exception(TaskCancelled if self._waited() < PERSIST_S else self._persistent())
        if safepoints.place(self._thread_id) == before:
            self._note_raised()
        else:
            self._set_exception(None)

    def _persistent(self) -> type[BaseException]:
        """Return an exception class that is raised again after it has been caught.

        Its instance is created in the cell's thread, where it traces the next line.
        """

        def make(_class: Any) -> TaskCancelled:
            safepoints.before_next_line(sys._getframe(1), again)
            return TaskCancelled()

        def again(_frame: FrameType) -> None:
            raise TaskCancelled

        return type("TaskCancelled", (TaskCancelled,), {"__new__": make})

    def _is_safepoint(self, innermost: FrameType) -> bool:
        in_delicate = self._waited() > SHORT_PATIENCE_S
        is_safepoint = safepoints.is_safepoint(innermost, in_delicate=in_delicate)
        return is_safepoint and self._may_break_off(innermost, in_del=in_delicate)

    def _set_exception(self, kind: type[BaseException] | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread_id), None if kind is None else ctypes.py_object(kind)
        )

    def _note_raised(self) -> None:
        self._is_due = False
        self._raised_at = time.monotonic()

    def _was_caught(self) -> bool:
        """Whether the cell has caught the exception, is no longer handling it, and goes on.

        This is unknown for waiting coroutines, which are cancelled once for each request.
        """
        if self.loop is not None and not _is_computing(self.loop):
            return False
        since_raised = time.monotonic() - self._raised_at
        if since_raised < (REPEAT_S if self._waited() < PERSIST_S else 0):
            return False
        return not safepoints.is_handling(self._thread_id, raised())

    def _waited(self) -> float:
        return time.monotonic() - self._asked_at

    def _wake(self) -> None:
        sleeping = self._sleeping
        if sleeping is not None:
            with suppress(RuntimeError):  # it was released just now
                sleeping.release()

    def _cancel_coroutines(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the waiting coroutines. Raising in the thread would break the event loop.

        The exception stays due until the loop does so: it may be busy with a long computation.
        """
        if self._is_scheduled:
            return
        import asyncio

        def cancel_all() -> None:
            self._is_scheduled = False
            if self._is_due:
                self._note_raised()
                for task in asyncio.all_tasks(loop):
                    task.cancel()

        try:
            loop.call_soon_threadsafe(cancel_all)
        except RuntimeError:
            # The loop was closed meanwhile, so no coroutine is waiting.
            self._raise_in_thread()
        else:
            self._is_scheduled = True

    def after_fork(self) -> None:
        """Replace the lock in a forked child: another thread of the parent may have held it."""
        self._lock = threading.Lock()


def raised() -> tuple[type[BaseException], ...]:
    """Return the exceptions that a cancellation raises. In a coroutine it is `CancelledError`."""
    asyncio = sys.modules.get("asyncio")
    return (TaskCancelled,) if asyncio is None else (TaskCancelled, asyncio.CancelledError)


def _is_computing(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether an event loop is running a coroutine rather than waiting."""
    import asyncio

    return asyncio.current_task(loop) is not None


def _be_hit() -> None:
    """Give an exception that is set for the calling thread the chance to be raised here."""
    for _ in range(2):
        pass  # the end of a loop's turn checks for exceptions


class Pursuit:
    """The thread that pursues cancelled cells until they have ended."""

    LOOK_S, LATER_LOOK_S = 0.005, 0.05

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancellations: set[Cancellation] = set()
        self._is_running = False

    def add(self, cancellation: Cancellation) -> None:
        """Pursue another cancellation."""
        with self._lock:
            self._cancellations.add(cancellation)
            if self._is_running:
                return
            thread = threading.Thread(target=self._run, name="ipytaskpersist-cancel", daemon=True)
            try:
                Context().run(thread.start)
            except RuntimeError:
                self._is_running = False  # the limit on processes also counts threads
            else:
                self._is_running = True
                return
        while cancellation.pursue() and cancellation.is_new:
            time.sleep(self.LOOK_S)
        cancellation.pursue()

    def _run(self) -> None:
        while self._look():
            are_new = any(each.is_new for each in self._cancellations.copy())
            time.sleep(self.LOOK_S if are_new else self.LATER_LOOK_S)

    def _look(self) -> bool:
        with self._lock:
            pursued = list(self._cancellations)
        left = {each for each in pursued if not each.pursue()}
        with self._lock:
            self._cancellations -= left
            self._is_running = bool(self._cancellations)
            return self._is_running

    def after_fork(self) -> None:
        """Start over in a forked child, which has no copy of the thread."""
        self.__init__()  # type: ignore[misc]


PURSUIT = Pursuit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PURSUIT.after_fork)
