"""Find the processes that tasks in threads have started, by their mark, and end them.

Each carries the id of its task and the identity of its kernel, in its environment. Where that is
the parent's or was set by the task's code, they are in the name of an open file. So any process can
tell what a kernel has left, without a store, even if the kernel was killed. A program in a session
of its own was detached on purpose, and is left alone. So is what a command in a pseudo-terminal,
such as IPython's ``!command``, has left behind when it ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.process_identity import pid_namespace
from ipytaskpersist.base.process_tree import MARK, PROC, SURELY_ALONE, Process, Snapshot

GRACE_S = 2.0
"""Time that a process gets to end after SIGTERM, before SIGKILL."""
LOOK_S = 0.02
KILLING_S = 1.0
"""Time for which SIGKILL is repeated."""
FILE = f"/memfd:{MARK}="
GUARD = ""
"""Takes the place of the task's id in the mark of a kernel's guard."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A process whose threads run tasks."""

    pid: int
    start: str
    """Start time, in the form of `base.process_tree`; empty when unknown."""
    session: int
    """Its session, which its children share unless they were detached."""
    namespace: int
    """Its PID namespace; 0 when there are none."""

    @classmethod
    def own(cls) -> Kernel:
        """Return this process."""
        return _kernel(os.getpid())

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Return the kernel that `str` described. Raises `ValueError`."""
        pid, start, session, namespace = text.split(":")
        return cls(int(pid), start, int(session), int(namespace))

    def __str__(self) -> str:
        return f"{self.pid}:{self.start}:{self.session}:{self.namespace}"

    @property
    def is_of_this_namespace(self) -> bool:
        """Whether its pid is valid here."""
        return self.namespace == (pid_namespace() or 0)

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended."""
        if not self.start or not self.is_of_this_namespace:
            return False
        try:
            found = process_tree.find(self.pid)
        except OSError:
            return False
        return found is None or found.is_zombie or found.start != self.start


@cache
def _kernel(pid: int) -> Kernel:
    try:
        found = process_tree.find(pid)
    except OSError:
        found = None
    start = "" if found is None else found.start
    return Kernel(pid, start, os.getsid(pid), pid_namespace() or 0)


@dataclass(frozen=True, slots=True)
class Mark:
    """The task and the kernel to which a process belongs."""

    task_id: str
    kernel: Kernel
    terminal: int = 0
    """Session of the pseudo-terminal in which it was started; 0 for its kernel's."""

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """Return the mark that `str` wrote; None for anything else."""
        try:
            task_id, *kernel, terminal = text.split(":")
            return cls(task_id, Kernel.parse(":".join(kernel)), int(terminal))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.task_id}:{self.kernel}:{self.terminal}"

    def is_on(self, process: Process, snapshot: Snapshot) -> bool:
        """Return whether the kernel must end a process with this mark: it was not detached."""
        if not self.terminal:
            return process.session == self.kernel.session
        return process.session == self.terminal and snapshot.is_there(self.terminal)

    @property
    def variable(self) -> bytes:
        """The mark as an entry of an environment."""
        return os.fsencode(f"{MARK}={self}")

    def open(self) -> int | None:
        """Open a file named after the mark; None without system support or a free descriptor."""
        with suppress(OSError, AttributeError):
            return os.memfd_create(f"{MARK}={self}", 0)
        return None

    def take(self) -> None:
        """Mark the calling process and its children."""
        session = os.getsid(0)
        mark = self if session == self.kernel.session else replace(self, terminal=session)
        mark.open()
        os.environ[MARK] = str(mark)


Wanted = Callable[[Mark], bool]


def of_kernel(kernel: Kernel) -> Wanted:
    """Match the processes of all tasks of a kernel."""
    return lambda mark: mark.kernel == kernel and mark.task_id != GUARD


def of_gone_kernels() -> Wanted:
    """Match the processes of tasks whose kernel has ended."""
    is_gone = cache(lambda kernel: kernel.is_gone)
    return lambda mark: mark.task_id != GUARD and is_gone(mark.kernel)


def find(wanted: Wanted) -> dict[Process, Mark]:
    """Return the living processes with a matching mark, and their descendants without a mark."""
    snapshot = Snapshot()
    marks = {each.pid: _mark_of(each) for each in snapshot.all if _is_own(each.pid)}
    members = [
        (snapshot.get(pid), mark)
        for pid, mark in marks.items()
        if isinstance(mark, Mark) and mark.kernel.is_of_this_namespace and wanted(mark)
    ]
    found: dict[Process, Mark] = {}
    while members:
        process, mark = members.pop()
        if process not in found and mark.is_on(process, snapshot):
            found[process] = mark
            children = snapshot.children(process)
            members.extend((each, mark) for each in children if marks.get(each.pid, "") is None)
    return {process: mark for process, mark in found.items() if not process.is_zombie}


def end_of_kernel(pid: int, start: str) -> str:
    """End what a kernel with this pid and start time has left, unless its guard does or it lives.

    Returns a description of what survives.
    """

    def is_left(mark: Mark) -> bool:
        kernel = mark.kernel
        return (kernel.pid, kernel.start) == (pid, start) and mark.task_id != GUARD

    kernels = {mark.kernel for mark in find(is_left).values()}
    gone = {each for each in kernels if each.is_gone and not is_guarded(each)}
    return end(lambda mark: mark.kernel in gone and is_left(mark))[1] if gone else ""


def is_guarded(kernel: Kernel) -> bool:
    """Return whether a kernel's guard exists, which ends what the kernel leaves."""
    guard = str(Mark(GUARD, kernel))
    return any(_mark_in_files(each.pid) == guard for each in Snapshot().all)


def _is_own(pid: int) -> bool:
    """Return whether a process is this user's, and in this PID namespace."""
    if not process_tree.HAS_PROC:
        return True  # another user's environment cannot be read, and there are no namespaces
    folder = PROC / str(pid)
    try:
        is_here = (folder / "ns" / "pid").stat().st_ino == pid_namespace()
        return is_here and folder.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _mark_of(process: Process) -> Mark | str | None:
    """Return the mark of a process; a text when it has one of another kind, and None for none.

    The file first: a forked process has its parent's environment.
    """
    text = _mark_in_files(process.pid)
    text = process_tree.mark_of(process.pid) if text is None else text
    return text if text is None else Mark.parse(text) or text


def _mark_in_files(pid: int) -> str | None:
    if not process_tree.HAS_PROC:
        return None
    with suppress(OSError):
        for descriptor in os.scandir(PROC / str(pid) / "fd"):
            with suppress(OSError):
                name = str(Path(descriptor).readlink())
                if name.startswith(FILE):
                    return name.removeprefix(FILE).removesuffix(" (deleted)")
    return None


def end(wanted: Wanted, grace_s: float = GRACE_S) -> tuple[int, str]:
    """End processes, with SIGTERM, and SIGKILL after a grace period. Return when none is left.

    Returns how many there were, and a description of the survivors.
    """
    told: dict[tuple[int, str], Process] = {}
    kill_at = time.monotonic() + grace_s
    alone = 0
    while alone < SURELY_ALONE:
        found = {(each.pid, each.start): each for each in find(wanted)}
        new = [each for key, each in found.items() if key not in told]
        # Those found earlier may have lost their parents, and may have no mark.
        living = [each for each in (told | found).values() if _is_there(each)]
        told |= found
        alone = 0 if living else alone + 1
        process_tree.send_all(new, signal.SIGTERM)
        late_s = time.monotonic() - kill_at
        refused = process_tree.send_all(living, signal.SIGKILL) if late_s > 0 else []
        if living and late_s > KILLING_S:
            return len(told), ", ".join(refused or map(process_tree.outlasting, living))
        time.sleep(LOOK_S if living else process_tree.ROUND_S)
    return len(told), ""


def _is_there(process: Process) -> bool:
    try:
        now = process_tree.find(process.pid)
    except OSError:
        return False
    return now is not None and now.start == process.start and not now.is_zombie


def in_words(process: Process) -> str:
    """Return the description of a process: its pid, and the beginning of its command."""
    command = process_tree.command_of(process.pid)
    return f"{process.pid} ({command})" if command else str(process.pid)
