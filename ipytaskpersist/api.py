"""What programs call. Everything reads from the store, so it works in any process."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from ipytaskpersist.base.records import (
    EventRecord,
    Options,
    OutputKind,
    Progress,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.capture.progress import progress_of
from ipytaskpersist.display.card_content import CardReader
from ipytaskpersist.display.status_card import bundle
from ipytaskpersist.errors import InvalidRequest, TaskNotFound
from ipytaskpersist.inspection.looks import Look
from ipytaskpersist.output import replay
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.session import results
from ipytaskpersist.session.manager import BackgroundTasks, current
from ipytaskpersist.session.requests import (
    PROCESS,
    SHELL,
    THREAD,
    PlaceInQueue,
    Request,
    WholeNotebook,
    retries_of,
)
from ipytaskpersist.session.scheduling import schedule_of
from ipytaskpersist.session.wait_cycles import refuse_own
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting
from ipytaskpersist.values.handed_results import Call, CallWithResults, ResultOf, each_argument


def background(
    source: str,
    name: str = "",
    *,
    shell: bool = False,
    process: bool = False,
    on: str = "",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    pty: bool = False,
    shell_path: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    fresh: bool = False,
    send: Sequence[str | os.PathLike[str]] = (),
    fetch: Sequence[str] = (),
    tags: Sequence[str] = (),
    key: str = "",
    notify: bool | Sequence[str] = False,
    if_running: str = "",
    after: Sequence[Task | str | int] = (),
    group: str = "",
    priority: int = 0,
    at: str | datetime = "",
    every: str = "",
    cron: str = "",
    missed: str = "",
    cpus: float | None = None,
    memory: str | int | None = None,
    gpus: int | None = None,
    gpu_memory: str | int | None = None,
    retries: int = 0,
    on_cause: Sequence[str] = (),
    delay: str = "",
    max_delay: str = "",
    memory_factor: float | None = None,
) -> Task:
    """Run a cell's source in the background, as ``%%background NAME`` above it would.

    `shell` makes the source a shell command, `process` runs Python in its own process; both outlive
    the kernel, and any program can launch a shell command. `on` names the place of the settings
    where either of them runs instead of on this machine. For these two, `cwd` is the working
    directory, `env` adds environment variables, and `timeout` is the number of seconds after which
    the task is ended. `pty` gives a command a terminal, `shell_path` is its shell. `inputs` and
    `outputs` name the variables that a Python process receives and leaves; by default those that
    the source uses and assigns. `fresh` has it begin in a fresh interpreter instead of a copy of a
    warm one. `send` are files and folders that a task at a place is to have there, `fetch` patterns
    of the files to bring back when it has ended; it runs in a folder of its own then. `tags` are
    words by which lists find the task again. A second call with the same `key` in this notebook
    starts nothing and returns the task of the first one. `notify` sends a notification of its end
    to the places of the setting `notify`, and to the places given here.
    `if_running` says what to do while the task of an earlier run of the same cell still runs:
    ``ask``, ``attach`` (which returns that task), ``replace`` or ``new``; by default the setting
    `if_running` does.

    `after` are tasks that have to complete first, or references to them (``"any:3"`` waits for the
    end of task 3 alone). `group` is the group whose width the task takes part of, `priority` puts
    it before waiting tasks of a lower one, and `at` is the time before which it does not start:
    a time with its date, or a text as ``--at`` takes it.

    `every`, such as ``"1d"``, or `cron`, such as ``"0 22 * * 1-5"`` in the local time zone, has a
    process run again and again, a new task each time; the first time at `at`. `missed` says what
    becomes of times that were missed: ``"run"`` (the default) makes up for all of them with one
    run, ``"skip"`` leaves them out.

    `cpus`, `memory`, `gpus` and `gpu_memory` are what a process needs of the machine: it starts
    once that is free, and has it while it runs. A size is a text such as ``"8G"``, or a number of
    bytes. A process that uses more than its `memory` is ended. With `gpu_memory`, tasks share GPUs.

    `retries` is how many further tries may follow when a task in a process ends for one of the
    causes `on_cause` (``oom``, ``reboot``, ``timeout``, ``signal``, ``error``, ``supervisor``; all
    by default). `delay` is the time before the second try, such as ``"30s"``; it doubles with each
    further one, up to `max_delay`, ``"1h"`` by default. After a try that was out of memory, the
    next one may use `memory_factor` times as much.

    Return as soon as the task is durably recorded. Raise what `%%background` reports: a
    `BackgroundError` for an empty source, for options that make no sense or a store that cannot be
    written, and the original error for a source that does not compile.
    """
    manager = current()
    if not isinstance(source, str):
        raise InvalidRequest("background runs a text of code; submit(function) calls a function")
    if shell and process:
        raise InvalidRequest("a task is either a shell command or Python in a process, not both")
    where = SHELL if shell else PROCESS if process else ""
    options = Options(
        cwd=None if cwd is None else os.fspath(cwd),
        env=dict(env or {}),
        timeout_s=timeout,
        pty=pty,
        shell_path=shell_path,
        inputs=None if inputs is None else list(inputs),
        outputs=None if outputs is None else list(outputs),
        fresh=fresh,
        send=[os.fspath(each) for each in send] or None,
        fetch=list(fetch) or None,
    )
    notify_to = [] if isinstance(notify, bool) else list(notify)
    needs = _needs(cpus, memory, gpus, gpu_memory)
    place = replace(needs, after=_references(after), group=group, priority=priority, at=_time(at))
    request = Request(
        *(name, where, options, tags, key, bool(notify), notify_to, if_running),
        place=place,
        retries=retries_of(retries, on_cause, delay, max_delay, memory_factor),
        schedule=schedule_of(every, cron, missed),
        on=on,
    )
    return Task(manager, manager.launcher.launch(source, request).task)


def run_notebook(
    path: str | os.PathLike[str],
    name: str = "",
    *,
    parameters: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] = "",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    tags: Sequence[str] = (),
    key: str = "",
    notify: bool | Sequence[str] = False,
    if_running: str = "",
    after: Sequence[Task | str | int] = (),
    group: str = "",
    priority: int = 0,
    at: str | datetime = "",
    every: str = "",
    cron: str = "",
    missed: str = "",
    cpus: float | None = None,
    memory: str | int | None = None,
    gpus: int | None = None,
    gpu_memory: str | int | None = None,
    retries: int = 0,
    on_cause: Sequence[str] = (),
    delay: str = "",
    max_delay: str = "",
    memory_factor: float | None = None,
) -> Task:
    """Run all cells of a notebook in a kernel of its own, as ``%background --notebook PATH`` does.

    `parameters` are assigned to variables of these names before the rest runs: numbers, texts,
    True, False, None, and lists and dicts of these. `output` is where the executed notebook is
    saved; by default beside the notebook, with the task's id in its name. `cwd` is the directory of
    its kernel, by default the notebook's. The others are those of `background`.

    Return as soon as the task is durably recorded. Raise `InvalidRequest` for a file that is no
    notebook, a kernel that is not installed, and parameters that cannot be given.
    """
    manager = current()
    notebook = WholeNotebook(os.fspath(path), dict(parameters or {}), os.fspath(output))
    options = Options(
        cwd=None if cwd is None else os.fspath(cwd), env=dict(env or {}), timeout_s=timeout
    )
    needs = _needs(cpus, memory, gpus, gpu_memory)
    place = replace(needs, after=_references(after), group=group, priority=priority, at=_time(at))
    request = Request(
        name,
        options=options,
        tags=tags,
        key=key,
        notify=bool(notify),
        notify_to=[] if isinstance(notify, bool) else list(notify),
        if_running=if_running,
        place=place,
        retries=retries_of(retries, on_cause, delay, max_delay, memory_factor),
        schedule=schedule_of(every, cron, missed),
        notebook=notebook,
    )
    return Task(manager, manager.launcher.launch("", request).task)


def _references(after: Sequence[Task | str | int]) -> list[str]:
    return [each.id if isinstance(each, Task) else str(each) for each in after]


def _time(at: str | datetime) -> str:
    return at.astimezone().isoformat() if isinstance(at, datetime) else at


def _needs(
    cpus: float | None,
    memory: str | int | None,
    gpus: int | None,
    gpu_memory: str | int | None,
) -> PlaceInQueue:
    """Return what a task needs of the machine."""
    return PlaceInQueue(cpus=cpus, memory=_size(memory), gpus=gpus, gpu_memory=_size(gpu_memory))


def _size(given: str | int | None) -> str:
    """Return a size as it is typed. A number is one of bytes."""
    return "" if given is None else f"{given} B" if isinstance(given, int) else given


def submit(
    function: Callable[..., Any],
    /,
    *args: Any,
    name: str | None = None,
    process: bool = False,
    on: str = "",
    after: Sequence[Task | str | int] | None = None,
    group: str | None = None,
    cpus: float | None = None,
    memory: str | int | None = None,
    gpus: int | None = None,
    gpu_memory: str | int | None = None,
    retries: int = 0,
    on_cause: Sequence[str] = (),
    delay: str = "",
    max_delay: str = "",
    memory_factor: float | None = None,
    **kwargs: Any,
) -> Task:
    """Call ``function(*args, **kwargs)`` in the background and return its task.

    The task has the name, by default the function's. `after` are tasks that have to complete first,
    and `group` is the group whose width it takes part of. `cpus`, `memory`, `gpus` and `gpu_memory`
    are what it needs of the machine, and `retries`, `on_cause`, `delay`, `max_delay` and
    `memory_factor` say when it is tried again, as for `background`. An ``async`` function runs to
    its end. With `process` the call runs in its own process, which gets copies of function and
    arguments and outlives the kernel; with `on` that process is at a place of the settings.

    An argument that is a task, or a list with tasks in it, stands for the task's result: the call
    waits until that task has completed, and is given the value where it runs, without a copy in
    this process. It fails if the value could not be kept.

    A function that has a parameter of one of these names itself gets it by
    ``functools.partial(function, name=…)``; otherwise `InvalidRequest` is raised.
    """
    manager = current()
    if not callable(function):
        raise InvalidRequest(
            "submit calls a function: submit(print, 3), not submit(print(3)); background(source) "
            "runs a text of code"
        )
    given = {
        "name": name is not None,
        "process": process,
        "on": bool(on),
        "after": after is not None,
        "group": group is not None,
        "cpus": cpus is not None,
        "memory": memory is not None,
        "gpus": gpus is not None,
        "gpu_memory": gpu_memory is not None,
        "retries": bool(retries),
        "on_cause": bool(on_cause),
        "delay": bool(delay),
        "max_delay": bool(max_delay),
        "memory_factor": memory_factor is not None,
    }
    _refuse_own_parameters(function, args, [each for each, is_given in given.items() if is_given])
    call, needed = _with_results(function, args, kwargs)
    if name is None:
        name = str(getattr(_inner(function), "__name__", type(function).__name__))
    needs = _needs(cpus, memory, gpus, gpu_memory)
    after_all = _references([*(after or ()), *needed])
    place = replace(needs, after=after_all, group=group or "")
    again = retries_of(retries, on_cause, delay, max_delay, memory_factor)
    where = PROCESS if process or on else THREAD
    request = Request(name, where, place=place, retries=again, on=on)
    return Task(manager, manager.launcher.launch_function(call, _source(function), request))


def _with_results(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Call, list[Task]]:
    """Return the call, and the tasks whose results it is to have as arguments."""
    needed = [each for each in each_argument(args, kwargs) if isinstance(each, Task)]
    if not needed:
        return partial(function, *args, **kwargs), []

    def without(argument: Any) -> Any:
        if type(argument) is list:
            return [ResultOf(each.id) if isinstance(each, Task) else each for each in argument]
        return ResultOf(argument.id) if isinstance(argument, Task) else argument

    named = {name: without(argument) for name, argument in kwargs.items()}
    return CallWithResults(function, [*map(without, args)], named), needed


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.func if isinstance(function, partial) else function


def _refuse_own_parameters(
    function: Callable[..., Any], args: Sequence[Any], given: Sequence[str]
) -> None:
    """Raise `InvalidRequest` for an argument that both `submit` and the function could take."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind_partial(*args).arguments
    except (ValueError, TypeError):
        return  # the call itself raises, or has no signature
    if isinstance(function, partial):
        bound = {**function.keywords, **bound}
    for each in given:
        if each in signature.parameters and each not in bound:
            called = getattr(_inner(function), "__name__", "the function")
            raise InvalidRequest(
                f"{each}= is an argument of submit, and {called} has a parameter {each}, too; give "
                f"it with functools.partial({called}, {each}=…)"
            )


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)


def tasks(*, every_notebook: bool = False) -> list[Task]:
    """Return this notebook's tasks, or every notebook's, oldest first."""
    manager = current()
    key = None if every_notebook else manager.session.notebook_key() or -1
    return [Task(manager, record) for record in manager.tasks.select(Selection(key))]


def task(ref: str | int | None = None) -> Task:
    """Return the task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest.

    Raise `TaskNotFound` or `AmbiguousReference`.
    """
    manager = current()
    return Task(manager, manager.tasks.find(ref))


def current_task() -> Task | None:
    """Return the task to which the calling code belongs; None in the foreground."""
    active = active_task.get()
    return None if active is None else Task(current(), active.record)


class Task:
    """One run of one background cell or function.

    The methods are those of `concurrent.futures.Future`. A task can be awaited, and displays itself
    as its status card.
    """

    def __init__(self, manager: BackgroundTasks, record: TaskRecord) -> None:
        self._manager = manager
        self._record = record

    def _place(self) -> tuple[TaskStore, int]:
        """Return its current store and key: it may have been archived, or deleted with its data."""
        with suppress(TaskNotFound):
            self._record = self._manager.tasks.refresh(self._record)
        return self._manager.tasks.store_of(self._record), self._record.key

    def _now(self) -> TaskRecord:
        if not self._record.state.is_final:
            self._manager.runners.reconcile()
            self._record = self._manager.tasks.refresh(self._record)
        return self._record

    @property
    def id(self) -> str:
        """``<first eight or more characters of the session id>-<number>``, unique in the store.

        There are more than eight if another session's id begins the same.
        """
        return self._record.id

    @property
    def number(self) -> int:
        """Its number within its notebook: 1, 2, 3 …"""
        return self._record.number

    @property
    def name(self) -> str:
        """Its name; empty if it has none."""
        return self._record.name

    @property
    def source(self) -> str:
        """The code that it runs."""
        return self._record.source

    @property
    def created_at(self) -> datetime:
        """The time when it was recorded, in UTC."""
        return self._record.created_at

    @property
    def state(self) -> TaskState:
        """Its current state."""
        return self._now().state

    @property
    def reason(self) -> str | None:
        """The evidence for its state, in words."""
        return self._now().reason

    @property
    def exit_code(self) -> int | None:
        """0 if it completed, 1 for an exception, the code of ``SystemExit``; otherwise None."""
        return self._now().exit_code

    @property
    def started_at(self) -> datetime | None:
        """The time when it started running, in UTC."""
        return self._now().started_at

    @property
    def ended_at(self) -> datetime | None:
        """The time when it ended, in UTC."""
        return self._now().ended_at

    @property
    def stdout(self) -> str:
        """Everything that it has printed to standard output."""
        return self._text(OutputKind.STDOUT)

    @property
    def stderr(self) -> str:
        """Everything that it has printed to standard error."""
        return self._text(OutputKind.STDERR)

    def _text(self, kind: OutputKind) -> str:
        cut = replay.Cut((kind,))
        pieces = replay.stream_bytes(*self._place(), cut)
        return b"".join(pieces).decode("utf-8", "replace")

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Everything that it has printed, displayed and raised, as nbformat outputs, in order."""
        store, key = self._place()
        records = store.outputs.of(key)
        return replay.as_nbformat(replay.resolve(records))

    @property
    def history(self) -> list[EventRecord]:
        """Its states in order, each with its time and reason."""
        store, key = self._place()
        return store.tasks.history(key)

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._now().state.is_final

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most `timeout` seconds. Return whether it has.

        Without a timeout a task cannot wait for itself, nor for a thread task of its kernel that
        waits for it: that raises `InvalidRequest`. Cycles across processes are not detected.
        """
        (self._record,) = self._manager.waiting.wait([self._record], timeout)
        return self._record.state.is_final

    def progress(
        self, done: float | None = None, total: float | None = None, text: str = ""
    ) -> Progress | None:
        """Return its progress, or report it; None if it has never been reported.

        The task's own code reports it with `done` and `total`, in any unit, and with `text`, one
        line about what it is doing. Lists, cards and panels show it.
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

    def stack(self) -> Look:
        """Return what it does now: its threads, asyncio tasks and processes, with their calls.

        ``str`` of it is what ``%bg_stack`` shows. Raise `InvalidRequest` for a task that does not
        run, that runs at another place, or that is out of sight on another machine.
        """
        return self._manager.inspecting.look(self._record)

    def cancel(self) -> bool:
        """Request its cancellation. Return False if it had ended and had left no process."""
        changes = self._manager.changes
        return changes.cancel(self._record) or changes.end_left(self._record) > 0

    def rerun(self, *, anyway: bool = False) -> Task:
        """Run it again with the same options, and return the new task.

        Raise `InvalidRequest` if it has not ended. Unless `anyway`, raise `NamesMissing` for a
        thread task that uses variables which this kernel does not have.
        """
        if not self.done():
            raise InvalidRequest(f"task {self._record.label} is {self.state}; cancel it first")
        self._record = self._manager.tasks.refresh(self._record)
        return Task(self._manager, self._manager.launcher.rerun(self._record, anyway=anyway))

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the value of its last expression, or of its function.

        In the process that ran it this is the very object; elsewhere it is loaded from its signed
        pickle. Raise what the task raised if that is known, otherwise `TaskFailed`. Raise
        `TimeoutError` if the task has not ended after `timeout` seconds, and `ResultUnavailable` if
        the value could not be kept.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.value()

    def value(self) -> Any:
        """Return the value of a completed task; None if its last statement is not an expression."""
        self._place()
        return self._manager.results.value(self._record)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return the exception that it raised, or None if it completed.

        A task of another process gives a `TaskFailed` that carries the traceback's text.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"task {self._record.label} has not ended after {timeout} s")
        task = self._record
        if task.state is TaskState.COMPLETED:
            return None
        outcome = self._manager.results.outcome(task)
        if (
            outcome is not None
            and outcome.error is not None
            and isinstance(outcome.error, Exception)
        ):
            return outcome.error
        return results.failure(task, self.outputs)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        refuse_own([self._record])  # here, because the wait runs in another thread
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
        card = CardReader(self._manager).read(self._now(), formatting.utc_now())
        return bundle([card])
