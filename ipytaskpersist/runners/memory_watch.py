"""The memory of the tasks that have a limit: all processes of a task together."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ipytaskpersist.base.process_tree import HAS_PROC, PROC, Process, Snapshot
from ipytaskpersist.runners import memory_groups
from ipytaskpersist.runners.memory_groups import MemoryGroup
from ipytaskpersist.runners.supervised import Supervised

LOOK_S = 0.25
"""How often the tasks with a limit are looked at."""
SHARE_OF_TIME = 20
"""The time between two looks is at least so many times that which a look takes."""


class MemoryWatch:
    """Looks at how much memory tasks use. Tasks without a limit cost nothing."""

    def __init__(self) -> None:
        self._tasks: set[Supervised] = set()
        self._groups: dict[Supervised, MemoryGroup] = {}
        self._next_at = 0.0

    def add(self, task: Supervised) -> None:
        """Watch a task, if it has a limit, and have the system do so where it can be asked to."""
        if task.record.memory_bytes is None:
            return
        self._tasks.add(task)
        group = memory_groups.hold(task.record.task_id, task.pid, task.record.memory_bytes)
        if group is not None:
            self._groups[task] = group

    def discard(self, task: Supervised) -> None:
        """Watch a task no longer."""
        self._tasks.discard(task)
        if group := self._groups.pop(task, None):
            group.remove()

    def has_killed(self, task: Supervised) -> bool:
        """Return whether the system has killed a process of a task that was beyond its limit."""
        group = self._groups.get(task)
        return group is not None and group.has_killed()

    @property
    def next_at(self) -> float:
        """When to look next, by the monotonic clock."""
        return self._next_at if self._tasks else float("inf")

    def beyond(self) -> tuple[list[Supervised], Snapshot | None]:
        """Return the tasks that use more than their limit, and the processes at that moment."""
        began_at = time.monotonic()
        if began_at < self.next_at:
            return [], None
        snapshot = Snapshot()
        living = [task for task in self._tasks if not task.ending]
        found = [each for each in living if _is_beyond(each, snapshot) or self.has_killed(each)]
        took_s = time.monotonic() - began_at
        self._next_at = time.monotonic() + max(LOOK_S, SHARE_OF_TIME * took_s)
        return found, snapshot


def _is_beyond(task: Supervised, snapshot: Snapshot) -> bool:
    """Note how much memory a task uses. Return whether that is more than its limit."""
    limit_bytes = task.record.memory_bytes
    assert limit_bytes is not None, "only tasks with a limit are watched"
    processes = snapshot.of_task(task.record.task_id, task.leader)
    used_bytes = sum(map(_resident_bytes, processes))
    if used_bytes > limit_bytes:
        # Pages that several processes share were counted several times. To count them once takes
        # longer, and is rarely needed.
        used_bytes = sum(map(_own_bytes, processes))
    task.memory_bytes = used_bytes
    task.peak_memory_bytes = max(task.peak_memory_bytes, used_bytes)
    return used_bytes > limit_bytes


def _resident_bytes(process: Process) -> int:
    import psutil

    with suppress(psutil.Error, OSError):
        return int(psutil.Process(process.pid).memory_info().rss)
    return 0


OWN = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
"""Lines of ``smaps_rollup``, proc(5), that sum up to a process's part of what it shares, without
files that are mapped: the system takes the pages of these back when it needs them."""


def _own_bytes(process: Process) -> int:
    """Return how much memory a process would give back if it ended alone."""
    if not HAS_PROC:
        import psutil

        with suppress(psutil.Error, OSError):
            return int(psutil.Process(process.pid).memory_full_info().uss)
        return 0
    return sum(_kilobytes(PROC / str(process.pid) / "smaps_rollup")) * 1024


def _kilobytes(file: Path) -> Iterable[int]:
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            name, *words = line.split()
            if name in OWN:
                yield int(words[0])
