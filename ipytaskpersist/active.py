"""The tasks that run in this process, and how code finds out to which of them it belongs.

A context variable holds the task. It follows the task's own thread and its asyncio tasks by
itself; `inherit` carries it into threads, pools and child processes.
"""

from __future__ import annotations

import ctypes
import threading
import time
from _thread import LockType, allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.forked import ForkedRecording, take_streams
from ipytaskpersist.mishaps import plain_text
from ipytaskpersist.records import OutputKind, Progress, TaskRecord
from ipytaskpersist.widgetmarks import Entered

if TYPE_CHECKING:
    import asyncio

    from ipytaskpersist.children import Children
    from ipytaskpersist.recording import Recording

AGAIN_S = 1.0
"""After how long a task that was cancelled may be cancelled again: it may have caught the first."""
active_task: ContextVar[ActiveTask | None] = ContextVar("ipytaskpersist_task", default=None)
redirects: ContextVar[dict[OutputKind, Any]] = ContextVar("ipytaskpersist_redirects", default={})  # noqa: B039 - never changed in place
"""Where a task's context sends its streams and displays instead: what ``redirect_stdout`` and
``%%capture`` set inside it. STDOUT and STDERR map to a `Redirect`, DISPLAY_DATA to a list."""


class ActiveTask:
    """A task that runs in a thread of this process."""

    def __init__(
        self, record: TaskRecord, recording: Recording, children: Children, context: Context
    ) -> None:
        self.record = record
        self.context = context
        """The values of context variables that its code sees. Belongs to the task by itself."""
        context.run(active_task.set, self)
        self.recording = recording
        self.children = children
        self._record = self.recording.write
        self.is_forked = False
        """Whether this is the copy in a child that the task has forked."""
        self.displays: set[str] = set()
        """The ids of the displays that it has shown, by which they can be updated."""
        self.figures: dict[str, Any] = {}
        """The task's own state of matplotlib's pyplot, by the name of each piece of it."""
        self.widgets = Entered()
        """The ``ipywidgets.Output`` that its code is inside of."""
        self.shown_error: tuple[str, str] | None = None
        """Name and message of an error that a magic showed instead of raising it."""
        self.post_mortem: dict[str, Any] | None = None
        """What the variables were where the last error happened, in the form of `postmortem`."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.cancelled = False
        self._cancelled_at = 0.0
        self._thread_id = 0
        self._cancellable = False
        self._held = 0
        """How often its thread is held back from being cancelled."""
        self._is_late = False
        """Whether it was to be cancelled meanwhile."""
        self._lock = threading.Lock()
        self._sleeping: LockType | None = None

    def write(self, kind: OutputKind, text: str) -> int:
        """Print to one of the task's streams."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text)}")
        if type(text) is not str:
            text = plain_text(text)
        if self.children.have_streams:
            self.children.drain()
        self._record(kind, text)
        return len(text)

    def show_error(self, name: str, message: str, traceback: list[str]) -> None:
        """Record an error as the front end would have shown it."""
        self.children.drain()
        content = {"ename": name, "evalue": message, "traceback": traceback}
        self.recording.add(OutputKind.ERROR, content)
        self.shown_error = (name, message)

    def progress(self, progress: Progress) -> None:
        """Record how far the task has come, as its code says."""
        self.recording.progress(progress)

    def continue_in_forked_child(self) -> None:
        """Have what the calling process prints go to its descriptors: it was just forked."""
        self.is_forked = True
        self._lock = threading.Lock()
        if not isinstance(self.recording, Silence):
            forked: Any = ForkedRecording()
            self.recording, self._record = forked, forked.write
            take_streams()

    def silent(self) -> ActiveTask:
        """The same task, but nothing that is printed or displayed to it is kept."""
        recording: Any = Silence()
        same = ActiveTask(self.record, recording, self.children.silent(recording), Context())
        same.cancelled, same._cancelled_at = self.cancelled, self._cancelled_at
        return same

    # Cancelling.

    def begin(self) -> None:
        """Note that the calling thread runs the task's cell from now on, and may be cancelled.

        Raises `TaskCancelled` when it was cancelled before.
        """
        FOREGROUND.begin_task(self)
        self.begin_code()
        if self.cancelled:
            raise TaskCancelled

    def begin_code(self) -> None:
        """Note that the calling thread runs code for the task, and may be cancelled until `leave`.

        After its cell that is the code of its value's class, which may take for ever.
        """
        self._thread_id = threading.get_ident()
        with self._lock:
            self._cancellable = True

    def leave(self) -> bool:
        """Note that the code has ended: nothing is raised in it any more.

        Returns whether a cancellation came in the very moment.
        """
        late = False
        while True:
            try:
                with self._lock:
                    self._cancellable = False
                return late
            except TaskCancelled:
                late = True

    def cancel(self) -> None:
        """Raise `TaskCancelled` in the cell, and end the child processes that it started.

        Two requests in short order are one: who asks, and who hears of it from the store. A second
        exception would end what the cell does because of the first.
        """
        with self._lock:
            now = time.monotonic()
            is_again = self.cancelled and now - self._cancelled_at < AGAIN_S
            self.cancelled = True
            if is_again:
                return
            self._cancelled_at = now
        if self.loop is not None:
            self._cancel_coroutines(self.loop)
        else:
            self._raise_in_thread()
        sleeping = self._sleeping
        if sleeping is not None and sleeping.locked():
            sleeping.release()
        self.children.terminate()

    def _raise_in_thread(self) -> None:
        with self._lock:
            if self._cancellable and self._held:
                self._is_late = True
            elif self._cancellable:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread_id), ctypes.py_object(TaskCancelled)
                )

    def runs_in(self, thread_id: int) -> bool:
        """Whether this is the thread of its cell."""
        return thread_id == self._thread_id

    def hold_back(self) -> None:
        """Have no cancellation be raised in the calling thread, the cell's, until `let_go`.

        Raises `TaskCancelled` for one that was asked for before.
        """
        held = self._held
        try:
            with self._lock:
                self._held = held + 1
            for _ in range(2):
                pass  # what was asked for before is raised now, as at the end of any loop's turn
        except TaskCancelled:
            self._held = held
            raise

    def let_go(self) -> None:
        """The opposite. Raises `TaskCancelled` for what was asked for meanwhile."""
        with self._lock:
            self._held -= 1
        if not self._held:
            self.let_through()

    def let_through(self) -> None:
        """Raise `TaskCancelled` if that was asked for while it was held back."""
        with self._lock:
            is_late = self._is_late and self._cancellable
            self._is_late = False
        if is_late:
            raise TaskCancelled

    def _cancel_coroutines(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what awaits; raise in what computes. Doing both would break the event loop."""
        import asyncio

        if asyncio.current_task(loop) is not None:
            self._raise_in_thread()
            return

        def cancel_all() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()

        try:
            loop.call_soon_threadsafe(cancel_all)
        except RuntimeError:
            # The loop was closed in the meantime: there is nothing left that awaits.
            self._raise_in_thread()

    def sleep(self, seconds: float) -> bool:
        """Sleep so that a cancellation ends it. False in a thread that is not the cell's own."""
        if threading.get_ident() != self._thread_id or self.cancelled:
            return False
        waiter = self._sleeping = allocate_lock()
        waiter.acquire()
        waiter.acquire(True, seconds)
        self._sleeping = None
        return True


class Silence:
    """Stands in a recording's place and keeps nothing."""

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Drop a piece of a stream."""

    def progress(self, progress: Progress) -> None:
        """Drop how far it has come."""

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Drop a display, a result or an error."""


class Foreground:
    """Whether the foreground runs code of a person's own, and which tasks run beside it.

    By this is known to whom what arrives on the process's own file descriptors belongs. So before
    any of it changes, what has arrived already is let through.
    """

    def __init__(self) -> None:
        self.is_busy = True
        self.tasks: set[ActiveTask] = set()
        self.settle: Callable[[], None] = _nothing_arrives
        """Waits until what has been written to the file descriptors so far has been read."""

    def begin_task(self, task: ActiveTask) -> None:
        """A task begins to run."""
        self.settle()
        self.tasks.add(task)

    def end_task(self, task: ActiveTask) -> None:
        """A task has run."""
        if task in self.tasks:
            self.settle()
            self.tasks.discard(task)

    def begin_cell(self, info: Any = None) -> None:
        """A foreground cell begins. One of this package's own commands is no code of a person."""
        self._be_busy(not is_own_command(str(getattr(info, "raw_cell", ""))))

    def end_cell(self, *_event: Any) -> None:
        """A foreground cell has ended, or does nothing but wait for tasks."""
        self._be_busy(False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The foreground waits for tasks, as ``%bg_wait`` does."""
        was_busy = self.is_busy
        self._be_busy(False)
        try:
            yield
        finally:
            self._be_busy(was_busy)

    def _be_busy(self, is_busy: bool) -> None:
        if self.tasks and is_busy is not self.is_busy:
            self.settle()
        self.is_busy = is_busy

    @property
    def only_task(self) -> ActiveTask | None:
        """The task that runs while nothing else does.

        What arrives on the process's own file descriptors can only be from it.
        """
        if self.is_busy or len(self.tasks) != 1:
            return None
        return next(iter(self.tasks.copy()), None)


def _nothing_arrives() -> None:
    """Where nothing is read from the process's own file descriptors."""


FOREGROUND = Foreground()


def is_own_command(source: str) -> bool:
    """Whether a cell is one of this package's own commands."""
    return source.lstrip().startswith(("%bg", "%background", "%%background"))


def start_outside(thread: threading.Thread) -> bool:
    """Start a thread that serves all tasks, and so must belong to none, whoever asked for it.

    Returns False where the machine's limit on processes, which counts threads too, refuses it.
    """
    try:
        Context().run(thread.start)
    except RuntimeError:
        return False
    return True
