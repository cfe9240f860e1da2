"""Run tasks in threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import sleep
from typing import Any

from ipytaskpersist import directories, figures, forked, frames, progress
from ipytaskpersist.active import ActiveTask, active_task, start_outside
from ipytaskpersist.capture import keptwidgets
from ipytaskpersist.cell import (
    NOTHING,
    Outcome,
    be_ready_for_errors,
    close_loop_of_thread,
)
from ipytaskpersist.children import Children, end_all
from ipytaskpersist.contexts import Contexts
from ipytaskpersist.errors import NoThread
from ipytaskpersist.interruption import is_from_outside
from ipytaskpersist.leftovers import Kernel, Mark
from ipytaskpersist.mishaps import class_name, describe, plain_text
from ipytaskpersist.payload import Payloads, not_kept
from ipytaskpersist.recorder import Recorder
from ipytaskpersist.recording import Recording
from ipytaskpersist.records import ResultRecord, TaskRecord, TaskState
from ipytaskpersist.runners import revival
from ipytaskpersist.runners.guarded import Guarded
from ipytaskpersist.threadsettings import Launched, ThreadSettings

LET_REPLY_S = 0.003
IDLE_WORKERS = 4
IDLE = "ipytaskpersist-worker"
"""The name of a thread while it runs no task."""
Work = Callable[[ActiveTask], Outcome]


class Worker:
    """A thread that runs one task after the other."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        """`on_end` is called in the thread when it has run its last task."""
        self._on_end = on_end
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        if not start_outside(threading.Thread(target=self._run, name=IDLE, daemon=True)):
            raise NoThread

    def _run(self) -> None:
        directories.part()
        while (job := self._jobs.get()) is not None:
            job()
            threading.current_thread().name = IDLE
            del job  # and with it what its task was given, for as long as there is no other
        close_loop_of_thread()
        self._on_end()

    def do(self, job: Callable[[], None]) -> None:
        """Do this next."""
        self._jobs.put(job)

    def retire(self) -> None:
        """End after what is being done."""
        self._jobs.put(None)


@dataclass(frozen=True, slots=True)
class AtLaunch:
    """What held for the calling cell when a task was launched."""

    context: Context
    settings: Launched
    place: directories.Place | None

    def enter(self) -> None:
        """Bring the calling thread where that cell was."""
        if self.place is not None:
            with suppress(OSError):
                directories.go_to(self.place)


class ThreadRunner:
    """The tasks that run, and have run, in threads of this process."""

    def __init__(
        self,
        recorder: Recorder,
        payloads: Payloads,
        text_form: Callable[[Any], str],
        contexts: Contexts,
        large_bytes: Callable[[], int | None],
        guarded: Guarded,
    ) -> None:
        """`large_bytes` gives the size from which on a task says that its value is kept."""
        self._recorder = recorder
        self._payloads = payloads
        self._text_form = text_form
        self._contexts = contexts
        self._large_bytes = large_bytes
        self._guarded = guarded
        self.settings = ThreadSettings()
        self._idle: list[Worker] = []
        self._active: dict[int, ActiveTask] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._ended: dict[int, threading.Event] = {}

    def reserve(self) -> Worker:
        """The thread for a task that is not recorded yet: a task without one would wait for ever.

        Raises `NoThread`.
        """
        self._recorder.start()
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._recorder.let_go_of_store)

    def give_back(self, worker: Worker) -> None:
        """Keep a thread that has nothing to do for the next task."""
        if len(self._idle) < IDLE_WORKERS:
            self._idle.append(worker)
        else:
            worker.retire()

    def launch(
        self, record: TaskRecord, work: Work, on_end: Callable[[], None], worker: Worker
    ) -> None:
        """Run a task that the store has as pending in the thread that is reserved for it."""
        recording = Recording(self._recorder, record.key, record.max_output_bytes)
        foreground = copy_context()
        mark = Mark(record.id, Kernel.own())
        children = Children(recording, mark, self._guarded.need)
        task = ActiveTask(record, recording, children, self._contexts.for_task())
        figures.begin(task)
        self._active[record.key] = task
        self._ended[record.key] = threading.Event()
        self._recorder.live_tasks = len(self._active)
        launched = AtLaunch(foreground, self.settings.at_launch(), directories.here())
        worker.do(lambda: self._run(task, work, launched, worker, on_end))

    def _run(
        self,
        task: ActiveTask,
        work: Work,
        launched: AtLaunch,
        worker: Worker,
        on_end: Callable[[], None],
    ) -> None:
        threading.current_thread().name = f"background {task.record.label}"
        launched.enter()
        # The cell that launched it replies first: two threads at once would delay each other.
        sleep(LET_REPLY_S)
        be_ready_for_errors()
        self._payloads.be_ready()
        key, started = task.record.key, time.time()
        self._recorder.post(lambda store: revival.start(store, key, started))
        self.settings.begin(launched.settings)
        active_task.set(task)
        outcome = self._outcome(task, work)
        if task.is_forked:
            forked.end(outcome.exit_code)
        ended = time.time()
        self._calmly(lambda: keptwidgets.end(task))
        self._calmly(lambda: progress.end(task))
        self._calmly(task.end)
        # What they held is summed up in the post-mortem. It may be most of the memory.
        self._calmly(lambda: frames.let_go(outcome.error))
        self._calmly(lambda: frames.let_go(task.error))
        ended_as, result = self._keep(task, outcome)
        if result is not None:
            self._calmly(partial(task.say_large, result, self._large_bytes()))
        self._calmly(lambda: self._contexts.keep(launched.context, task.context))
        self._calmly(lambda: figures.leave(task))
        self._calmly(lambda: self.settings.keep(launched.settings))
        self._outcomes[key] = ended_as
        self._release(worker, task)
        self._record_end(task, ended_as, result, ended)
        on_end()
        if task.cancelled:
            task.children.terminate_left()

    def _calmly(self, step: Callable[[], object]) -> None:
        """Do what belongs to a task's end, which is recorded whatever this raises."""
        try:
            step()
        except BaseException as error:
            self._recorder.say(f"a task that ended has not left all that it had: {describe(error)}")

    def _release(self, worker: Worker, task: ActiveTask) -> None:
        """Give the thread to the next task.

        Before the end is told, so that a cell launched after it finds its predecessor's thread:
        some objects, as sqlite3's connections, are bound to one.
        """
        if task.cancelled:
            worker.retire()
        else:
            self.give_back(worker)

    def _record_end(
        self, task: ActiveTask, outcome: Outcome, result: ResultRecord | None, ended: float
    ) -> None:
        key = task.record.key

        def end(store: Any) -> None:
            task.recording.finish(store)
            if result is not None:
                store.results.save(key, result)
            if outcome.state is TaskState.FAILED and task.post_mortem is not None:
                store.tasks.save_post_mortem(key, task.post_mortem)
            revival.end(store, key, outcome.state, outcome.reason, outcome.exit_code, ended)

        # Where the store cannot be written this waits, and the task stands as running: what is
        # not recorded has not happened.
        self._recorder.change(end)
        self._active.pop(key, None)
        self._recorder.live_tasks = len(self._active)
        self._recorder.recordings.discard(task.recording)
        self._ended[key].set()

    def _outcome(self, task: ActiveTask, work: Work) -> Outcome:
        try:
            task.begin()
            outcome = work(task)
        except BaseException as error:
            if task.cancelled:
                outcome = Outcome(TaskState.CANCELLED, "cancelled", error=error)
            else:
                outcome = Outcome(TaskState.FAILED, describe(error), 1, error=error)
        if task.cancellation.leave():
            outcome = Outcome(TaskState.CANCELLED, "cancelled")
        return outcome

    def _keep(self, task: ActiveTask, outcome: Outcome) -> tuple[Outcome, ResultRecord | None]:
        """Pickle the value. That is code of its class, which may raise anything or never end."""
        if outcome.value is NOTHING or outcome.value is None:
            active_task.set(None)
            return outcome, None
        # What a class prints while it is pickled, or shown once more, is no output of the cell.
        silent = self._active[task.record.key] = task.silent()
        active_task.set(silent)
        try:
            silent.cancellation.enter()
            kept = self._save(task.record, outcome)
        except BaseException as error:
            kept = not_kept("", outcome.text or "", error)
            if is_from_outside(error):
                outcome = Outcome(TaskState.CANCELLED, "cancelled")
        silent.cancellation.leave()
        silent.children.close()
        active_task.set(None)
        return outcome, kept

    def _save(self, record: TaskRecord, outcome: Outcome) -> ResultRecord:
        text = self._text_of(outcome.value) if outcome.text is None else outcome.text
        text = text or f"<{class_name(outcome.value)}>"
        return self._payloads.save(record.id, "", outcome.value, text)

    def _text_of(self, value: Any) -> str:
        try:
            return plain_text(self._text_form(value))
        except BaseException as error:  # a repr may raise anything
            if is_from_outside(error):
                raise
            return f"<{class_name(value)} whose repr raised {class_name(error)}>"

    def cancel(self, key: int) -> bool:
        """Cancel a task of this process. Returns whether it was running here."""
        task = self._active.get(key)
        if task is not None:
            task.cancellation.ask()
        return task is not None

    def owns(self, key: int) -> bool:
        """Whether the task runs, or has run, in this process."""
        return key in self._ended

    def ended(self, key: int) -> threading.Event:
        """Set once the end of a task of this process is recorded."""
        return self._ended[key]

    def outcome(self, key: int) -> Outcome | None:
        """How a task of this process ended, with the very value and exception; None otherwise."""
        return self._outcomes.get(key)

    def running(self) -> list[ActiveTask]:
        """The tasks that run now."""
        return list(self._active.values())

    def keep_widgets(self) -> None:
        """Record what the widgets of running tasks show: their kernel ends."""
        for task in self.running():
            keptwidgets.keep_now(task)

    def close(self) -> None:
        """End the threads that wait for another task, and a guard that has nothing to guard."""
        while self._idle:
            self._idle.pop().retire()
        self._guarded.close()

    def end_children(self) -> None:
        """End what the tasks have started: this process is about to end."""
        if self._guarded.was_needed:
            end_all()

    def forget(self, key: int) -> None:
        """Let go of an ended task's value."""
        if key not in self._active:
            self._outcomes.pop(key, None)
            self._ended.pop(key, None)
