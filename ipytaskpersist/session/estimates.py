"""When the tasks of a group probably start: each takes as long as earlier runs of the same name."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.store.queue import GroupRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import utc_now

LOOKED_AT = 1000
"""Tasks of a group, running or waiting, behind which nothing is estimated."""


def starts_in(
    store: TaskStore, group: GroupRecord, waiting: Sequence[TaskRecord]
) -> Mapping[int, float]:
    """Return in how many seconds tasks that wait for their group alone will probably start, by row.

    waiting: the next tasks of the group, in their order.

    A task without an earlier run says nothing about those behind it, and has no estimate only
    where such a task is before it. Tasks that wait for others or for a time have none.
    """
    if group.width is None or group.is_paused or group.running > LOOKED_AT:
        return {}
    now = utc_now()
    running = store.tasks.of_keys(store.queue.keys_in_slots(group.name))
    slots = [
        *(_left(store.tasks.usual_s(task.key), task.elapsed_s(now)) for task in running),
        *[0.0] * max(0, group.width - len(running)),
    ]
    ready = [task for task in waiting if _waits_for_room(task)]
    begun = simulate(slots, [_or_for_ever(store.tasks.usual_s(task.key)) for task in ready])
    return {task.key: at for task, at in zip(ready, begun, strict=True) if at < math.inf}


def simulate(slots: Sequence[float], durations: Sequence[float]) -> list[float]:
    """Return when each task starts, if one after another takes the slot that is free first.

    slots: when each slot is free. durations: how long each task takes. All in seconds, infinite
    where that is not known.
    """
    free = [*slots]
    heapq.heapify(free)
    begun = []
    for duration in durations:
        begun.append(free[0])
        heapq.heapreplace(free, free[0] + duration)
    return begun


def _left(usual_s: float | None, elapsed_s: float | None) -> float:
    """Return how long a running task goes on; one that is late may end at any moment."""
    return math.inf if usual_s is None else max(0.0, usual_s - (elapsed_s or 0.0))


def _or_for_ever(usual_s: float | None) -> float:
    return math.inf if usual_s is None else usual_s


def _waits_for_room(task: TaskRecord) -> bool:
    waiting = task.waiting
    return waiting is not None and not waiting.after and waiting.due_at is None
