"""The tasks that run in this process, and how code finds out to which of them it belongs.

A context variable holds the task. It follows the task's own thread and its asyncio tasks by
itself; `inherit` carries it into threads and child processes, `submitting` to the workers that
others have started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from ipytaskpersist.cancellation import Cancellation
from ipytaskpersist.forked import ForkedRecording, take_streams
from ipytaskpersist.mishaps import plain_text
from ipytaskpersist.records import OutputKind, Progress, ResultRecord, TaskRecord
from ipytaskpersist.widgetmarks import Entered

if TYPE_CHECKING:
    from ipytaskpersist.children import Children
    from ipytaskpersist.recording import Recording


class _OfLiveTask:
    """The context variable that holds the task. One that has ended owns nothing any more.

    So what its threads and child processes do after its end is the foreground's, as in a kernel
    without this package.
    """

    def __init__(self) -> None:
        self.variable: ContextVar[ActiveTask | None] = ContextVar(
            "ipytaskpersist_task", default=None
        )
        self.set = self.variable.set
        self.reset = self.variable.reset

    def get(self) -> ActiveTask | None:
        """The task to which the calling code belongs, None for the foreground."""
        task = self.variable.get()
        return None if task is None or task.has_ended else task


active_task = _OfLiveTask()
redirects: ContextVar[dict[OutputKind, Any]] = ContextVar("ipytaskpersist_redirects", default={})  # noqa: B039 - never changed in place
"""Where a task's context sends its streams and displays instead: what ``redirect_stdout`` and
``%%capture`` set inside it. STDOUT and STDERR map to a `Redirect`, DISPLAY_DATA to a list."""

LARGE_RESULT = "a semicolon at the end of the cell's last line keeps none"
LARGE_VARIABLE = "--out names the variables to keep, and del leaves nothing to keep"


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
        self.has_ended = False
        """Whether its cell has run: what it leaves behind prints in the foreground."""
        self.is_forked = False
        """Whether this is the copy in a child that the task has forked."""
        self.displays: set[str] = set()
        """The ids of the displays that it has shown, by which they can be updated."""
        self.figures: dict[str, Any] = {}
        """The task's own state of matplotlib's pyplot, by the name of each piece of it."""
        self.widgets = Entered()
        """The ``ipywidgets.Output`` that its code is inside of."""
        self.shown_widgets: dict[str, Any] = {}
        """The widgets that it has displayed, a `capture.keptwidgets.KeptWidget` by each model."""
        self.shown_error: tuple[str, str] | None = None
        """Name and message of an error that a magic showed instead of raising it."""
        self.error: BaseException | None = None
        """The last error that was shown."""
        self.post_mortem: dict[str, Any] | None = None
        """What the variables were where the last error happened, in the form of `postmortem`."""
        self.cancellation = Cancellation(self._end_children)

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

    def say_large(self, kept: ResultRecord, large_bytes: int | None) -> None:
        """Say at the end of the task's output that a value it has left takes more than so much."""
        size_bytes = kept.size_bytes or 0
        if large_bytes is not None and size_bytes > large_bytes:
            what, how = (kept.name, LARGE_VARIABLE) if kept.name else ("the result", LARGE_RESULT)
            self.write(
                OutputKind.STDERR, f"{what} is kept and takes {size_bytes / 1e6:,.0f} MB; {how}\n"
            )

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
        self.cancellation.after_fork()
        if not isinstance(self.recording, Silence):
            forked: Any = ForkedRecording()
            self.recording, self._record = forked, forked.write
            take_streams()

    def silent(self) -> ActiveTask:
        """The same task, but nothing that is printed or displayed to it is kept."""
        recording: Any = Silence()
        same = ActiveTask(self.record, recording, self.children.silent(recording), Context())
        same.cancellation = self.cancellation.of_more_code(same._end_children)
        return same

    # Cancelling.

    @property
    def cancelled(self) -> bool:
        """Whether anything has asked for its end."""
        return self.cancellation.is_asked

    def _end_children(self, whole: bool) -> None:
        self.children.terminate(whole)

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is the one that runs the task's cell."""
        here = threading.get_ident()
        # In a process of its own the cell runs in the main thread, and is cancelled by signals.
        return self.cancellation.runs_in(here) or (
            not self.cancellation.has_begun and here == threading.main_thread().ident
        )

    def end(self) -> None:
        """Note that its cell has run. What its threads and children print later is not its own."""
        self.has_ended = True
        FOREGROUND.end_task(self)
        self.children.close()
        self.children.leave_to_foreground()

    def begin(self) -> None:
        """Note that the calling thread runs the task's cell from now on, and may be cancelled.

        Raises `TaskCancelled` when it was cancelled before.
        """
        FOREGROUND.begin_task(self)
        self.cancellation.begin()


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
        self.drain: Callable[[], None] = _nothing_arrives
        """Shows what the foreground's workers have printed so far."""

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
        self.drain()
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
