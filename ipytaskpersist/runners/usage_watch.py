"""What the supervisor's tasks use of the machine over time, for cards, `show` and `top`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ipytaskpersist.base.process_tree import Process, Snapshot
from ipytaskpersist.base.usage import Point, Usage, thinned
from ipytaskpersist.inspection.usage import Counters, counters_of
from ipytaskpersist.runners import machine
from ipytaskpersist.runners.supervised import Supervised

LOOK_S = 1.0
"""How often tasks are looked at."""
QUIET_LOOK_S = 8.0
"""How often at least, while none of them does anything."""
SAVE_S, SAVE_LATER_S = 2.0, 60.0
"""How often what a task has used is saved, if there is news: at first, and in the long run."""
SHARE_OF_RUN = 6
"""In between, it is saved each time that the task has run for this part longer."""
FAMILY_S = 10.0
"""How often new processes of the tasks are looked for. A task's own is known from its start."""
ROOM = 100
SHARE_OF_TIME = 600
"""The time between two looks is at least so many times that which a look takes."""


@dataclass(slots=True)
class _Watched:
    """One task, and what it was last seen to have used."""

    task: Supervised
    family: Sequence[Process]
    counters: Counters
    points: list[Point] = field(default_factory=list)
    is_new: bool = False
    """Whether there is something that is not in the store."""
    began_at: float = field(default_factory=time.monotonic)
    room: int = ROOM
    """Number of points at which they are thinned."""
    saved_at: float = field(default_factory=time.monotonic)

    def is_due(self, now: float) -> bool:
        """Return whether it is to be saved."""
        age_s = now - self.began_at
        pause_s = min(max(SAVE_S, age_s / SHARE_OF_RUN), SAVE_LATER_S)
        return self.is_new and now - self.saved_at >= pause_s


class UsageWatch:
    """Looks at what all tasks of a supervisor use."""

    def __init__(self) -> None:
        self._watched: dict[Supervised, _Watched] = {}
        self._next_at = self._family_at = 0.0
        self._pause_s = LOOK_S
        self._memory_bytes: int | None = None

    def add(self, task: Supervised) -> None:
        """Watch a task that has just begun."""
        if task.leader is not None:
            family = [task.leader]
            self._watched[task] = _Watched(task, family, counters_of(family))
            self._hurry()

    def _hurry(self) -> None:
        self._pause_s = LOOK_S
        self._next_at = min(self._next_at, time.monotonic() + LOOK_S)
        self._family_at = min(self._family_at, self._next_at)

    def discard(self, task: Supervised) -> Usage | None:
        """Watch a task no longer, and return what it has used; None for one that ended at once."""
        watched = self._watched.pop(task, None)
        if watched is None or not watched.points:
            return None
        watched.points = thinned(watched.points)
        return self._usage(watched)

    @property
    def next_at(self) -> float:
        """When to look next, by the monotonic clock."""
        return self._next_at if self._watched else float("inf")

    def look(self, save: Callable[[dict[int, str]], object]) -> None:
        """Look at the tasks. `save` takes what has changed every few seconds, by their keys."""
        if time.monotonic() >= self._family_at:
            self._find_families()
        began_at = time.monotonic()
        are_quiet = [*map(self._look_at, self._watched.values())]
        now = time.monotonic()
        self._pause_s = min(2 * self._pause_s, QUIET_LOOK_S) if all(are_quiet) else LOOK_S
        self._next_at = now + max(self._pause_s, SHARE_OF_TIME * (now - began_at))
        due = [watched for watched in self._watched.values() if watched.is_due(now)]
        if due:
            save({each.task.record.task_key: self._saved(each, now) for each in due})

    def _find_families(self) -> None:
        began_at, snapshot = time.monotonic(), Snapshot()
        for watched in self._watched.values():
            task = watched.task
            watched.family = snapshot.of_task(task.record.task_id, task.leader)
        now = time.monotonic()
        self._family_at = now + max(FAMILY_S, SHARE_OF_TIME * (now - began_at))

    def _look_at(self, watched: _Watched) -> bool:
        """Look at a task. Returns whether it does nothing."""
        counters = counters_of(watched.family)
        if not counters.processes:
            return True  # it is just ending
        point, watched.counters = counters.since(watched.counters), counters
        is_quiet = bool(watched.points) and watched.points[-1].is_like(point)
        watched.points.append(point)
        if len(watched.points) > watched.room:
            watched.points = thinned(watched.points)
            watched.room = len(watched.points) + ROOM
        watched.is_new |= not is_quiet
        return is_quiet

    def _saved(self, watched: _Watched, now: float) -> str:
        watched.points = thinned(watched.points)
        watched.is_new, watched.saved_at = False, now
        return self._usage(watched).as_stored()

    def _usage(self, watched: _Watched) -> Usage:
        points, limit_bytes = tuple(watched.points), watched.task.record.memory_bytes
        if limit_bytes is not None:
            return Usage(points, limit_bytes, True)
        if self._memory_bytes is None:
            self._memory_bytes, _free = machine.memory()
        return Usage(points, self._memory_bytes, False)
