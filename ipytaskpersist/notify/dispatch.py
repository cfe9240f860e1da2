"""Send notifications from a separate process, so that no caller waits for a mail server.

The process that records the end of a task starts it, as does any process that discovers that a task
has ended. It takes the places from the store itself, in one transaction, so that only one notifies
however many were started. The places are on no command line, which others could read.
"""

from __future__ import annotations

import os
import subprocess
import time

from ipytaskpersist.base.detached import python_command, start_detached
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.notify.targets import Wanted
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore

AT_ONCE = 50
"""Number of tasks that one notifier process handles."""
OVERDUE_S = 10.0
"""Resend after this long: the notifier must have been killed."""

AGAIN_S = 60.0
"""Time that a started notifier gets before another one is started."""

_sent_at: dict[str, float] = {}
"""Time at which this process last started a notifier for each task, by the monotonic clock."""
_started: list[subprocess.Popen[bytes]] = []
"""Notifier processes that this one has started: a parent must reap them."""


def notify(store: TaskStore, key: int | None = None) -> None:
    """Send the pending notifications of one task, or of all."""
    _send(store, store.tasks.to_notify(key))


def notify_overdue(store: TaskStore) -> None:
    """Send notifications that another process should have sent."""
    now = time.monotonic()
    for key, at in [*_sent_at.items()]:
        if now - at > AGAIN_S:
            del _sent_at[key]
    overdue = store.tasks.to_notify(before=time.time() - OVERDUE_S)
    _send(store, [task for task in overdue if task.id not in _sent_at])


def _send(store: TaskStore, ended: list[TaskRecord]) -> None:
    if not ended:
        return
    due = []
    for task in ended:
        if Wanted.of(task.notify).is_due(task):
            due.append(task)
        else:
            # Places may be secrets, and are kept no longer than needed.
            store.tasks.take_notify(task.key)
    for first in range(0, len(due), AT_ONCE):
        _start(store, due[first : first + AT_ONCE])


def _start(store: TaskStore, tasks: list[TaskRecord]) -> None:
    directory = store.directory
    references = [f"{task.key}:{task.id}" for task in tasks]
    _sent_at.update((task.id, time.monotonic()) for task in tasks)
    _started[:] = [each for each in _started if each.poll() is None]
    try:
        command = [*python_command("notify.notifier"), str(directory.root), *references]
        _started.append(start_detached(command, os.environ, directory.notifier_log))
    except (OSError, InvalidRequest, StoreError) as error:
        problems.record(directory, f"the end of tasks could not be told ({error})")
