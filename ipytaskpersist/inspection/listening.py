"""Let other processes of this user ask what this one does now, on Linux.

A process that can be asked has an open file in memory with a certain name, which another process
finds in ``/proc``. Two signals ask it, and it appends its answer to that file:

- `TELL` is handled in Python, at the main thread's next bytecode. The answer has everything.
- `DUMP` is handled in C by `faulthandler`, at once, also while one C call keeps the interpreter.
  The answer has files, lines and functions.

Both restart system calls that they interrupt, so a library in C never sees ``EINTR``. A child that
this process forks inherits all this, and can be asked, too. A program that it starts inherits
neither the file nor the handlers, and is not asked, because the signals would end it.
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
from contextlib import suppress
from dataclasses import asdict
from types import FrameType

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


class Listener:
    """What lets this process be asked, until `end`."""

    def __init__(self, task: RunningTask | None) -> None:
        """`task` is the one whose own process this is; None for a kernel. Raises `OSError`."""
        self._task = task
        self._owner = os.getpid()
        self._file = os.memfd_create(ANSWERS)
        self._threads = -1 if task else os.memfd_create(THREADS)
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)
        faulthandler.register(DUMP, self._file, all_threads=True, chain=False)
        with suppress(ValueError):  # not the main thread: only `DUMP` is answered
            signal.signal(TELL, self._tell)
            signal.siginterrupt(TELL, False)
        atexit.register(self.end)

    def _tell(self, _number: int, frame: FrameType | None) -> None:
        with suppress(Exception):  # this may be anywhere in the task's code
            is_fork = os.getpid() != self._owner
            os.write(self._file, answer(observe(self._task, frame, is_fork=is_fork)))

    def note_threads(self) -> None:
        """Write down for which tasks this kernel's threads work."""
        with suppress(OSError):
            text = json.dumps(tasks_of_threads()).encode()
            os.pwrite(self._threads, text, 0)
            os.ftruncate(self._threads, len(text))

    def end(self) -> None:
        """Be asked no more, once no process is asking: a late signal would end this one."""
        if self._file < 0:
            return
        file, self._file = self._file, -1
        deadline = time.monotonic() + LOCK_S
        while not locked(file) and time.monotonic() < deadline:
            time.sleep(0.001)
        faulthandler.unregister(DUMP)
        with suppress(ValueError):
            signal.signal(TELL, signal.SIG_DFL)
        fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to the copies of forks
        for each in (file, self._threads):
            with suppress(OSError):
                os.close(each)
        atexit.unregister(self.end)


def begin(task: RunningTask | None) -> Listener | None:
    """Let this process be asked from now on. None where the system does not support that."""
    if not CAN_BE_ASKED:
        return None
    try:
        return Listener(task)
    except (OSError, RuntimeError):  # no descriptor is left, or a filter refuses it
        return None


def locked(file: int) -> bool:
    """Try to lock the file of the answers, and return whether it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def answer(stacks: list[Stack]) -> bytes:
    """Return stacks as a line of the file of the answers."""
    message = {"pid": os.getpid(), "stacks": [asdict(stack) for stack in stacks]}
    return json.dumps(message).encode() + b"\n"
