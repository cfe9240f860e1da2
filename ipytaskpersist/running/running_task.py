"""The tasks that run in this process, and the task to which the calling code belongs.

A context variable holds the task. It follows the task's thread and asyncio tasks by itself.
`propagation` carries it into threads and child processes, and `submitted_work` into workers that
were started elsewhere.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any

from ipytaskpersist.base.foreign_errors import plain_text
from ipytaskpersist.base.records import OutputKind, Progress, ResultRecord, TaskRecord
from ipytaskpersist.base.widget_marks import Entered
from ipytaskpersist.running.cancellation import Cancellation
from ipytaskpersist.running.ending import Ending
from ipytaskpersist.running.forks import ForkedRecording, take_streams
from ipytaskpersist.running.sinks import Checkpoints, ChildStreams, Silence, Sink


class _OfLiveTask:
    """The context variable that holds the task. An ended task no longer counts.

    So the threads and child processes of an ended task belong to the foreground, as in a kernel
    without this package.
    """

    def __init__(self) -> None:
        self.variable: ContextVar[RunningTask | None] = ContextVar(
            "ipytaskpersist_task", default=None
        )
        self.set = self.variable.set
        self.reset = self.variable.reset

    def get(self) -> RunningTask | None:
        """Return the task to which the calling code belongs, or None for the foreground."""
        task = self.variable.get()
        return None if task is None or task.has_ended else task


active_task = _OfLiveTask()
redirects: ContextVar[dict[OutputKind, Any]] = ContextVar("ipytaskpersist_redirects", default={})  # noqa: B039 - never changed in place
"""Redirections set inside a task, such as by ``redirect_stdout`` and ``%%capture``.

STDOUT and STDERR map to a `Redirect`, DISPLAY_DATA to a list.
"""

LARGE_RESULT = "a semicolon at the end of the cell's last line keeps none"
LARGE_VARIABLE = "--out names the variables to keep, and del leaves nothing to keep"


class RunningTask:
    """A task that runs in a thread of this process."""

    def __init__(
        self, record: TaskRecord, recording: Sink, children: ChildStreams, context: Context
    ) -> None:
        self.record = record
        self.context = context
        """The context in which the task's code runs. It holds the task as the active one."""
        context.run(active_task.set, self)
        self.recording = recording
        self.children = children
        self._record = self.recording.write
        self.assigned: dict[str, Any] = {"stdin": getattr(sys, "stdin", None)}
        """What its code has assigned to attributes of ``sys``, by their names. It begins with the
        input that holds where it is launched."""
        self.has_ended = False
        """Whether the cell has ended. Later output of its threads goes to the foreground."""
        self.is_forked = False
        """Whether this is the copy in a child that the task has forked."""
        self.displays: set[str] = set()
        """Ids of the task's displays, by which they can be updated."""
        self.figures: dict[str, Any] = {}
        """The task's own pyplot state, by the name of each part."""
        self.widgets = Entered()
        """The ``ipywidgets.Output`` widgets that the task's code is inside."""
        self.shown_widgets: dict[str, Any] = {}
        """The displayed widgets, a `kept_widgets.KeptWidget` for each model id."""
        self.shown_error: tuple[str, str] | None = None
        """Name and message of an error that a magic displayed instead of raising it."""
        self.error: BaseException | None = None
        """The last error that was shown."""
        self.post_mortem: dict[str, Any] | None = None
        """The variables where the last error was raised, as `post_mortem` returns them."""
        self.cancellation = Cancellation(self._end_children)
        self.checkpoints: Checkpoints | None = None
        """What it leaves for a task that goes on from it; None where it can leave nothing."""

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
        """Print a note at the end of the output if a saved value exceeds the limit."""
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
        """Record the progress that the task's code reports."""
        self.recording.progress(progress)

    def continue_in_forked_child(self) -> None:
        """Send the output of a freshly forked process to its own descriptors."""
        self.is_forked = True
        self.cancellation.after_fork()
        if not isinstance(self.recording, Silence):
            self.recording = ForkedRecording()
            self._record = self.recording.write
            take_streams()

    def silent(self) -> RunningTask:
        """Return a copy of the task whose output is discarded."""
        recording = Silence()
        same = RunningTask(self.record, recording, self.children.silent(recording), Context())
        same.cancellation = self.cancellation.of_more_code(same._end_children)
        return same

    # Cancelling.

    @property
    def ending(self) -> Ending:
        """What its code is told before it is ended."""
        return self.cancellation.ending

    @property
    def cancelled(self) -> bool:
        """Whether the task's cancellation has been requested."""
        return self.cancellation.is_asked

    def _end_children(self, whole: bool) -> None:
        self.children.terminate(whole)

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is the one that runs the task's cell."""
        here = threading.get_ident()
        # In a process of its own, the cell runs in the main thread and is cancelled by signals.
        return self.cancellation.runs_in(here) or (
            not self.cancellation.has_begun and here == threading.main_thread().ident
        )

    def end(self) -> None:
        """Note the cell's end. Later output of its threads and children goes to the foreground."""
        self.has_ended = True
        self.assigned.clear()
        FOREGROUND.end_task(self)
        self.children.close()
        self.children.leave_to_foreground()

    def begin(self) -> None:
        """Note that the calling thread now runs the task's cell, which may be cancelled.

        Raises `TaskCancelled` if the task was cancelled before.
        """
        FOREGROUND.begin_task(self)
        self.cancellation.begin()


class Foreground:
    """Whether the foreground runs user code, and which tasks run beside it.

    This decides the owner of output that arrives on the process's own file descriptors. So before
    any of it changes, output that has already arrived is passed on.
    """

    def __init__(self) -> None:
        self.is_busy = True
        self.tasks: set[RunningTask] = set()
        self.settle: Callable[[], None] = _nothing_arrives
        """Waits until everything written to the file descriptors so far has been read."""
        self.drain: Callable[[], None] = _nothing_arrives
        """Shows what the foreground's workers have printed so far."""

    def begin_task(self, task: RunningTask) -> None:
        """Note that a task begins to run."""
        self.settle()
        self.tasks.add(task)

    def end_task(self, task: RunningTask) -> None:
        """Note that a task has run."""
        if task in self.tasks:
            self.settle()
            self.tasks.discard(task)

    def begin_cell(self, info: Any = None) -> None:
        """Note that a foreground cell begins. This package's own commands are not user code."""
        self._be_busy(not is_own_command(str(getattr(info, "raw_cell", ""))))

    def end_cell(self, *_event: Any) -> None:
        """Note that a foreground cell has ended or only waits for tasks."""
        self._be_busy(False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note in a block that the foreground only waits for tasks, as in ``%bg_wait``."""
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
    def only_task(self) -> RunningTask | None:
        """The task that runs alone, or None.

        Only this task can be the source of output on the process's own file descriptors.
        """
        if self.is_busy or len(self.tasks) != 1:
            return None
        return next(iter(self.tasks.copy()), None)


def _nothing_arrives() -> None:
    """Do nothing, where the process's own file descriptors are not read."""


FOREGROUND = Foreground()


def is_own_command(source: str) -> bool:
    """Whether a cell is one of this package's own commands."""
    return source.lstrip().startswith(("%bg", "%background", "%%background"))
