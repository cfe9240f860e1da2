"""`Task`: what a program holds of a task. It answers from the store, in any process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from datetime import datetime
from typing import Any

from ipytaskpersist import outputs, views
from ipytaskpersist.active import active_task
from ipytaskpersist.errors import BackgroundError, InvalidRequest, TaskFailed, TaskNotFound
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.progress import progress_of
from ipytaskpersist.records import EventRecord, OutputKind, Progress, TaskRecord, TaskState
from ipytaskpersist.statuscard import CardReader, bundle
from ipytaskpersist.store import TaskStore
from ipytaskpersist.waits import refuse_own


class Task:
    """One run of one background cell or function.

    The verbs are those of `concurrent.futures.Future`. A task can be awaited, and displays itself
    as its status card.
    """

    def __init__(self, manager: BackgroundTasks, record: TaskRecord) -> None:
        self._manager = manager
        self._record = record

    def _place(self) -> tuple[TaskStore, int]:
        """Where it is now: it may have been archived meanwhile, or be gone with all it had."""
        with suppress(TaskNotFound):
            self._record = self._manager.refresh(self._record)
        return self._manager.store_of(self._record), self._record.key

    def _now(self) -> TaskRecord:
        if not self._record.state.is_final:
            self._manager.reconcile()
            self._record = self._manager.refresh(self._record)
        return self._record

    @property
    def id(self) -> str:
        """``<first characters of the session id>-<number>``, unique in the store: eight of them, or
        as many as no other session's id has."""
        return self._record.id

    @property
    def number(self) -> int:
        """1, 2, 3 … in its notebook."""
        return self._record.number

    @property
    def name(self) -> str:
        """What it was called; empty when it was not."""
        return self._record.name

    @property
    def source(self) -> str:
        """The code that it runs."""
        return self._record.source

    @property
    def created_at(self) -> datetime:
        """When it was recorded, in UTC."""
        return self._record.created_at

    @property
    def state(self) -> TaskState:
        """Where it stands now."""
        return self._now().state

    @property
    def reason(self) -> str | None:
        """The evidence for its state, in words."""
        return self._now().reason

    @property
    def exit_code(self) -> int | None:
        """0 when it completed, 1 for an exception, ``SystemExit``'s own code; else None."""
        return self._now().exit_code

    @property
    def started_at(self) -> datetime | None:
        """When it began to run, in UTC."""
        return self._now().started_at

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, in UTC."""
        return self._now().ended_at

    @property
    def stdout(self) -> str:
        """Everything that it has printed to its standard output."""
        return self._text(OutputKind.STDOUT)

    @property
    def stderr(self) -> str:
        """Everything that it has printed to its standard error."""
        return self._text(OutputKind.STDERR)

    def _text(self, kind: OutputKind) -> str:
        cut = outputs.Cut((kind,))
        pieces = outputs.stream_bytes(*self._place(), cut)
        return b"".join(pieces).decode("utf-8", "replace")

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Everything that it has printed, displayed and raised, as nbformat outputs, in order."""
        store, key = self._place()
        records = store.outputs.of(key)
        return outputs.as_nbformat(outputs.resolve(records))

    @property
    def history(self) -> list[EventRecord]:
        """Its states, in order, with the time and reason of each."""
        store, key = self._place()
        return store.tasks.history(key)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._now().state.is_final

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most `timeout` seconds. Returns whether it has.

        Without a timeout a task cannot wait for itself, nor for one of its kernel's threads that
        waits for it: that raises `InvalidRequest`. Tasks of several processes are not looked at.
        """
        (self._record,) = self._manager.wait([self._record], timeout)
        return self._record.state.is_final

    def progress(
        self, done: float | None = None, total: float | None = None, text: str = ""
    ) -> Progress | None:
        """How far it has come; None where nobody has said.

        The task's own code says so by `done` and `total`, in whatever it counts, and by `text`, one
        line about what it does. Lists, cards and panels show it.
        """
        if done is None:
            return self._now().progress
        active = active_task.get()
        if active is None or active.record.id != self.id:
            raise InvalidRequest(
                f"how far task {self._record.label} has come is said by its own code: "
                "current_task().progress(done, total, text)"
            )
        said = progress_of(done, total, text)
        active.progress(said)
        return said

    def cancel(self) -> bool:
        """Ask for its cancellation. Returns False when it had ended, and had left no process."""
        return self._manager.cancel(self._record) or self._manager.end_left(self._record) > 0

    def rerun(self) -> Task:
        """Run it again with the same options, and return the new task.

        Raises `InvalidRequest` when it has not ended.
        """
        if not self.done():
            raise InvalidRequest(f"task {self._record.label} is {self.state}; cancel it first")
        self._record = self._manager.refresh(self._record)
        return Task(self._manager, self._manager.launcher.rerun(self._record))

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the value of its last expression, or of its function.

        In the process that ran it that is the very object; elsewhere one loaded from its signed
        pickle. Raises what the task raised, where that is known; else `TaskFailed`. Raises
        `TimeoutError` when the task has not ended after `timeout` seconds, and
        `ResultUnavailable` when the value could not be kept.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.value()

    def value(self) -> Any:
        """The value of a completed task; None when its last statement is not an expression."""
        outcome = self._manager.outcome(self._record)
        if outcome is not None:
            return None if outcome.has_no_value else outcome.value
        store, key = self._place()
        kept = store.results.get(key)
        return None if kept is None else self._manager.payloads.load(self._record, kept)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what it raised, or None when it completed.

        A task of another process gives a `TaskFailed` that carries the traceback's text.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"task {self._record.label} has not ended after {timeout} s")
        task = self._record
        if task.state is TaskState.COMPLETED:
            return None
        outcome = self._manager.outcome(task)
        if (
            outcome is not None
            and outcome.error is not None
            and isinstance(outcome.error, Exception)
        ):
            return outcome.error
        return failure(task, self.outputs)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        refuse_own([self._record])  # here, because the wait is another thread's
        return asyncio.to_thread(self.result).__await__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        task = self._now()
        name = f" {task.name!r}" if task.name else ""
        return f"<Task {task.number}{name}: {task.state.value}>"

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        card = CardReader(self._manager).read(self._now(), views.utc_now())
        return bundle([card])


def failure(task: TaskRecord, task_outputs: list[dict[str, Any]]) -> BackgroundError:
    """The error that stands for a task that did not complete, with its traceback."""
    why = f" ({task.reason})" if task.reason and task.reason != task.state.value else ""
    message = f"task {task.label} {_was(task.state)}{why}; %bg_output {task.number} shows the rest"
    tracebacks = [out["traceback"] for out in task_outputs if out["output_type"] == "error"]
    error = TaskFailed(message)
    if tracebacks:
        error.add_note("\n".join(tracebacks[-1]))
    return error


def _was(state: TaskState) -> str:
    return "failed" if state is TaskState.FAILED else f"was {state.value}"
