"""Start a guard for a kernel whose threads start processes. It ends what the kernel leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.detached import python_command, start_detached
from ipytaskpersist.base.leftover_processes import Kernel
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import BackgroundError

FLAGS = ("-S",) if sys.platform == "linux" else ()
"""Interpreter flags of the guard. Without /proc, it needs psutil from site-packages."""
STARTED_AT_MOST = 3
"""How many guards in a row are started for the same processes. Each one may be killed at once."""


class Guarded:
    """The guard of this process, started along with the first process to be guarded.

    If no guard can be started for lack of a process or a thread, the next command ends the
    leftovers.
    """

    def __init__(self, directory: StateDirectory, at_exit: Callable[[], None]) -> None:
        """`at_exit` ends the guarded processes when the interpreter exits."""
        self._directory = directory
        self._at_exit = at_exit
        self._lock = threading.Lock()
        self._is_there = False
        self._is_closed = False
        self._guard: subprocess.Popen[bytes] | None = None
        self.was_needed = False
        """Whether there has ever been something to guard."""

    def install(self, patches: Patches) -> None:
        """Keep `at_exit` first in line from now on, whatever is registered later.

        Executors refuse work once their own turn has come, and tasks that still run would fail.
        """
        self._be_first_at_exit()
        if hasattr(threading, "_register_atexit"):
            patches.replace(threading, "_register_atexit", self._registering)

    def _registering(self, plain: Callable[..., None]) -> Callable[..., None]:
        def register(*arguments: Any, **named: Any) -> None:
            plain(*arguments, **named)
            if not self._is_closed:
                self._be_first_at_exit()

        return register

    def need(self) -> None:
        """Ensure that a guard runs, because a process has been started. Returns at once."""
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
        """Let the guard exit, unless processes are left for it to end after this one."""
        with self._lock:
            self._is_closed = True
            if self._guard is not None and not self._is_anything_left():
                self._guard.terminate()

    @staticmethod
    def _is_anything_left() -> bool:
        return bool(leftover_processes.find(leftover_processes.of_kernel(Kernel.own())))

    def _be_first_at_exit(self) -> None:
        """Run `at_exit` before the interpreter waits for worker threads.

        The threads of a ``ProcessPoolExecutor`` wait for the guarded processes. joblib registers
        such a wait only when its first workers exist, which would put it first.
        """
        calls = getattr(threading, "_threading_atexits", None)
        if calls is not None and calls[-1:] != [self._at_exit]:
            with suppress(ValueError):
                calls.remove(self._at_exit)
            calls.append(self._at_exit)

    def _see(self) -> None:
        """Start a guard, and a new one whenever it ends while there is something to guard."""
        for _guard in range(STARTED_AT_MOST):
            if not self._run():
                break
            with self._lock:
                # A process started from now on waits for the lock, then gets a new guard.
                self._guard = None
                if not self._is_anything_left():
                    self._is_there = False
                    return
        self._is_there = False

    def _run(self) -> bool:
        """Start a guard and wait for its end. Returns False if none can be started."""
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
        if is_closed:  # closed while the guard was starting
            self.close()
        guard.wait()
        return True
