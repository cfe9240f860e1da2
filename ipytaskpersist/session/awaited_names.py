"""Say which running task assigns a name that a cell has missed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.cell_events import call_between_cells
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection


def install(manager: BackgroundTasks) -> None:
    """Look for the task after each cell that ends with a `NameError`, from now on."""
    if manager.shell is not None:
        call_between_cells(
            manager.shell, manager.runners.on_close.append, _before, _after_cell(manager)
        )


def _before(_info: Any) -> None:
    pass


def _after_cell(manager: BackgroundTasks) -> Callable[[Any], None]:
    def after_cell(result: Any) -> None:
        error = getattr(result, "error_in_exec", None)
        if type(error) is NameError and error.name:
            with suppress(BackgroundError):
                task = _assigner(manager, error.name)
                if task is not None:
                    print(legible(in_words(manager, task, error.name)), file=sys.stderr)

    return after_cell


def _assigner(manager: BackgroundTasks, name: str) -> TaskRecord | None:
    """Return the latest live task of this notebook that assigns a variable."""
    key = manager.session.notebook_key()
    live = [] if key is None else manager.tasks.select(Selection(key, LIVE_STATES))
    assigners = (task for task in reversed(live) if name in manager.results.to_assign(task))
    return next(assigners, None)


def in_words(manager: BackgroundTasks, task: TaskRecord, name: str) -> str:
    """Return the line below the traceback."""
    # The variables of a process task come back by themselves only where it was launched.
    is_own = task.runner == "thread" or task.session == manager.session.identity.id
    then = "" if is_own else f", then %bg_load {task.number} {name}"
    return f"task {task.label} assigns {name} and still runs: %bg_wait {task.number}{then}"
