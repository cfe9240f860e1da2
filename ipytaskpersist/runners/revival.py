"""What the owner of tasks does when another process has taken it for dead by mistake.

A process that cannot look at another one, because that is on another host or in another container,
judges it by its heartbeats, and may be wrong: it was suspended, or a call kept all its threads from
running. The owner goes on with its tasks as if nothing had been; their history tells both.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from ipytaskpersist.records import TaskState
from ipytaskpersist.store import TaskStore


def take_back(store: TaskStore, keys: Collection[int]) -> None:
    """Go on with those of a process's own running tasks that were declared dead, and say so."""
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
    """Pending to running, also for a task that another process has declared dead."""
    if not store.tasks.start(key, at):
        take_back(store, [key])


def end(
    store: TaskStore, key: int, state: TaskState, reason: str | None, code: int | None, at: float
) -> None:
    """To a final state, also for a task that another process has declared dead."""
    if not store.tasks.end(key, state, reason, code, at):
        take_back(store, [key])
        store.tasks.end(key, state, reason, code, at)
