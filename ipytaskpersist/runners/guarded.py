"""See to it that a kernel whose threads start processes has a guard, which ends what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from ipytaskpersist import leftovers
from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.leftovers import Kernel
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.runners.detached import python_command, start_detached

FLAGS = ("-S",) if sys.platform == "linux" else ()
"""Elsewhere processes are found with psutil, which is in the site-packages."""
STARTED_AT_MOST = 3
"""How many guards in a row are started for the same processes: each may be ended at once."""


class Guarded:
    """The guard of this process, which is started with the first process that it is to guard.

    Without one, for want of a process or a thread, the next command ends what is left.
    """

    def __init__(self, directory: StateDirectory, at_exit: Callable[[], None]) -> None:
        """`at_exit` ends what there is to guard when the interpreter exits."""
        self._directory = directory
        self._at_exit = at_exit
        self._lock = threading.Lock()
        self._is_there = False
        self._is_closed = False
        self._guard: subprocess.Popen[bytes] | None = None
        self.was_needed = False
        """Whether there has ever been something to guard."""

    def need(self) -> None:
        """Have a guard from now on: a process has been started. Returns at once."""
        self.was_needed = True
        self._be_first_at_exit()
        with self._lock:
            if self._is_there or not Kernel.own().start:
                return
            self._is_there = True
        thread = threading.Thread(target=self._see, name="ipytaskpersist-guard", daemon=True)
        if not start_outside(thread):
            self._is_there = False

    def close(self) -> None:
        """Let the guard end, unless something is left that it is to end with this process."""
        with self._lock:
            self._is_closed = True
            if self._guard is not None and not self._is_anything_left():
                self._guard.terminate()

    @staticmethod
    def _is_anything_left() -> bool:
        return bool(leftovers.find(leftovers.of_kernel(Kernel.own())))

    def _be_first_at_exit(self) -> None:
        """Have the processes ended before the interpreter waits for threads that wait for them,
        as those of a ``ProcessPoolExecutor`` do."""
        calls = getattr(threading, "_threading_atexits", None)
        if calls is not None and calls[-1:] != [self._at_exit]:
            with suppress(ValueError):
                calls.remove(self._at_exit)
            calls.append(self._at_exit)

    def _see(self) -> None:
        """Start a guard, and another one when it ends while there is something to guard."""
        for _guard in range(STARTED_AT_MOST):
            if not self._run():
                break
            with self._lock:
                # What is started from now on waits for the lock, and then has another.
                self._guard = None
                if not self._is_anything_left():
                    self._is_there = False
                    return
        self._is_there = False

    def _run(self) -> bool:
        """Start a guard and wait for its end. Returns False where none can be started."""
        kernel = Kernel.own()
        log = self._directory.guard_log(kernel.pid)
        try:
            command = python_command("runners.guard", *FLAGS)
            guard = start_detached([*command, str(kernel), str(log)], os.environ, log)
        except (OSError, BackgroundError):
            return False
        with self._lock:
            self._guard = guard
            is_closed = self._is_closed
        if is_closed:  # meanwhile
            self.close()
        guard.wait()
        return True
