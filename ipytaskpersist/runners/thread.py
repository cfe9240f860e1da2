"""Run tasks in threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from time import sleep
from typing import Any

from ipytaskpersist.base import traceback_frames
from ipytaskpersist.base.foreign_errors import class_name, describe, plain_text
from ipytaskpersist.base.leftover_processes import Kernel, Mark
from ipytaskpersist.base.records import ResultRecord, TaskRecord, TaskState
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.capture import figures, kept_widgets, progress
from ipytaskpersist.capture.child_processes import Children, end_all
from ipytaskpersist.cells.execution import (
    NOTHING,
    Outcome,
    be_ready_for_errors,
    close_loop_of_thread,
)
from ipytaskpersist.errors import NoThread
from ipytaskpersist.inspection import listening
from ipytaskpersist.isolation import working_directory
from ipytaskpersist.isolation.context_variables import Contexts
from ipytaskpersist.isolation.thread_settings import Launched, ThreadSettings
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.runners import revival
from ipytaskpersist.runners.guarded import Guarded
from ipytaskpersist.runners.task_end import TaskEnd
from ipytaskpersist.running import forks
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.running.running_task import RunningTask, active_task
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.result_records import not_kept

LET_REPLY_S = 0.003
IDLE_WORKERS = 4
IDLE = "ipytaskpersist-worker"
"""Name of a thread that runs no task."""
Work = Callable[[RunningTask], Outcome]


class Worker:
    """A thread that runs tasks one after another."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        """`on_end` is called in the thread after its last task."""
        self._on_end = on_end
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        if not start_outside(threading.Thread(target=self._run, name=IDLE, daemon=True)):
            raise NoThread

    def _run(self) -> None:
        working_directory.part()
        while (job := self._jobs.get()) is not None:
            job()
            threading.current_thread().name = IDLE
            del job  # releases the task's inputs while the thread is idle
        close_loop_of_thread()
        self._on_end()

    def do(self, job: Callable[[], None]) -> None:
        """Run this job next."""
        self._jobs.put(job)

    def retire(self) -> None:
        """End the thread after the current job."""
        self._jobs.put(None)


@dataclass(frozen=True, slots=True)
class AtLaunch:
    """Context, settings and directory of the calling cell when a task was launched."""

    context: Context
    settings: Launched
    place: working_directory.WorkingPlace | None

    def enter(self) -> None:
        """Change the calling thread to that cell's directory."""
        if self.place is not None:
            with suppress(OSError):
                working_directory.go_to(self.place)


@dataclass(frozen=True, slots=True)
class _Run:
    """A task in its thread, or before it has one, with the objects it uses."""

    task: RunningTask
    recording: Recording
    children: Children
    launched: AtLaunch
    work: Work
    on_end: Callable[[], None]


class ThreadRunner:
    """The running and ended tasks in threads of this process."""

    def __init__(
        self,
        recorder: Recorder,
        payloads: Payloads,
        text_form: Callable[[Any], str],
        contexts: Contexts,
        large_bytes: Callable[[], int | None],
        guarded: Guarded,
        with_checkpoints: Callable[[RunningTask], None],
    ) -> None:
        """`large_bytes` returns the size from which a task reports that its value is kept.

        `with_checkpoints` lets a task leave checkpoints, and gives it time when it is cancelled.
        """
        self._recorder = recorder
        self._payloads = payloads
        self._text_form = text_form
        self._contexts = contexts
        self._large_bytes = large_bytes
        self._guarded = guarded
        self._with_checkpoints = with_checkpoints
        self.settings = ThreadSettings()
        self._idle: list[Worker] = []
        self._waiting: dict[int, _Run] = {}
        """The tasks that wait for their group, for other tasks, or for a time."""
        self._active: dict[int, RunningTask] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._ended: dict[int, threading.Event] = {}
        self._listener = listening.begin(None)

    def reserve(self) -> Worker:
        """Return a thread for a task about to be recorded: a task without one would wait for ever.

        Raises `NoThread`.
        """
        self._recorder.start()
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._recorder.let_go_of_store)

    def give_back(self, worker: Worker) -> None:
        """Keep an idle thread for the next task."""
        if len(self._idle) < IDLE_WORKERS:
            self._idle.append(worker)
        else:
            worker.retire()

    def launch(
        self, record: TaskRecord, work: Work, on_end: Callable[[], None], worker: Worker
    ) -> None:
        """Run a task that is pending in the store in the thread reserved for it."""
        self._begin(self._prepared(record, work, on_end), worker)

    def wait(self, record: TaskRecord, work: Work, on_end: Callable[[], None]) -> None:
        """Keep a task until it may start."""
        self._waiting[record.key] = self._prepared(record, work, on_end)
        self._count_live()
        self._recorder.watch_now()

    def start(self, key: int, worker: Worker) -> None:
        """Run a waiting task that was claimed in the store, in the thread reserved for it."""
        self._begin(self._waiting.pop(key), worker)

    def drop(self, keys: Collection[int]) -> list[int]:
        """Forget those of these tasks that wait: they have ended in the store. Return which."""
        dropped = [key for key in keys if self._waiting.pop(key, None) is not None]
        for key in dropped:
            self._ended[key].set()
        self._count_live()
        return dropped

    @property
    def waiting(self) -> list[int]:
        """The keys of the tasks that have not begun yet."""
        return [*self._waiting]

    def _count_live(self) -> None:
        self._recorder.live_tasks = len(self._active) + len(self._waiting)

    def _prepared(self, record: TaskRecord, work: Work, on_end: Callable[[], None]) -> _Run:
        """Return a task with all that it takes from the cell that launches it."""
        recording = Recording(self._recorder, record.key, record.max_output_bytes)
        foreground = copy_context()
        mark = Mark(record.id, Kernel.own())
        children = Children(recording, mark, self._guarded.need)
        task = RunningTask(record, recording, children, self._contexts.for_task())
        self._with_checkpoints(task)
        figures.begin(task)
        self._ended[record.key] = threading.Event()
        launched = AtLaunch(foreground, self.settings.at_launch(), working_directory.here())
        return _Run(task, recording, children, launched, work, on_end)

    def _begin(self, run: _Run, worker: Worker) -> None:
        self._active[run.task.record.key] = run.task
        self._count_live()
        worker.do(lambda: self._run(run, worker))

    def _run(self, run: _Run, worker: Worker) -> None:
        task, launched = run.task, run.launched
        threading.current_thread().name = f"background {task.record.label}"
        launched.enter()
        # Let the launching cell reply first: two active threads would delay each other.
        sleep(LET_REPLY_S)
        be_ready_for_errors()
        self._payloads.be_ready()
        key, started = task.record.key, time.time()
        self._recorder.post(lambda store: revival.start(store, key, started))
        self.settings.begin(launched.settings)
        active_task.set(task)
        outcome = self._outcome(task, run.work)
        if task.is_forked:
            forks.end(outcome.exit_code)
        ended = time.time()
        self._calmly(lambda: kept_widgets.end(task))
        self._calmly(lambda: progress.end(task))
        self._calmly(lambda: task.ending.close(task.cancellation.grace_s))
        self._calmly(task.end)
        # The post-mortem summarizes the frames' variables, which may take most of the memory.
        self._calmly(lambda: traceback_frames.let_go(outcome.error))
        self._calmly(lambda: traceback_frames.let_go(task.error))
        ended_as, result = self._keep(task, outcome)
        if result is not None:
            self._calmly(partial(task.say_large, result, self._large_bytes()))
        self._calmly(lambda: self._contexts.keep(launched.context, task.context))
        self._calmly(lambda: figures.leave(task))
        self._calmly(lambda: self.settings.keep(launched.settings))
        self._outcomes[key] = ended_as
        self._release(worker, task)
        self._record_end(run, ended_as, result, ended)
        run.on_end()
        if task.cancelled:
            run.children.terminate_left()

    def _calmly(self, step: Callable[[], object]) -> None:
        """Run a cleanup step of an ended task. The end is recorded even if the step fails."""
        try:
            step()
        except BaseException as error:
            self._recorder.say(f"a task that ended has not left all that it had: {describe(error)}")

    def _release(self, worker: Worker, task: RunningTask) -> None:
        """Return the thread to the pool, for the next task.

        This precedes the announcement of the end, so that a cell launched afterwards gets the same
        thread: some objects, such as sqlite3 connections, are bound to one.
        """
        if task.cancelled:
            worker.retire()
        else:
            self.give_back(worker)

    def _record_end(
        self, run: _Run, outcome: Outcome, result: ResultRecord | None, ended: float
    ) -> None:
        key = run.task.record.key
        end = TaskEnd(
            key,
            outcome.state,
            outcome.reason,
            outcome.exit_code,
            ended,
            [] if result is None else [result],
            run.task.post_mortem,
        )
        # Where the store cannot be written this waits, and the task stands as running: what is
        # not recorded has not happened.
        self._recorder.change(lambda store: end.record(store, run.recording))
        self._active.pop(key, None)
        self._count_live()
        if self._waiting:
            self._recorder.watch_now()  # it may have waited for this end
        self._recorder.discard(run.recording)
        self._ended[key].set()

    def _outcome(self, task: RunningTask, work: Work) -> Outcome:
        try:
            task.begin()
            if self._listener is not None:
                self._listener.note_threads()
            outcome = work(task)
        except BaseException as error:
            if task.cancelled:
                outcome = Outcome(TaskState.CANCELLED, "cancelled", error=error)
            else:
                outcome = Outcome(TaskState.FAILED, describe(error), 1, error=error)
        if task.cancellation.leave():
            outcome = Outcome(TaskState.CANCELLED, "cancelled")
        elif task.ending.was_used and outcome.state is TaskState.COMPLETED:
            outcome = replace(outcome, state=TaskState.CANCELLED, reason="cancelled")
        return outcome

    def _keep(self, task: RunningTask, outcome: Outcome) -> tuple[Outcome, ResultRecord | None]:
        """Pickle the value. This runs code of its class, which may raise anything or never end."""
        if outcome.value is NOTHING or outcome.value is None:
            active_task.set(None)
            return outcome, None
        # Output that a class prints while it is pickled or shown again is not the cell's.
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
        """Return the event that is set once the task's end is recorded."""
        return self._ended[key]

    def outcome(self, key: int) -> Outcome | None:
        """Return how a task of this process ended, with its actual value and exception, or None."""
        return self._outcomes.get(key)

    def running(self) -> list[RunningTask]:
        """Return the running tasks."""
        return list(self._active.values())

    def live(self) -> list[TaskRecord]:
        """Return the tasks that run, and those that wait."""
        runs = [*self._waiting.values()]
        return [task.record for task in (*self.running(), *(run.task for run in runs))]

    def keep_widgets(self) -> None:
        """Record the state of running tasks' widgets, because their kernel is ending."""
        for task in self.running():
            kept_widgets.keep_now(task)

    def close(self) -> None:
        """End the idle threads, and the guard if it has nothing to guard."""
        while self._idle:
            self._idle.pop().retire()
        self._guarded.close()
        if self._listener is not None:
            self._listener.end()

    def end_children(self) -> None:
        """End all child processes of the tasks, because this process is ending."""
        if self._guarded.was_needed:
            end_all()

    def forget(self, key: int) -> None:
        """Release an ended task's value."""
        if key not in self._active:
            self._outcomes.pop(key, None)
            self._ended.pop(key, None)
