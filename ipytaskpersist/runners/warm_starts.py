"""Decide which Python tasks start from a fork server, and when there is one.

The first task of a session starts in a fresh interpreter. A server is started a while later, when
that does not compete with the task's own start, and imports what the kernel has imported.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from ipytaskpersist.base.records import ProcessRecord
from ipytaskpersist.errors import StoreError
from ipytaskpersist.runners.import_time_variables import differing
from ipytaskpersist.runners.machine_limits import is_idle, is_memory_short
from ipytaskpersist.runners.task_rows import TaskRows
from ipytaskpersist.runners.warm import ForkServer, NotForked, is_usual, program_of

SETTLE_S = 1.0
"""Time after the start of a task in which no server is started."""
BUSY_S = 5.0
"""Time after which one is started even though no processor is idle, or tasks start all the time."""
AHEAD_S = 0.01
"""Time after the start of a task in which no process is forked for the next one."""
IMPORT_S = 30.0
"""Time for the import of one module."""
START_S = 60.0
"""Time for the start of a server before it imports the first module."""
IN_VAIN = 5
"""How many servers in a row may end before they are ready, or fail to fork. After that there are no
more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The task for which, and for whose like, there should be a server."""

    process: ProcessRecord
    environment: Mapping[str, str]
    """The notebook's environment, without what was given to this task alone."""


class WarmStarts:
    """The fork servers of one supervisor: one at a time."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        limits: Callable[[], AbstractContextManager[None]],
        modules: Callable[[], Sequence[str]],
        rows: Callable[[ProcessRecord], TaskRows],
        log: Callable[[str], None],
    ) -> None:
        """`limits` is the context in which to start a process, `modules` what the kernel has.

        `rows` reads a task from the store. The last two raise `StoreError`.
        """
        self._selector = selector
        self._limits = limits
        self._modules = modules
        self._rows = rows
        self._log = log
        self._server: ForkServer | None = None
        self._wanted: Wanted | None = None
        """What to check the server against, after a task has started."""
        self._wanted_at = self._started_at = 0.0
        """When a server was first wanted, and when a Python task was started last."""
        self._left_out: dict[str, str] = {}
        """Modules that servers must not import, and why."""
        self._vain = 0
        """How many servers in a row have ended before they were ready."""
        self._failed = 0
        """How many tasks in a row could not be forked by a server that was ready."""

    # Tasks.

    def fork(
        self, process: ProcessRecord, environment: Mapping[str, str], streams: Sequence[int]
    ) -> int:
        """Start a task's process, and return its pid. Raises `NotForked`."""
        reason, server = self._why_not(process, environment), self._server
        if reason or server is None:
            raise NotForked(reason)
        try:
            pid = server.fork(process, self._rows(process), environment, streams)
        except Exception as error:  # whatever is wrong with it, there are fresh ones
            self._drop()
            self._failed += 1
            if isinstance(error, NotForked):
                raise
            raise NotForked(f"the warm one failed: {error}") from error
        self._failed = 0
        return pid

    def _why_not(self, process: ProcessRecord, environment: Mapping[str, str]) -> str:
        """Return why a task cannot start from the server; empty if it can."""
        server = self._server
        if not is_usual(process) or not Path(process.directory).is_dir():
            return "it does not start as usual"
        if server is None:
            return "no warm one yet" if self._can_be else "no warm one here"
        if not server.is_ready:
            return "the warm one was not ready"
        if server.program != program_of(process):
            return "of another Python"
        names = differing(server.environment, environment, server.packages)
        return f"{names[0]} differs" if names else ""

    @property
    def _can_be(self) -> bool:
        return sys.platform == "linux" and max(self._vain, self._failed) < IN_VAIN

    def begun(self, process: ProcessRecord, environment: Mapping[str, str]) -> None:
        """Note that a Python task has started, after which a server is worth while."""
        now = time.monotonic()
        if process.interpreter is None and is_usual(process):
            self._wanted_at = self._wanted_at if self._wanted is not None else now
            own = process.options.env
            usual = {name: value for name, value in environment.items() if name not in own}
            usual.update((name, os.environ[name]) for name in own if name in os.environ)
            self._wanted = Wanted(process, usual)
        self._started_at = now

    # The server.

    @property
    def is_ready(self) -> bool:
        """Whether a usual task would start from a server now."""
        return self._server is not None and self._server.is_ready

    @property
    def is_wanted(self) -> bool:
        """Whether a server is to be started, or it prepares itself or a process for a task."""
        server = self._server
        is_prepared = server is None or (server.is_ready and server.has_waiting)
        return self._wanted is not None or not is_prepared

    def turn(self, now: float) -> None:
        """Do what is due: start a server, have it import more, or end one that hangs."""
        if self._server is not None and not self._server.is_ready:
            self._end_if_late(self._server, now)
            return
        if self._server is not None and now - self._started_at >= AHEAD_S:
            self._fork_ahead(self._server)
        if self._wanted is not None and self._is_time(now):
            wanted, self._wanted = self._wanted, None
            self._provide(wanted)

    def _fork_ahead(self, server: ForkServer) -> None:
        """Have a process ready for the next task."""
        try:
            server.prefork()
        except NotForked:
            self._failed += 1
            self._drop()

    def _is_time(self, now: float) -> bool:
        is_settled = now - self._started_at >= SETTLE_S
        return now - self._wanted_at >= BUSY_S or (is_settled and is_idle())

    def _provide(self, wanted: Wanted) -> None:
        """See to it that there is a server as wanted, unless the machine is short of memory."""
        modules, server = self._names(), self._server
        if server is not None and self._is_as(server, wanted):
            if modules != server.modules:
                self._ask(server, modules, wanted.process)
            return
        self._drop()
        if self._can_be and not is_memory_short():
            self._start(wanted, modules)

    @staticmethod
    def _is_as(server: ForkServer, wanted: Wanted) -> bool:
        if server.program != program_of(wanted.process):
            return False
        return not differing(server.environment, wanted.environment, server.packages)

    def _names(self) -> list[str]:
        """Return the modules to import."""
        bad = self._left_out
        return [name for name in self._modules() if not any(part in bad for part in _parts(name))]

    def _start(self, wanted: Wanted, modules: Sequence[str]) -> None:
        self._vain += 1
        try:
            server = ForkServer(wanted.process, wanted.environment, self._limits())
        except OSError as error:
            self._log(f"no fork server: {error.strerror}")
            return
        self._server, self._wanted = server, wanted
        self._selector.register(server.descriptor, selectors.EVENT_READ, server)
        self._ask(server, modules, wanted.process)

    def _ask(self, server: ForkServer, modules: Sequence[str], process: ProcessRecord) -> None:
        try:
            server.ask_to_import(modules, self._rows(process))
        except (OSError, StoreError):
            self._drop()

    def _end_if_late(self, server: ForkServer, now: float) -> None:
        if now - server.heard_at <= (IMPORT_S if server.importing else START_S):
            return
        if server.importing:
            self._leave_out({server.importing: "its import hangs"})
        self._replace()

    def read(self) -> None:
        """Take what the server says."""
        while self._server is not None:
            message = self._server.take()
            if message is None:
                self._has_ended(self._server)
            elif "left_out" in message:
                self._leave_out(message["left_out"])
                self._replace()
            elif "ready" in message:
                self._vain = 0
            elif not message:
                return

    def _has_ended(self, server: ForkServer) -> None:
        """Note that a server has ended: idle, short of memory, killed, or while it imported."""
        if server.importing:
            self._leave_out({server.importing: "its import ends the process"})
        if server.is_ready:
            self._drop()
        else:
            self._replace()

    def _leave_out(self, modules: Mapping[str, str]) -> None:
        for name, why in modules.items():
            self._left_out[name] = why
            self._log(f"tasks import {name} themselves: {why}")

    def _replace(self) -> None:
        """Start another server in the next idle moment."""
        wanted = self._wanted
        self._drop()
        self._wanted = wanted

    def _drop(self) -> None:
        """End the server, if there is one."""
        server, self._server = self._server, None
        if server is None:
            return
        self._selector.unregister(server.descriptor)
        was_ready, said = server.is_ready, server.end()
        if said and not was_ready:
            self._log(f"the fork server ended: {said}")

    def pids(self) -> Collection[int]:
        """Return the pids of what has no task: the server, and a process that waits for one."""
        return () if self._server is None else self._server.pids

    def end(self) -> None:
        """End the server, and start no other one."""
        self._vain = IN_VAIN
        with suppress(Exception):
            self._drop()


def _parts(name: str) -> list[str]:
    """Return a module's name and those of the packages that it is in."""
    words = name.split(".")
    return [".".join(words[: count + 1]) for count in range(len(words))]
