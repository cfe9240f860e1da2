"""The processes of the far end: which belong to a task, and which process is the same as before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ipytaskpersist.places.far.files import Json, host_name

PROC = Path("/proc")
MARK = "IPYTASKPERSIST_TASK"
"""Environment variable that names the task of a process."""
SURELY_ALONE = 2
"""Number of successive looks without a process that prove there is none: one can miss it."""
ROUNDS, ROUND_S = 100, 0.05
SHARE_OF_TIME = 20
"""The time between two looks is at least so many times that which a look takes."""


class Process(NamedTuple):
    """One process of this machine, as it was a moment ago."""

    pid: int
    is_zombie: bool
    parent: int
    session: int
    start: str


def find(pid: int) -> Process | None:
    """Return the process with this pid, or None. Without ``/proc``, one without a start time."""
    try:
        line = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None if PROC.is_dir() or not exists(pid) else Process(pid, False, 0, 0, "")
    # The command's name is in parentheses and may contain anything (proc(5)).
    fields = line[line.rindex(b")") + 2 :].split()
    is_zombie = fields[0] in (b"Z", b"X")
    return Process(pid, is_zombie, int(fields[1]), int(fields[3]), fields[19].decode())


def exists(pid: int) -> bool:
    """Return whether any process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def is_there(pid: int, start: str) -> bool:
    """Return whether exactly this process has not ended."""
    found = find(pid)
    return found is not None and not found.is_zombie and found.start == start


def mark_of(pid: int) -> str:
    """Return the id of the task for which a process was started, if it can be read."""
    try:
        variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""  # another user's, or gone
    key = f"{MARK}=".encode()
    return next((each[len(key) :].decode() for each in variables if each.startswith(key)), "")


def of_task(task_id: str, leader: int | None) -> list[Process]:
    """Return the living processes of a task: those of its session, with its mark, and theirs.

    `leader` is the pid of the task's own process, which its parent has not reaped.
    """
    pids = [int(path.name) for path in folders_of_processes() if path.name.isdecimal()]
    table = [found for found in map(find, pids) if found is not None and found.pid != os.getpid()]
    marks = {process.pid: mark_of(process.pid) for process in table}
    children: dict[int, list[Process]] = {}
    for process in table:
        if marks[process.pid] in ("", task_id):
            children.setdefault(process.parent, []).append(process)
    left = [each for each in table if each.session == leader or marks[each.pid] == task_id]
    found = {}
    while left:
        process = left.pop()
        if process.pid not in found:
            found[process.pid] = process
            left += children.get(process.pid, [])
    return [process for process in found.values() if not process.is_zombie]


def folders_of_processes() -> list[Path]:
    """Return what is in ``/proc``. Without it, signals reach only the process group of a task."""
    try:
        return list(PROC.iterdir())
    except OSError:
        return []


def send_all(processes: Iterable[Process], number: int) -> None:
    """Send a signal to exactly these processes, as far as the system allows."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            if is_there(process.pid, process.start):
                os.kill(process.pid, number)


def stop_all(task_id: str, leader: int | None) -> None:
    """Stop all processes of a task: each once, until two looks in a row find no new one."""
    known: set[int] = set()
    quiet = 0
    while quiet < SURELY_ALONE:
        new = [each for each in of_task(task_id, leader) if each.pid not in known]
        send_all(new, signal.SIGSTOP)
        known.update(each.pid for each in new)
        quiet = 0 if new else quiet + 1


def memory_of(processes: list[Process], limit_bytes: float) -> int:
    """Return the memory of processes in bytes. Above the limit, shared pages count once."""
    used = sum(resident_bytes(each.pid) for each in processes)
    return used if used <= limit_bytes else sum(own_bytes(each.pid) for each in processes)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    with suppress(OSError, ValueError, IndexError):
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def own_bytes(pid: int) -> int:
    """Return a process's part of its memory, without the files that it has mapped."""
    counted = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
    with suppress(OSError, ValueError):
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        found = [int(line.split()[1]) for line in lines if line.startswith(counted)]
        return sum(found) * 1024 if found else resident_bytes(pid)
    return resident_bytes(pid)


@cache
def machine() -> Json:
    """Return what distinguishes this machine's pids from those of another."""
    boot_id, namespace = "", 0
    with suppress(OSError):
        boot_id = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (PROC / "self/ns/pid").stat().st_ino
    return {"host": host_name(), "boot_id": boot_id, "namespace": namespace}


def identity() -> Json:
    """Return what distinguishes this process from every other one."""
    found = find(os.getpid())
    return {**machine(), "pid": os.getpid(), "start": "" if found is None else found.start}


def end_left(task_id: str) -> None:
    """Kill what is left of a task without a keeper."""
    quiet = 0
    for _round in range(ROUNDS):
        left = of_task(task_id, None)
        send_all(left, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == SURELY_ALONE:
            break
        time.sleep(ROUND_S)
