"""What a program calls. All of it answers from the store, in any process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from ipytaskpersist.active import active_task
from ipytaskpersist.handle import Task
from ipytaskpersist.manager import current
from ipytaskpersist.store import Selection


def background(source: str, name: str = "") -> Task:
    """Run a cell's source in the background, as ``%%background NAME`` above it would.

    Returns as soon as the task is durably recorded. Raises what `%%background` reports: a
    `BackgroundError` for an empty source or a store that cannot be written, and the error itself
    for a source that does not compile.
    """
    manager = current()
    return Task(manager, manager.launch_cell(source, name))


def submit(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
    """Call ``function(*args, **kwargs)`` in the background and return its task.

    The task is named after the function. An ``async`` function is run to its end.
    """
    manager = current()
    call = partial(function, *args, **kwargs)
    name = getattr(function, "__name__", type(function).__name__)
    return Task(manager, manager.launch_function(call, _source(function), name))


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
