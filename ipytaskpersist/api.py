"""What a program calls. All of it answers from the store, in any process."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ipytaskpersist.active import active_task
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.handle import Task
from ipytaskpersist.launcher import PROCESS, SHELL, THREAD, Request
from ipytaskpersist.manager import current
from ipytaskpersist.records import Options
from ipytaskpersist.store import Selection


def background(
    source: str,
    name: str = "",
    *,
    shell: bool = False,
    process: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    pty: bool = False,
    shell_path: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    tags: Sequence[str] = (),
    notify: bool | Sequence[str] = False,
) -> Task:
    """Run a cell's source in the background, as ``%%background NAME`` above it would.

    `shell` makes the source a shell command, `process` runs Python in a process of its own; both
    outlive the kernel, and a shell command can be launched by any program. For them, `cwd` is the
    directory, `env` further environment variables, and `timeout` the seconds after which they are
    ended. `pty` gives a command a terminal, `shell_path` is its shell. `inputs` and `outputs` name
    the variables that a Python process is given and leaves; by default those that the source uses
    and assigns. `tags` are words by which lists find the task again. `notify` tells its end at the
    places of the setting `notify`, and at those that are given here.

    Returns as soon as the task is durably recorded. Raises what `%%background` reports: a
    `BackgroundError` for an empty source, for options that make no sense or a store that cannot be
    written, and the error itself for a source that does not compile.
    """
    manager = current()
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
    )
    notify_to = [] if isinstance(notify, bool) else list(notify)
    request = Request(name, where, options, tags, bool(notify), notify_to)
    return Task(manager, manager.launcher.launch(source, request))


def submit(
    function: Callable[..., Any], /, *args: Any, process: bool = False, **kwargs: Any
) -> Task:
    """Call ``function(*args, **kwargs)`` in the background and return its task.

    The task is named after the function. An ``async`` function is run to its end. With `process`
    the call runs in a process of its own, which gets copies of function and arguments and outlives
    the kernel.
    """
    manager = current()
    call = partial(function, *args, **kwargs)
    name = getattr(function, "__name__", type(function).__name__)
    request = Request(name, PROCESS if process else THREAD)
    return Task(manager, manager.launcher.launch_function(call, _source(function), request))


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)


def tasks(*, every_notebook: bool = False) -> list[Task]:
    """This notebook's tasks, or every notebook's, oldest first."""
    manager = current()
    key = None if every_notebook else manager.notebook_key() or -1
    return [Task(manager, record) for record in manager.select(Selection(key))]


def task(ref: str | int | None = None) -> Task:
    """The task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest.

    Raises `TaskNotFound` or `AmbiguousReference`.
    """
    manager = current()
    return Task(manager, manager.find(ref))


def current_task() -> Task | None:
    """The task to which the calling code belongs; None in the foreground."""
    active = active_task.get()
    return None if active is None else Task(current(), active.record)
