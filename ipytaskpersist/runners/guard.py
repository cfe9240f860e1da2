"""The guard of a kernel: a small process that waits for its end, and ends what it has left.

It has nothing of the kernel's, so that it outlives it, whatever ends that. It ends itself when
nothing is left to guard.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

from ipytaskpersist import leftovers
from ipytaskpersist.leftovers import GUARD, Kernel, Mark
from ipytaskpersist.runners.detached import remove_empty

IDLE_S = 60.0
"""How often it looks whether there is something to guard."""
POLL_S = 0.5
"""How often it looks whether its kernel is there, where the system does not tell."""


def guard(kernel: Kernel, idle_s: float = IDLE_S) -> str:
    """Wait for the end of a kernel, and end what is left. Returns in words what goes on all the
    same."""
    while not _has_ended(kernel, idle_s):
        if not leftovers.find(leftovers.of_kernel(kernel)):
            return ""
    _count, survivors = leftovers.end(leftovers.of_kernel(kernel))
    return survivors


def _has_ended(kernel: Kernel, within_s: float) -> bool:
    """Whether a kernel has ended, or does so in this time."""
    try:
        descriptor = os.pidfd_open(kernel.pid)
    except (OSError, AttributeError):
        return _is_seen_to_end(kernel, within_s)
    try:
        # The descriptor may stand for another process that has the pid by now.
        return kernel.is_gone or bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def _is_seen_to_end(kernel: Kernel, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not kernel.is_gone:
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


def main() -> None:
    """Guard a kernel: its identity and the guard's log are the arguments."""
    kernel, log = Kernel.parse(sys.argv[1]), Path(sys.argv[2])
    # A kernel may have been started with signals blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Mark(GUARD, kernel).open()  # by this others know that it is there
    survivors = guard(kernel)
    if survivors:
        print(f"left by the kernel with pid {kernel.pid}: {survivors}", file=sys.stderr)
    remove_empty(log)
