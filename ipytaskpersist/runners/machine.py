"""What this machine has, what of it is free, and what the tasks with a booking use of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.process_identity import host_name, pid_namespace
from ipytaskpersist.runners import control_groups, gpus
from ipytaskpersist.store.booking import Booking, Gpu, Machine, Use

SEEN_S = 1.0
"""Time for which what was seen of the machine holds, while the bookings stay the same."""
SHORTEST_S = 0.1
"""Shortest time over which the load of the CPUs is averaged."""
LONGEST_S = 10.0


def cpu_count() -> float:
    """Return how many CPUs this process may use: fewer than the machine has, or a part of one."""
    return float(min(len(_own_cpus()), control_groups.cpus() or float("inf")))


def memory() -> tuple[int, int]:
    """Return the memory that processes may use here, and how much of it is free, in bytes."""
    import psutil

    known = psutil.virtual_memory()
    limit, left = control_groups.memory() or (known.total, known.available)
    return min(known.total, limit), min(known.available, left)


def _own_cpus() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


class MachineReader:
    """Reads the machine for the process that claims tasks.

    The load of the CPUs is that of the time since the last reading.
    """

    def __init__(self) -> None:
        self._seen: Machine | None = None
        self._seen_at = float("-inf")
        self._has_gpus = False
        self._load = Load()

    def read(self, bookings: Sequence[Booking], *, with_gpus: bool) -> Machine:
        """Return the machine as it is, or as it was at most `SEEN_S` ago."""
        seen, now = self._seen, time.monotonic()
        is_recent = now - self._seen_at < SEEN_S and with_gpus <= self._has_gpus
        if seen is not None and is_recent and seen.used.keys() == {each.key for each in bookings}:
            return seen
        here = [each for each in bookings if each.pid_namespace in (None, pid_namespace())]
        leaders = {each.pid: each.key for each in here if each.pid is not None}
        self._load.measure(lambda: _cpu_s_of(leaders))
        memory_of = _memory_of(leaders)
        memory_bytes, free_bytes = memory()
        used = {
            each.key: Use(self._load.of(each.key), memory_of.get(each.key, 0)) for each in bookings
        }
        found, cpus = _gpus() if with_gpus else None, cpu_count()
        machine = Machine(host_name(), cpus, self._load.busy, memory_bytes, free_bytes, found, used)
        self._seen, self._seen_at, self._has_gpus = machine, now, with_gpus
        return machine


def _gpus() -> Sequence[Gpu]:
    """Return the GPUs; none when the driver does not answer now, although it has before."""
    try:
        return gpus.find()
    except gpus.NoGpus:
        return ()


def _memory_of(keys: Mapping[int, int]) -> dict[int, int]:
    """Return the memory of tasks in bytes, without what they share with files, by their keys.

    `keys` has the keys by the process ids of the tasks' own processes.
    """

    def memory_of(process: Any) -> float:
        size = process.memory_info()
        return float(size.rss - getattr(size, "shared", 0))

    return {key: int(size_bytes) for key, size_bytes in _sums(keys, memory_of).items()}


def _cpu_s_of(keys: Mapping[int, int]) -> dict[int, float]:
    """Return the CPU time of tasks in seconds, with that of children that have ended."""
    return _sums(keys, lambda process: sum(process.cpu_times()[:4]))


def _sums(keys: Mapping[int, int], value_of: Callable[[Any], float]) -> dict[int, float]:
    """Return the sum of a value over the processes in the session of each task, by its key."""
    import psutil

    sums = dict.fromkeys(keys.values(), 0.0)
    for pid in psutil.pids() if keys else ():
        # A process may end meanwhile; the sum of the others is close enough.
        with suppress(psutil.Error, OSError):
            key = keys.get(os.getsid(pid))
            if key is not None:
                sums[key] += value_of(psutil.Process(pid))
    return sums


class Load:
    """How many CPUs were busy since the last measurement, and with which tasks."""

    def __init__(self) -> None:
        self.busy = 0.0
        self._of: dict[int, float] = {}
        self._at, self._busy_s = float("-inf"), 0.0
        self._task_s: dict[int, float] = {}

    def measure(self, task_s: Callable[[], Mapping[int, float]]) -> None:
        """Measure now. `task_s` returns the CPU time that tasks have used, by their keys."""
        if time.monotonic() - self._at > LONGEST_S:
            self._remember(task_s())
            time.sleep(SHORTEST_S)
        elapsed_s = time.monotonic() - self._at
        if elapsed_s < SHORTEST_S:
            return
        used_s = task_s()
        self.busy = max(0.0, _busy_s() - self._busy_s) / elapsed_s
        self._of = {
            key: max(0.0, each - self._task_s.get(key, 0.0)) / elapsed_s
            for key, each in used_s.items()
        }
        self._remember(used_s)

    def of(self, key: int) -> float:
        """Return how many CPUs a task has used, on average."""
        return self._of.get(key, 0.0)

    def _remember(self, task_s: Mapping[int, float]) -> None:
        self._at, self._busy_s, self._task_s = time.monotonic(), _busy_s(), dict(task_s)


def _busy_s() -> float:
    """Return for how long the CPUs that this process may use have been busy, in seconds."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    return sum(_busy_of(times[cpu]) for cpu in _own_cpus() if cpu < len(times))


def _busy_of(times: Any) -> float:
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(float(getattr(times, name, 0.0)) for name in names)
