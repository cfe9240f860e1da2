"""Have the ends of tasks told: by a process of its own, so that nobody waits for a mail server.

Whoever records the end of a task starts that process, and so does whoever finds out that a task
has ended. It takes the places from the store itself, in one transaction, so that only one tells
however many were started; and they are on no command line, which others could read.
"""

from __future__ import annotations

import os
import subprocess
import time

from ipytaskpersist import problems
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.places import Wanted
from ipytaskpersist.records import TaskRecord
from ipytaskpersist.runners.detached import python_command, start_detached
from ipytaskpersist.store import TaskStore

AT_ONCE = 50
"""How many tasks one process tells of."""
OVERDUE_S = 10.0
"""After how long nobody is about to tell of a task whose end was to be told: he was killed."""

AGAIN_S = 60.0
"""How long who was started to tell is given before another is."""

_told_at: dict[str, float] = {}
"""When this process has last had the ends of tasks told, by the monotonic clock."""
_started: list[subprocess.Popen[bytes]] = []
"""The processes that this one has started: a parent must take their exit status."""


def tell(store: TaskStore, key: int | None = None) -> None:
    """Have the ends told that are to be told: of one task, or of all."""
    _tell(store, store.tasks.to_tell(key))


def tell_overdue(store: TaskStore) -> None:
    """Have those told of which somebody else should have told."""
    now = time.monotonic()
    for key, at in [*_told_at.items()]:
        if now - at > AGAIN_S:
            del _told_at[key]
    overdue = store.tasks.to_tell(before=time.time() - OVERDUE_S)
    _tell(store, [task for task in overdue if task.id not in _told_at])


def _tell(store: TaskStore, ended: list[TaskRecord]) -> None:
    if not ended:
        return
    due = []
    for task in ended:
        if Wanted.of(task.notify).is_due(task):
            due.append(task)
        else:
            # The places may be secrets, and are not kept longer than they are needed.
            store.tasks.take_notify(task.key)
    for first in range(0, len(due), AT_ONCE):
        _start(store, due[first : first + AT_ONCE])


def _start(store: TaskStore, tasks: list[TaskRecord]) -> None:
    directory = store.directory
    references = [f"{task.key}:{task.id}" for task in tasks]
    _told_at.update((task.id, time.monotonic()) for task in tasks)
    _started[:] = [each for each in _started if each.poll() is None]
    try:
        command = [*python_command("notifier"), str(directory.root), *references]
        _started.append(start_detached(command, os.environ, directory.notifier_log))
    except (OSError, InvalidRequest, StoreError) as error:
        problems.record(directory, f"the end of tasks could not be told ({error})")
