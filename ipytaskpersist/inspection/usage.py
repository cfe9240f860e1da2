"""Read what processes use of the machine now: from ``/proc``, which takes some microseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.process_tree import HAS_PROC, PROC, Process
from ipytaskpersist.base.usage import Point

TIMES = slice(11, 15)
THREADS, START, RESIDENT = 17, 19, 21
"""Positions in ``/proc/PID/stat`` after the name and the pid, proc(5)."""
PSS = "Pss:"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Counters:
    """What processes have used together until one moment."""

    at: float
    """By the monotonic clock."""
    memory_bytes: int
    cpu_s: float
    """With that of children that have ended."""
    read_bytes: int
    written_bytes: int
    threads: int
    processes: int

    def since(self, before: Counters) -> Point:
        """Return what was used since an earlier moment."""
        return Point(
            time.time(),
            self.at - before.at,
            self.memory_bytes,
            max(0.0, self.cpu_s - before.cpu_s),
            max(0, self.read_bytes - before.read_bytes),
            max(0, self.written_bytes - before.written_bytes),
            self.threads,
            self.processes,
        )


def counters_of(processes: Iterable[Process]) -> Counters:
    """Return what these processes have used, without those that have ended."""
    read = _from_proc if HAS_PROC else _from_psutil
    found = [each for process in processes if (each := read(process)) is not None]
    sums = [sum(column) for column in zip(*found, strict=True)] or [0] * 5
    memory_bytes, cpu_s, threads, read_bytes, written_bytes = sums
    return Counters(
        time.monotonic(),
        int(memory_bytes),
        cpu_s,
        int(read_bytes),
        int(written_bytes),
        int(threads),
        len(found),
    )


def shared_once(processes: Iterable[Process]) -> int:
    """Return the memory of processes with what they share counted once (PSS), in bytes.

    Reading that takes longer: some 20 ms for each GB.
    """
    return sum(map(_proportional_bytes, processes))


def _from_proc(process: Process) -> Sequence[float] | None:
    try:
        stat = process_tree.content(process.pid, "stat")
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[START].decode() != process.start or fields[RESIDENT] == b"0":
        return None  # a later process with its pid, or one that is ending
    cpu_s = sum(map(int, fields[TIMES])) / TICKS
    memory_bytes = int(fields[RESIDENT]) * PAGE_BYTES
    return memory_bytes, cpu_s, int(fields[THREADS]), *_disk_bytes(process.pid)


def _disk_bytes(pid: int) -> tuple[int, int]:
    read_bytes = written_bytes = 0
    with suppress(OSError, ValueError):
        for line in process_tree.content(pid, "io").splitlines():
            name, _colon, value = line.partition(b":")
            if name == b"read_bytes":
                read_bytes = int(value)
            elif name == b"write_bytes":
                written_bytes = int(value)
    return read_bytes, written_bytes


def _from_psutil(process: Process) -> Sequence[float] | None:
    import psutil

    with suppress(psutil.Error, OSError):
        found = psutil.Process(process.pid)
        with found.oneshot():
            times, memory = found.cpu_times(), found.memory_info()
            return memory.rss, sum(times[:4]), found.num_threads(), 0, 0
    return None


def _proportional_bytes(process: Process) -> int:
    with suppress(OSError, ValueError):
        for line in (PROC / str(process.pid) / "smaps_rollup").read_text("ascii").splitlines():
            if line.startswith(PSS):
                return int(line.split()[1]) * 1024
    import psutil

    with suppress(psutil.Error, OSError):
        return int(psutil.Process(process.pid).memory_info().rss)
    return 0
