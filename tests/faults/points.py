"""The named points at which something happens to a process: between a write and its commit, ….

It is killed, stopped or interrupted, or from then on no file of it may grow, for a while; or the
task that has come there is cancelled.

A point is a function of the package and a side of it. A process is armed by its environment: the
functions are wrapped as their modules are imported, so the package itself knows nothing of this.
"""

from __future__ import annotations

import _thread
import importlib.machinery
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ARMED = "FAULTS_ARMED"
"""The environment variable with the faults: ``role/point/hit/signal``, separated by commas."""
FOLDER = "FAULTS_FOLDER"
"""The one with the folder where a process says that it has come to its point."""

ROLES = {
    "kernel": "ipykernel_launcher",
    "session": "faults-session",
    "supervisor": "runners.supervisor",
    "child": "runners.child",
    "fork server": "runners.fork_server",
    "notifier": "notifier",
    "upkeep": "upkeep",
    "command": "ipytaskpersist",
}
"""What the command line of each kind of process has in it, the first that fits counts."""


class Point(NamedTuple):
    """A place in the package."""

    module: str
    function: str
    """``name`` or ``Class.name``."""
    side: str
    """``before`` the call, ``after`` it, ``within`` a context at its end."""
    roles: tuple[str, ...]
    """The processes that come to it."""


_PACKAGE = "ipytaskpersist."
_WRITERS = ("kernel", "session", "supervisor", "command")
_OWNERS = ("kernel", "session")
_COMMAND = ("command",)
_SUPERVISOR = ("supervisor",)
_FORK_SERVER = ("fork server",)

POINTS = {
    # Every transaction: it has the write lock, it has written, it has committed.
    "transaction begun": Point("store.file.database", "Database.transaction", "begun", _WRITERS),
    "transaction written": Point("store.file.database", "Database.transaction", "within", _WRITERS),
    "transaction committed": Point(
        "store.file.database", "Database.transaction", "after", _WRITERS
    ),
    # Statements that are a transaction of their own: states, single outputs, results.
    "statement to run": Point("store.file.database", "Database.execute", "before", _WRITERS),
    "statement run": Point("store.file.database", "Database.execute", "after", _WRITERS),
    "output to write": Point("store.outputs", "Outputs.append", "before", _WRITERS[:3]),
    "output written": Point("store.outputs", "Outputs.append", "after", _WRITERS[:3]),
    "log to copy": Point("store.file.database", "Database.checkpoint", "before", _WRITERS[:3]),
    "log copied": Point("store.file.database", "Database.checkpoint", "after", _WRITERS[:3]),
    # The life of a task.
    "session begun": Point("store.sessions", "Sessions.begin", "after", _OWNERS),
    "session to end": Point("store.sessions", "Sessions.end", "before", (*_OWNERS, "command")),
    "thread reserved": Point("runners.thread", "ThreadRunner.reserve", "after", _OWNERS),
    "task recorded": Point("store.tasks", "Tasks.insert", "after", _OWNERS),
    "task handed over": Point("runners.thread", "ThreadRunner.launch", "before", _OWNERS),
    "task launched": Point("session.launcher", "Launcher.launch", "after", _OWNERS),
    "task begun": Point("store.tasks", "Tasks.start", "after", _OWNERS),
    "task to end": Point("store.tasks", "Tasks.end", "before", _WRITERS[:3]),
    "task ended": Point("store.tasks", "Tasks.end", "after", _WRITERS[:3]),
    "supervisor started": Point("runners.starting", "start_detached", "after", _OWNERS),
    "supervisor recorded": Point("store.processes", "Supervisors.begin", "after", _OWNERS),
    "task claimed": Point("store.processes", "Processes.claim", "after", _SUPERVISOR),
    "process started": Point("runners.supervised", "Supervised.start", "after", _SUPERVISOR),
    "process noted": Point("store.processes", "Processes.started", "after", _SUPERVISOR),
    "process to reap": Point("runners.supervised", "Supervised.reap", "before", _SUPERVISOR),
    "process reaped": Point("runners.supervised", "Supervised.reap", "after", _SUPERVISOR),
    "cancel asked": Point("store.tasks", "Tasks.request_cancel", "after", (*_OWNERS, "command")),
    "supervisor to leave": Point(
        "store.processes", "Supervisors.retire", "before", ("supervisor",)
    ),
    "supervisor left": Point("store.processes", "Supervisors.retire", "after", _SUPERVISOR),
    "tasks interrupted": Point("store.tasks", "Tasks.interrupt_session", "after", _COMMAND),
    "processes interrupted": Point("store.processes", "Processes.interrupt", "after", _COMMAND),
    "environment left": Point("store.environments", "put", "after", _OWNERS),
    "environment taken": Point("store.environments", "take", "after", _SUPERVISOR),
    # The queue: who may start, in the transaction that claims, and what is paused.
    "queue settled": Point("store.queue", "settle", "after", _WRITERS[:3]),
    "room looked for": Point("store.claiming", "ready", "after", _WRITERS[:3]),
    "task set running": Point("store.queue", "set_running", "after", _WRITERS[:3]),
    "pause asked": Point("store.queue", "Queue.request_pause", "after", _COMMAND),
    "task to pause": Point("runners.supervised", "Supervised.pause", "before", _SUPERVISOR),
    "task stopped": Point("runners.supervised", "Supervised.pause", "after", _SUPERVISOR),
    "pause recorded": Point("store.queue", "Queue.paused", "after", _SUPERVISOR),
    "room to go on": Point("store.queue", "Queue.may_continue", "after", _SUPERVISOR),
    # Tries: the next one is added by the transaction that ends the one before.
    "try to add": Point("store.tries", "add_try", "before", ("supervisor", "command")),
    "try added": Point("store.tries", "add_try", "after", ("supervisor", "command")),
    "try ended": Point("store.tasks", "Tasks.end", "after", _SUPERVISOR),
    "try claimed": Point("store.processes", "Processes.claim", "after", _SUPERVISOR),
    # Schedules: the next run is added by the transaction that claims the one before.
    "run to add": Point("store.occurrences", "add_next_run", "before", _SUPERVISOR),
    "run added": Point("store.occurrences", "add_next_run", "after", _SUPERVISOR),
    "run claimed": Point("store.processes", "Processes.claim", "after", _SUPERVISOR),
    "run ended": Point("store.tasks", "Tasks.end", "after", _SUPERVISOR),
    # Shares of the machine: they are booked by the claim, and free when the task has ended.
    "share decided": Point("store.claiming", "decide", "after", _SUPERVISOR),
    "share booked": Point("store.processes", "Processes.claim", "after", _SUPERVISOR),
    "share used": Point("store.processes", "Processes.started", "after", _SUPERVISOR),
    "share to free": Point("store.tasks", "Tasks.end", "before", _SUPERVISOR),
    # A fork server, and the processes that it forks.
    "fork asked for": Point("runners.fork_server", "ForkServer._fork", "before", _FORK_SERVER),
    "process forked": Point(
        "runners.fork_server", "ForkServer._wait_for_task", "before", _FORK_SERVER
    ),
    "process given": Point("runners.fork_server", "ForkServer._be_of", "before", _FORK_SERVER),
    "process adopted": Point("runners.warm", "ForkServer.fork", "after", _SUPERVISOR),
    # Values in files.
    "value to write": Point("values.pickle_files", "Hashing.write", "before", (*_OWNERS, "child")),
    "payload written": Point(
        "values.payloads", "Payloads._write_bundle", "after", (*_OWNERS, "child")
    ),
    "payload to rename": Point(
        "values.signatures", "Signatures.sign", "after", (*_OWNERS, "child")
    ),
    "payload renamed": Point("values.payloads", "Payloads.adopt", "after", (*_OWNERS, "child")),
    "key to link": Point("values.signatures", "os.link", "before", _OWNERS),
    "key linked": Point("values.signatures", "os.link", "after", _OWNERS),
    # Whole stores.
    "migration begun": Point("store.task_store", "migrate", "before", _WRITERS),
    "migration step": Point("store.file.migrations", "STEPS", "each", _WRITERS),
    "migration written": Point("store.task_store", "migrate", "after", _WRITERS),
    "backup written": Point("store.task_store", "make_durable", "after", _COMMAND),
    "backup renamed": Point("store.task_store", "TaskStore.write_copy", "after", _COMMAND),
    "tasks to restore": Point("store.restoring", "_copy_of", "after", _COMMAND),
    "tasks restored": Point("store.restoring", "_replace", "after", _COMMAND),
    "export written": Point("commands.moving", "make_durable", "before", _COMMAND),
    "archive copied": Point("history.archives", "copy_tasks", "after", _COMMAND),
    "archive moved": Point("history.archives", "remove_tasks", "after", _COMMAND),
    "copy chosen": Point("store.transfer", "copy_chosen", "after", _COMMAND),
    "rows saved": Point("store.file.repair", "salvage", "after", _COMMAND),
    "store set aside": Point("store.file.repair", "move_log", "after", _COMMAND),
    "store exchanged": Point("store.file.repair", "_exchange", "after", _COMMAND),
}


LAUNCHING = (
    "transaction begun", "transaction written", "transaction committed", "thread reserved",
    "task recorded", "task handed over", "task launched", "supervisor started",
    "supervisor recorded", "environment left", "value to write", "payload written",
    "payload to rename", "payload renamed", "key to link", "key linked",
)  # fmt: skip
"""The points to which a task comes that launches others."""

CANCEL = "CANCEL"
"""The task of the name `LAUNCHER…` is cancelled whose own thread has come to the point."""
LAUNCHER = "launcher"
ASKED_S = 0.1
"""How long it stays there, so that the exception is raised there if it can be."""

NO_ROOM = "NOROOM"
"""No file of the process can be written, as on a full disk: a limit of size 0 is in effect."""
NO_ROOM_S = 2.0


SETTINGS: dict[str, tuple[str, str, float]] = {
    "log to copy": ("output.recorder", "CHECKPOINT_BYTES", 1),
}
"""What is set lower, so that a process comes to the point at all."""
SETTINGS["log copied"] = SETTINGS["log to copy"]
for _point, _place in POINTS.items():
    if "fork server" in _place.roles or _point == "process adopted":
        SETTINGS[_point] = ("runners.warm_starts", "BUSY_S", 0.0)


class Fault(NamedTuple):
    """What a process does to itself when it comes to a point for the n-th time."""

    role: str
    point: str
    hit: int
    signal: str
    """The signal that it sends, `NO_ROOM` or `CANCEL`."""

    @property
    def text(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Fault:
        role, point, hit, name = text.split("/")
        return cls(role, point, int(hit), name)


def role_of(command_line: str) -> str:
    """What kind of process has this command line; empty for a task's own."""
    return next((role for role, mark in ROLES.items() if mark in command_line), "")


def arm() -> None:
    """Wrap the points at which this process is to be hit, as their modules are imported."""
    _let_files_grow()  # it may have been started by a process that was just hit
    role = role_of(" ".join(sys.orig_argv))
    faults = [Fault.parse(text) for text in os.environ[ARMED].split(",")]
    trap = _Trap(Path(os.environ[FOLDER]), [fault for fault in faults if fault.role == role])
    lowered = [SETTINGS[fault.point] for fault in faults if fault.point in SETTINGS]
    if trap.faults or lowered:
        sys.meta_path.insert(0, _Finder(trap, lowered))


class _Trap:
    """Counts how often this process comes to each point, and sends the signal."""

    def __init__(self, folder: Path, faults: list[Fault]) -> None:
        self.faults = faults
        self._folder = folder
        self._hits: Counter[Fault] = Counter()

    def come_to(self, point: str) -> None:
        for fault in self.faults:
            if fault.point == point and (fault.signal != CANCEL or _launching_task() is not None):
                self._hits[fault] += 1
                if fault.hit == self._hits[fault]:
                    self._spring(fault)

    def _spring(self, fault: Fault) -> None:
        """Send the signal, unless another process of this role was here before."""
        mark = self._folder / fault.text.replace("/", "~")
        with suppress(FileExistsError):
            descriptor = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(descriptor, str(os.getpid()).encode())
            os.close(descriptor)
            if fault.signal == NO_ROOM:
                _have_no_room()
            elif fault.signal == CANCEL:
                _cancel(_launching_task())
            else:
                os.kill(os.getpid(), signal.Signals[fault.signal])


def _launching_task() -> Any:
    """The task to be cancelled, if the calling thread is its own."""
    active = sys.modules.get("ipytaskpersist.running.running_task")
    task = None if active is None else active.active_task.get()
    is_one = task is not None and task.record.name.startswith(LAUNCHER) and task.is_own_thread
    return task if is_one else None


def _cancel(task: Any) -> None:
    _thread.start_new_thread(task.cancellation.ask, ())
    until = time.monotonic() + ASKED_S
    while time.monotonic() < until:
        time.sleep(0.001)


def _have_no_room() -> None:
    """Have every write to a file fail, as on a full disk, and lift that a while later."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    # Not a `Thread`: the package sees those started.
    _thread.start_new_thread(_wait_for_room, ())


def _wait_for_room() -> None:
    time.sleep(NO_ROOM_S)
    _let_files_grow()


def _let_files_grow() -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


class _Finder:
    """Sees the modules with points in them imported."""

    def __init__(self, trap: _Trap, lowered: list[tuple[str, str, float]]) -> None:
        self._trap = trap
        self._wanted = {_PACKAGE + POINTS[fault.point].module for fault in trap.faults}
        self._lowered = {_PACKAGE + module: (name, value) for module, name, value in lowered}
        self._wanted.update(self._lowered)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._wanted:
            return None
        self._wanted.discard(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute: Callable[[ModuleType], None] = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if name in self._lowered:
                setattr(module, *self._lowered[name])
            for fault in self._trap.faults:
                if _PACKAGE + POINTS[fault.point].module == name:
                    _wrap(module, fault.point, self._trap)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType, name: str, trap: _Trap) -> None:
    """Replace a function by one that comes to the point."""
    point = POINTS[name]
    if point.side == "each":
        steps = getattr(module, point.function)
        steps[:] = [_around(step, "after", name, trap) for step in steps]
        return
    owner: Any = module
    *path, last = point.function.split(".")
    for part in path:
        owner = getattr(owner, part)
    if point.side in {"begun", "within"} or point.function == "Database.transaction":
        setattr(owner, last, _within(getattr(owner, last), point.side, name, trap))
        return
    is_static = isinstance(vars(owner).get(last), staticmethod)
    wrapped = _around(getattr(owner, last), point.side, name, trap)
    setattr(owner, last, staticmethod(wrapped) if is_static else wrapped)


def _around(function: Callable[..., Any], side: str, name: str, trap: _Trap) -> Callable[..., Any]:
    def come(*arguments: Any, **options: Any) -> Any:
        if side == "before":
            trap.come_to(name)
        value = function(*arguments, **options)
        if side == "after":
            trap.come_to(name)
        return value

    come.__name__ = getattr(function, "__name__", name)  # a migration's step is known by it
    come.__doc__ = function.__doc__
    return come


def _within(function: Callable[..., Any], side: str, name: str, trap: _Trap) -> Callable[..., Any]:
    @contextmanager
    def come(*arguments: Any) -> Iterator[Any]:
        with function(*arguments) as value:
            if side == "begun":
                trap.come_to(name)
            yield value
            if side == "within":
                trap.come_to(name)
        if side == "after":
            trap.come_to(name)

    return come
