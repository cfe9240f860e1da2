"""The processes that belong to a task: find them all, and signal them without hitting another.

A task's process leads a session of its own, and whatever it starts has a variable with the task's
id in its environment. So a descendant is found by its ancestors, by its session, or, when it has
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
"""The environment variable that says to which task a process belongs: its id, and for a task in
a thread what `leftovers` adds."""
COMMAND_LENGTH = 60
PROC = Path("/proc")
HAS_PROC = sys.platform == "linux"
"""Whether processes are found there, or nowhere where it is missing."""
INIT = 1
END_ROUNDS = 100
HOPELESS_ROUNDS = 5
"""After how many rounds in a row in which nobody may be signalled there is no use in another."""
ROUND_S = 0.005
SURELY_ALONE = 2
"""After how many looks in a row that find nobody there is nobody: a process that is just being
started can be missed by one."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine, as it was a moment ago."""

    pid: int
    parent: int
    session: int
    start: str
    """When it started, in the form in which `identity` compares it."""
    is_zombie: bool


def parse_stat(stat: bytes) -> Process:
    """A line of ``/proc/PID/stat``, of which proc(5) names the fields."""
    # The command's name is in parentheses and may hold anything, so count from the last one.
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
    """Whether ``/proc`` names the process with this pid, which asks, by this pid.

    It does not where it was mounted in another PID namespace: what it shows of a pid is then
    another process than the one that a signal to that pid would reach.
    """
    try:
        return (PROC / "self").readlink().name == str(pid)
    except OSError:
        return False


def find(pid: int) -> Process | None:
    """The process with this pid, zombies included; None when there is none.

    Raises `OSError` where this process cannot look, for want of a descriptor, of memory or of a
    ``/proc`` of its own PID namespace: that says nothing about the other one.
    """
    if not HAS_PROC:
        return _find_psutil(pid)
    if not _shows_own(os.getpid()):
        if not _exists(pid):
            return None
        raise OSError(errno.ENOTSUP, "there is no /proc, or that of another PID namespace")
    try:
        return parse_stat((PROC / str(pid) / "stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _exists(pid: int) -> bool:
    """Whether some process has this pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


def is_from_before_boot(start: str) -> bool:
    """Whether a process that has ended, and started then, was one of an earlier boot.

    False as well where that cannot be known. The time since the boot is one that no change of the
    clock can move; elsewhere than on Linux the clock decides.
    """
    with suppress(ValueError):  # the system does not write that
        if HAS_PROC:
            return float(start) > time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        import psutil

        return bool(float(start) < psutil.boot_time())
    return False


def is_stopped(pid: int) -> bool:
    """Whether the process with this pid was stopped, by SIGSTOP or a debugger."""
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
    """The mark with which a process was started, where its environment can be read."""
    if HAS_PROC:
        try:
            environment = (PROC / str(pid) / "environ").read_bytes()
        except OSError:
            return None  # somebody else's, or gone
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
    """All processes of this machine, as they are now. Taken once, it serves many tasks."""

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
        """All of them, but for the one that asks."""
        return [*self._table.values()]

    def get(self, pid: int) -> Process:
        """The process with this pid, which is one of them."""
        return self._table[pid]

    def children(self, process: Process) -> list[Process]:
        """What a process has started, and is still its child."""
        return self._children.get(process.pid, [])

    def of_task(self, task_id: str, leader: Process | None) -> list[Process]:
        """The living processes of a task.

        `leader` is the task's own process as it was recorded; None when that is not known.
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
        """The children of a process, but for supervisors and tasks that it has launched."""
        children = self.children(process)
        return [child for child in children if self._marks[child.pid] in (None, task_id)]

    def _family(self, leader: Process | None) -> list[Process]:
        """The leader and its session, when its pid is still its own. A zombie's is."""
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
    """Send a signal to this very process: never to another that has its pid by now.

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
            # Refused by an old kernel or a filter of system calls, no descriptor left, or not
            # known to this Python: it need not mean that the process may not be signalled.
            if _is_same(process):
                os.kill(process.pid, number)


def _send_by_descriptor(process: Process, number: int) -> None:
    """Raises `OSError` or `AttributeError` where there are no descriptors of processes."""
    # The descriptor stands for whoever has the pid now, and then for nobody else.
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
    """Send a signal to each of these very processes.

    Returns those that could not be signalled, in words; the others have been all the same.
    """
    refused = []
    for process in processes:
        try:
            send(process, number)
        except OSError as error:
            refused.append(f"process {process.pid} ({error.strerror})")
    return refused


def kill_tasks(tasks: Iterable[tuple[str, Process | None]]) -> dict[str, str]:
    """End every process of these tasks at once: each by its id and its leader.

    Looks again until there is none, because one that is about to die may start another. One look
    serves all tasks, however many there are. Returns the ids of the tasks that still have
    processes, each with which and why.
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
    """Send SIGKILL to all that are there. Returns them by task, in words, and how many got it."""
    snapshot, survivors, sent = Snapshot(), {}, 0
    for task_id, leader in tasks.items():
        living = snapshot.of_task(task_id, leader)
        refused = send_all(living, signal.SIGKILL)
        sent += len(living) - len(refused)
        if living:
            survivors[task_id] = ", ".join(refused or map(outlasting, living))
    return survivors, sent


def outlasting(process: Process) -> str:
    """What to say of a process that was killed and is there all the same."""
    return f"process {process.pid} (not ended by SIGKILL)"


def command_of(pid: int) -> str:
    """The beginning of a process's command; empty where it cannot be read."""
    import psutil

    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except (psutil.Error, OSError):
        return ""
    is_long = len(command) > COMMAND_LENGTH
    return f"{command[: COMMAND_LENGTH - 1]}…" if is_long else command


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def usage(leader_pid: int | None, leader_start: str | None) -> tuple[int, float] | None:
    """What a task's processes use now, as far as they are in the session that its own one leads:
    memory in bytes and processor time in seconds. None when that has not begun or has ended."""
    try:
        leader = None if leader_pid is None else find(leader_pid)
    except OSError:
        return None
    if leader is None or leader.start != leader_start or leader.is_zombie:
        return None
    import psutil

    memory_bytes, cpu_s = 0, 0.0
    for pid in _pids():
        # One may end meanwhile: what the others use is near enough.
        with suppress(psutil.Error, OSError):
            if os.getsid(pid) == leader.pid:
                process = psutil.Process(pid)
                memory_bytes += process.memory_info().rss
                times = process.cpu_times()
                cpu_s += times.user + times.system
    return memory_bytes, cpu_s
