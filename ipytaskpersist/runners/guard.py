"""The guard of a kernel: a small process that waits for the kernel's end and ends its leftovers.

The guard shares no resources with the kernel, so it survives whatever ends the kernel. It exits
when there is nothing left to guard.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.detached import remove_empty
from ipytaskpersist.base.leftover_processes import GUARD, Kernel, Mark

IDLE_S = 60.0
"""How often the guard checks that there is something to guard."""
POLL_S = 0.5
"""Poll interval for the kernel's end, where the system does not report it."""


def guard(kernel: Kernel, idle_s: float = IDLE_S) -> str:
    """Wait for the kernel's end, then end its leftovers. Returns a description of survivors."""
    while not _has_ended(kernel, idle_s):
        if not leftover_processes.find(leftover_processes.of_kernel(kernel)):
            return ""
    _count, survivors = leftover_processes.end(leftover_processes.of_kernel(kernel))
    return survivors


def _has_ended(kernel: Kernel, within_s: float) -> bool:
    """Wait at most this long for a kernel to end. Returns whether it has."""
    try:
        descriptor = os.pidfd_open(kernel.pid)
    except (OSError, AttributeError):
        return _is_seen_to_end(kernel, within_s)
    try:
        # The pid may have been reused, in which case the descriptor is another process's.
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
    """Guard a kernel. The arguments are its identity and the guard's log."""
    kernel, log = Kernel.parse(sys.argv[1]), Path(sys.argv[2])
    # A kernel may have been started with signals blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Mark(GUARD, kernel).open()  # marks the guard for other processes to find
    survivors = guard(kernel)
    if survivors:
        print(f"left by the kernel with pid {kernel.pid}: {survivors}", file=sys.stderr)
    remove_empty(log)
