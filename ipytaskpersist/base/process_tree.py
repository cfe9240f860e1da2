"""Find all processes that belong to a task, and signal them without hitting others.

A task's process leads a session of its own, and everything it starts has the task's id in an
environment variable. So a descendant is found by its ancestors, by its session, or, when it has
left both, by that variable.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

MARK = "IPYTASKPERSIST_TASK"
"""Environment variable that names the task of a process: its id, and for a task in a thread what
`base.leftover_processes` adds."""
COMMAND_LENGTH = 60
PROC = Path("/proc")
HAS_PROC = sys.platform == "linux"
"""Whether processes are found in `PROC`, or not at all if that is missing."""
INIT = 1
END_ROUNDS = 100
HOPELESS_ROUNDS = 5
"""Number of successive rounds without a permitted signal after which another is pointless."""
ROUND_S = 0.005
SURELY_ALONE = 2
"""Number of successive empty snapshots that prove there is no process left: one snapshot can miss a
process that is just being started."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine, as it was a moment ago."""

    pid: int
    parent: int
    session: int
    start: str
    """Start time, in the form that `base.process_identity` compares."""
    is_zombie: bool


def parse_stat(stat: bytes) -> Process:
    """Parse a line of ``/proc/PID/stat``, whose fields proc(5) names."""
    # The command's name is in parentheses and may contain anything, so count from the last one.
    name_end = stat.rindex(b")")
    fields = stat[name_end + 2 :].split()
    return Process(
        pid=int(stat[: stat.index(b" ")]),
        parent=int(fields[1]),
        session=int(fields[3]),
        start=fields[19].decode(),
        is_zombie=fields[0] in (b"Z", b"X"),
    )


@cache
def _shows_own(pid: int) -> bool:
    """Return whether ``/proc`` refers to the calling process by this pid, its own.

    It does not if it was mounted in another PID namespace: a pid in it is then another process than
    the one that a signal to that pid would reach.
    """
    try:
        return (PROC / "self").readlink().name == str(pid)
    except OSError:
        return False


def find(pid: int) -> Process | None:
    """Return the process with this pid, zombies included; None when there is none.

    Raises `OSError` when this process cannot look, for lack of a descriptor, of memory or of a
    ``/proc`` of its own PID namespace: that says nothing about the other process.
    """
    if not HAS_PROC:
        return _find_psutil(pid)
    if not _shows_own(os.getpid()):
        if not _exists(pid):
            return None
        raise OSError(errno.ENOTSUP, "there is no /proc, or that of another PID namespace")
    try:
        return parse_stat(content(pid, "stat"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def content(pid: int, name: str) -> bytes:
    """Return the content of a file of a process in ``/proc``. Raises `OSError`."""
    # Not by way of `Path`, which takes longer than the system does.
    with open(f"{PROC}/{pid}/{name}", "rb", buffering=0) as file:
        return file.read()


def _exists(pid: int) -> bool:
    """Return whether any process has this pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


def is_from_before_boot(start: str) -> bool:
    """Return whether an ended process with this start time ran in an earlier boot.

    False when that is unknown. On Linux the time since boot is used, which no change of the clock
    affects; elsewhere the clock decides.
    """
    with suppress(ValueError):  # not in this system's format
        if HAS_PROC:
            return float(start) > time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        import psutil

        return bool(float(start) < psutil.boot_time())
    return False


def is_stopped(pid: int) -> bool:
    """Return whether the process with this pid is stopped, by SIGSTOP or a debugger."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except (psutil.Error, OSError):
        return False


def _find_psutil(pid: int) -> Process | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            start = f"{process.create_time():.2f}"
            return Process(pid, process.ppid(), os.getsid(pid), start, is_zombie)
    except (psutil.Error, OSError):
        return None


def _pids() -> list[int]:
    if HAS_PROC:
        if not _shows_own(os.getpid()):
            return []
        return [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    import psutil

    return list(psutil.pids())


def mark_of(pid: int) -> str | None:
    """Return the mark with which a process was started, if its environment can be read."""
    if HAS_PROC:
        try:
            environment = content(pid, "environ")
        except OSError:
            return None  # another user's, or gone
        start = environment.find(f"{MARK}=".encode())
        if start < 0 or (start and environment[start - 1]):
            return None
        value = environment[start + len(MARK) + 1 :].split(b"\0", 1)[0]
        return value.decode(errors="replace")
    import psutil

    try:
        found: str | None = psutil.Process(pid).environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return found


class Snapshot:
    """All processes of this machine at one moment. One snapshot serves many tasks."""

    def __init__(self) -> None:
        found = (process for pid in _pids() if (process := find(pid)) is not None)
        self._table = {process.pid: process for process in found if process.pid != os.getpid()}
        self._children = _grouped(self._table.values(), lambda process: process.parent)
        self._sessions = _grouped(self._table.values(), lambda process: process.session)

    @cached_property
    def _marks(self) -> dict[int, str | None]:
        return {pid: mark_of(pid) for pid in self._table}

    @cached_property
    def _marked(self) -> dict[str | None, list[Process]]:
        return _grouped(self._table.values(), lambda process: self._marks[process.pid])

    @property
    def all(self) -> list[Process]:
        """All processes but the calling one."""
        return [*self._table.values()]

    def get(self, pid: int) -> Process:
        """Return the process with this pid, which must be in the snapshot."""
        return self._table[pid]

    def is_there(self, pid: int) -> bool:
        """Return whether there is a process with this pid that has not ended."""
        return pid in self._table and not self._table[pid].is_zombie

    def children(self, process: Process) -> list[Process]:
        """Return the processes that are still children of a process."""
        return self._children.get(process.pid, [])

    def of_task(self, task_id: str, leader: Process | None) -> list[Process]:
        """Return the living processes of a task.

        `leader` is the task's own process as recorded; None when unknown.
        """
        members = [*self._family(leader), *self._marked.get(task_id, ())]
        found: dict[int, Process] = {}
        while members:
            process = members.pop()
            if process.pid not in found:
                found[process.pid] = process
                members.extend(self._own_children(process, task_id))
        return [process for process in found.values() if not process.is_zombie]

    def _own_children(self, process: Process, task_id: str) -> list[Process]:
        """Return the children of a process, except supervisors and tasks that it has launched."""
        children = self.children(process)
        return [child for child in children if self._marks[child.pid] in (None, task_id)]

    def _family(self, leader: Process | None) -> list[Process]:
        """Return the leader and its session, if its pid is still its own, as a zombie's is."""
        found = self._table.get(leader.pid) if leader is not None else None
        if leader is None or found is None or found.start != leader.start:
            return []
        if leader.pid <= INIT:
            return []  # the system's own session: never a task's, whatever the store says
        return self._sessions.get(leader.pid, [])


def _grouped(processes: Iterable[Process], key: Callable[[Process], K]) -> dict[K, list[Process]]:
    groups: dict[K, list[Process]] = {}
    for process in processes:
        groups.setdefault(key(process), []).append(process)
    return groups


def send(process: Process, number: int) -> None:
    """Send a signal to exactly this process, never to a later one with its pid.

    Raises `OSError` when the system does not let this process signal that one.
    """
    if process.pid <= INIT:
        return
    with suppress(ProcessLookupError):
        try:
            _send_by_descriptor(process, number)
        except ProcessLookupError:
            raise
        except (OSError, AttributeError):
            # Refused by an old kernel or a system call filter, out of descriptors, or missing from
            # this Python: the process may still accept a signal.
            if _is_same(process):
                os.kill(process.pid, number)


def _send_by_descriptor(process: Process, number: int) -> None:
    """Signal through a process descriptor. Raises `OSError` or `AttributeError` without support."""
    # The descriptor refers to the process that has the pid now, and to no later one.
    descriptor = os.pidfd_open(process.pid)
    try:
        if _is_same(process):
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _is_same(process: Process) -> bool:
    found = find(process.pid)
    return found is not None and found.start == process.start


def send_all(processes: Iterable[Process], number: int) -> list[str]:
    """Send a signal to each of exactly these processes.

    Returns descriptions of those that could not be signalled. This does not affect the others.
    """
    refused = []
    for process in processes:
        try:
            send(process, number)
        except OSError as error:
            refused.append(f"process {process.pid} ({error.strerror})")
    return refused


def stop_task(task_id: str, leader: Process | None) -> list[str]:
    """Stop all processes of a task, also those in sessions of their own (SIGSTOP).

    Each is signalled once, until two looks in a row find no new one: a stopped process starts no
    other. Not until each is seen stopped: one that waits for its ``vfork`` child never is. Returns
    descriptions of those that could not be signalled.
    """
    known: set[int] = set()
    refused: list[str] = []
    quiet = 0
    while quiet < SURELY_ALONE:
        new = [each for each in Snapshot().of_task(task_id, leader) if each.pid not in known]
        refused += send_all(new, signal.SIGSTOP)
        known.update(each.pid for each in new)
        quiet = 0 if new else quiet + 1
    return refused


def continue_task(task_id: str, leader: Process | None) -> None:
    """Let all processes of a task go on (SIGCONT)."""
    send_all(Snapshot().of_task(task_id, leader), signal.SIGCONT)


def kill_tasks(tasks: Iterable[tuple[str, Process | None]]) -> dict[str, str]:
    """Kill every process of these tasks, each given by its id and its leader.

    Repeats until none is left, because a dying process may start another. One snapshot serves all
    tasks, however many there are. Returns the ids of the tasks that still have processes, with the
    processes and the reason.
    """
    left = dict(tasks)
    alone: Counter[str] = Counter()
    survivors: dict[str, str] = {}
    in_vain = 0
    for _round in range(END_ROUNDS):
        if not left or in_vain == HOPELESS_ROUNDS:
            break
        survivors, sent = _kill_once(left)
        in_vain = 0 if sent else in_vain + 1
        for task_id in list(left):
            alone[task_id] = 0 if task_id in survivors else alone[task_id] + 1
            if alone[task_id] == SURELY_ALONE:
                del left[task_id]
        time.sleep(ROUND_S)
    return survivors


def _kill_once(tasks: dict[str, Process | None]) -> tuple[dict[str, str], int]:
    """Send SIGKILL to all present. Return them by task, in words, and how many were signalled."""
    snapshot, survivors, sent = Snapshot(), {}, 0
    for task_id, leader in tasks.items():
        living = snapshot.of_task(task_id, leader)
        refused = send_all(living, signal.SIGKILL)
        sent += len(living) - len(refused)
        if living:
            survivors[task_id] = ", ".join(refused or map(outlasting, living))
    return survivors, sent


def outlasting(process: Process) -> str:
    """Return the description of a process that survived SIGKILL."""
    return f"process {process.pid} (not ended by SIGKILL)"


def command_of(pid: int) -> str:
    """Return the beginning of a process's command; empty when it cannot be read."""
    import psutil

    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except (psutil.Error, OSError):
        return ""
    is_long = len(command) > COMMAND_LENGTH
    return f"{command[: COMMAND_LENGTH - 1]}…" if is_long else command


def signal_name(number: int) -> str:
    """Return the name of a signal: ``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def usage(leader_pid: int | None, leader_start: str | None) -> tuple[int, float] | None:
    """Return the current memory in bytes and processor time in seconds of a task's processes.

    Counts those in the session of the task's own process. None when that has not begun or has
    ended.
    """
    try:
        leader = None if leader_pid is None else find(leader_pid)
    except OSError:
        return None
    if leader is None or leader.start != leader_start or leader.is_zombie:
        return None
    import psutil

    memory_bytes, cpu_s = 0, 0.0
    for pid in _pids():
        # A process may end meanwhile; the sum of the others is close enough.
        with suppress(psutil.Error, OSError):
            if os.getsid(pid) == leader.pid:
                process = psutil.Process(pid)
                memory_bytes += process.memory_info().rss
                times = process.cpu_times()
                cpu_s += times.user + times.system
    return memory_bytes, cpu_s
