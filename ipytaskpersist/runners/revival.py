"""Recovery of an owner of tasks that another process has wrongly declared dead.

An owner on another host or in another container cannot be inspected, so it is judged by its
heartbeats. The verdict may be wrong: the owner was suspended, or a call blocked all its threads.
The owner continues its tasks regardless. Their history records both events.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore


def take_back(store: TaskStore, keys: Collection[int]) -> None:
    """Take back the process's own running tasks that were declared dead, with a message."""
    if store.read_only:
        return
    buried = store.tasks.declared_dead(keys) if keys else []
    taken = store.tasks.take_back(buried, time.time()) if buried else []
    if taken:
        which = f"task {taken[0]} was" if len(taken) == 1 else f"tasks {', '.join(taken)} were"
        store.say(
            f"{which} said to be interrupted by another process, which had seen no sign of life of "
            "this one; that was a mistake: what runs goes on, and all of it is kept"
        )


def start(store: TaskStore, key: int, at: float) -> None:
    """Change a task from pending to running, even if another process has declared it dead."""
    if not store.tasks.start(key, at):
        take_back(store, [key])


def end(
    store: TaskStore, key: int, state: TaskState, reason: str | None, code: int | None, at: float
) -> None:
    """Change a task to a final state, even if another process has declared it dead."""
    if not store.tasks.end(key, state, reason, code, at):
        take_back(store, [key])
        store.tasks.end(key, state, reason, code, at)
