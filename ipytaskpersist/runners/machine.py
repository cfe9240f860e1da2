"""What this machine has, what of it is free, and what the tasks with a booking use of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
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
        memory_of, cpu_s_of = _used_by_sessions(leaders)
        self._load.measure(cpu_s_of)
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


def _used_by_sessions(keys: dict[int, int]) -> tuple[dict[int, int], dict[int, float]]:
    """Return the memory in bytes and the CPU time in seconds of tasks, by key.

    The tasks are given by the process ids of their leaders. Counts the processes in the leader's
    session, and of their memory what they share with no file.
    """
    if not keys:
        return {}, {}
    import psutil

    memory_of, cpu_s_of = dict.fromkeys(keys.values(), 0), dict.fromkeys(keys.values(), 0.0)
    for pid in psutil.pids():
        # A process may end meanwhile; the sum of the others is close enough.
        with suppress(psutil.Error, OSError):
            key = keys.get(os.getsid(pid))
            if key is not None:
                process = psutil.Process(pid)
                size, times = process.memory_info(), process.cpu_times()
                memory_of[key] += size.rss - getattr(size, "shared", 0)
                cpu_s_of[key] += times.user + times.system
                cpu_s_of[key] += times.children_user + times.children_system
    return memory_of, cpu_s_of


class Load:
    """How many CPUs were busy since the last measurement, and with which tasks."""

    def __init__(self) -> None:
        self.busy = 0.0
        self._of: dict[int, float] = {}
        self._at, self._busy_s = float("-inf"), 0.0
        self._task_s: dict[int, float] = {}

    def measure(self, task_s: dict[int, float]) -> None:
        """Measure now. `task_s` is the CPU time that tasks have used, by their keys."""
        if time.monotonic() - self._at > LONGEST_S:
            self._remember(task_s)
            time.sleep(SHORTEST_S)
        elapsed_s = time.monotonic() - self._at
        if elapsed_s < SHORTEST_S:
            return
        self.busy = max(0.0, _busy_s() - self._busy_s) / elapsed_s
        self._of = {
            key: max(0.0, used_s - self._task_s.get(key, 0.0)) / elapsed_s
            for key, used_s in task_s.items()
        }
        self._remember(task_s)

    def of(self, key: int) -> float:
        """Return how many CPUs a task has used, on average."""
        return self._of.get(key, 0.0)

    def _remember(self, task_s: dict[int, float]) -> None:
        self._at, self._busy_s, self._task_s = time.monotonic(), _busy_s(), dict(task_s)


def _busy_s() -> float:
    """Return for how long the CPUs that this process may use have been busy, in seconds."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    return sum(_busy_of(times[cpu]) for cpu in _own_cpus() if cpu < len(times))


def _busy_of(times: Any) -> float:
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(float(getattr(times, name, 0.0)) for name in names)
