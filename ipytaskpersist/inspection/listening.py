"""Let other processes of this user ask what this one does now, on Linux.

A process that can be asked has an open file in memory with a certain name, which another process
finds in ``/proc``. Two signals ask it, and it appends its answer to that file:

- `TELL` is handled in Python, at the main thread's next bytecode. The answer has everything.
- `DUMP` is handled in C by `faulthandler`, at once, also while one C call keeps the interpreter.
  The answer has files, lines and functions.

Both restart system calls that they interrupt, so a library in C never sees ``EINTR``. The name has
the id of the process, so that a child that is just being forked, to become another program, is not
asked: the signals would end that program. A child that the task's own code forks gets a file of its
own.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import FrameType
from typing import Any

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.inspection.observing import observe, tasks_of_threads
from ipytaskpersist.inspection.stacks import Stack
from ipytaskpersist.running.running_task import RunningTask

ANSWERS = "ipytaskpersist-stacks"
"""Name of the file of the answers."""
THREADS = "ipytaskpersist-threads"
"""Name of a kernel's file that says for which task each thread works."""
CAN_BE_ASKED = sys.platform == "linux" and hasattr(os, "memfd_create")
TELL = signal.SIGRTMAX - 5 if CAN_BE_ASKED else 0
DUMP = signal.SIGRTMAX - 6 if CAN_BE_ASKED else 0
LOCK_S = 0.1


class MemoryFile:
    """A file in memory. Code that closes all descriptors may have taken its number for another."""

    def __init__(self, name: str) -> None:
        """Raises `OSError`."""
        self.descriptor = os.memfd_create(name)
        self._identity = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    @property
    def is_there(self) -> bool:
        """Whether its descriptor is still that of this file."""
        try:
            return self._look() == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless that has been done."""
        if self.is_there:
            os.close(self.descriptor)


class Listener:
    """What lets this process be asked, until `end`."""

    def __init__(self, task: RunningTask | None) -> None:
        """`task` is the one whose own process this is; None for a kernel. Raises `OSError`."""
        self._task = task
        self._owner = os.getpid()
        self._file: MemoryFile | None = None
        self._threads = None if task else MemoryFile(name_of(THREADS, self._owner))
        self._begin()
        if task:
            os.register_at_fork(after_in_child=self._begin_in_fork)

    def _begin(self) -> None:
        atexit.register(self.end)
        self._file = MemoryFile(name_of(ANSWERS, os.getpid()))
        descriptor = self._file.descriptor
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        faulthandler.register(DUMP, descriptor, all_threads=True, chain=False)
        with suppress(ValueError):  # not the main thread: only `DUMP` is answered
            signal.signal(TELL, self._tell)
            signal.siginterrupt(TELL, False)

    def _begin_in_fork(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
                self._begin()

    def _before_exec(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Listen no more before this process becomes another program, which would be ended."""

        def exec_(*arguments: Any, **named: Any) -> Any:
            is_listening = self._file is not None
            self.end()
            try:
                return plain(*arguments, **named)
            finally:  # there is no such program
                if is_listening:
                    with suppress(OSError):
                        self._begin()

        return exec_

    def install(self, patches: Patches) -> None:
        """End before this process becomes another program."""
        for name in ("execv", "execve"):
            patches.replace(os, name, self._before_exec)

    def _tell(self, _number: int, frame: FrameType | None) -> None:
        with suppress(Exception):  # this may be anywhere in the task's code
            is_fork = os.getpid() != self._owner
            said = answer(observe(self._task, frame, is_fork=is_fork))
            if self._file is not None and self._file.is_there:
                os.write(self._file.descriptor, said)

    def note_threads(self) -> None:
        """Write down for which tasks this kernel's threads work."""
        if self._threads is None or not self._threads.is_there:
            return
        with suppress(OSError):
            text = json.dumps(tasks_of_threads()).encode()
            os.pwrite(self._threads.descriptor, text, 0)
            os.ftruncate(self._threads.descriptor, len(text))

    def end(self) -> None:
        """Be asked no more, once no process is asking: a late signal would end this one."""
        if self._file is None:
            return
        file, self._file = self._file, None
        deadline = time.monotonic() + LOCK_S
        while file.is_there and not locked(file.descriptor) and time.monotonic() < deadline:
            time.sleep(0.001)
        faulthandler.unregister(DUMP)
        with suppress(ValueError):
            signal.signal(TELL, signal.SIG_DFL)
        file.close()
        if self._threads is not None:
            self._threads.close()
        atexit.unregister(self.end)


def begin(task: RunningTask | None) -> Listener | None:
    """Let this process be asked from now on. None where the system does not support that."""
    if not CAN_BE_ASKED:
        return None
    try:
        return Listener(task)
    except (OSError, RuntimeError):  # no descriptor is left, or a filter refuses it
        return None


def name_of(what: str, pid: int) -> str:
    """Return the name of a file in memory of a process."""
    return f"{what}-{pid}"


def locked(file: int) -> bool:
    """Try to lock the file of the answers, and return whether it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def answer(stacks: list[Stack]) -> bytes:
    """Return stacks as a line of the file of the answers."""
    return json.dumps([asdict(stack) for stack in stacks]).encode() + b"\n"
