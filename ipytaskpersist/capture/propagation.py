"""Pass the task on to the threads and child processes that a cell starts.

Before Python 3.14, threads inherit no context variables, and child processes never do. So the task
is passed on when they are started.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import subprocess
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from multiprocessing.process import BaseProcess
from typing import Any

from ipytaskpersist.base.leftover_processes import Mark
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.capture import child_processes, submitted_work, worker_streams
from ipytaskpersist.capture.child_processes import DESCRIPTORS, READER, Children
from ipytaskpersist.capture.submitted_work import Submitter
from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.running.cancellation import Cancellation
from ipytaskpersist.running.interruption import HeldBack
from ipytaskpersist.running.running_task import RunningTask, active_task

SHORT_SLEEP_S = 0.05
MARK_ENTRY = f"{MARK}=".encode()
KEPT_OPEN, ENVIRONMENT, START_NEW_SESSION, PROCESS_GROUP, PREEXEC_FN = 3, 5, 15, 16, 21
"""Argument positions of ``_posixsubprocess.fork_exec`` in Python 3.11 to 3.14."""

_installed = False
_open_marks: dict[int, Mark] = {}
"""Descriptors that mark commands which are being started."""
_kernel_streams: dict[int, tuple[int, int]] = {}
"""Device and inode of the kernel's own descriptors 1 and 2."""


def install(patches: Patches) -> None:
    """Pass tasks on from now on."""
    global _installed
    install_for_threads(patches)
    patches.replace(time, "sleep", _sleep)
    patches.replace(threading.Condition, "wait", _condition_wait)
    patches.replace(threading.Thread, "join", _join)
    patches.replace(BaseProcess, "join", _join)
    patches.replace(sys, "unraisablehook", _unraisablehook)
    if sys.platform != "win32":
        _install_for_processes(patches)
        _installed = True
        patches.on_undo(_stop_adopting)
        patches.on_undo(READER.close)


def install_for_threads(patches: Patches) -> None:
    """Pass tasks on to threads and thread pools."""
    patches.replace(threading.Thread, "start", _thread_start)
    submitted_work.install(patches)


def _install_for_processes(patches: Patches) -> None:
    for descriptor in DESCRIPTORS.values():
        status = os.fstat(descriptor)
        _kernel_streams[descriptor] = (status.st_dev, status.st_ino)
    patches.replace(subprocess.Popen, "_get_handles", _get_handles)
    if hasattr(subprocess, "_USE_POSIX_SPAWN"):
        # A spawned shell command could not be given a process group, and its pid would stay
        # unknown.
        patches.set(subprocess, "_USE_POSIX_SPAWN", False)
    if hasattr(subprocess, "_fork_exec"):
        patches.replace(subprocess, "_fork_exec", _fork_exec)
    for name in ("posix_spawn", "posix_spawnp"):
        if hasattr(os, name):
            patches.replace(os, name, _posix_spawn)
    patches.replace(os, "system", _system)
    patches.replace(os, "fork", partial(_fork, with_streams=True))
    patches.replace(os, "forkpty", partial(_fork, with_streams=False))
    patches.replace(os, "setsid", child_processes.setsid_of_leader)
    patches.replace(BaseProcess, "start", _process_start)
    submitted_work.install_for_processes(patches)


def _stop_adopting() -> None:
    global _installed
    _installed = False


def _thread_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        task = active_task.get()
        if task is None:
            plain(self)
            return
        # Wrap the whole thread, because an exception is printed after `run` has ended.
        self.ipytaskpersist_task = task.record.id
        starter = Submitter.here()
        self._bootstrap_inner = partial(starter.context().run, self._bootstrap_inner)
        if getattr(self, "_context", self) is None:
            self._context = starter.context()  # Python 3.14 would run it in an empty context
        with HeldBack():
            plain(self)

    return start


def _sleep(plain: Callable[..., None]) -> Callable[..., None]:
    def sleep(*arguments: float) -> None:
        cancellation = _own_cancellation()
        if cancellation is not None and len(arguments) == 1 and arguments[0] > SHORT_SLEEP_S:
            cancellation.sleep(*arguments)
            return
        plain(*arguments)
        if cancellation is not None:
            cancellation.look()

    return sleep


def _own_cancellation() -> Cancellation | None:
    """Return the cell's cancellation if the caller runs in that cell's own thread."""
    task = active_task.get()
    here = task is not None and task.cancellation.runs_in(threading.get_ident())
    return task.cancellation if task is not None and here else None


def _condition_wait(plain: Callable[..., bool]) -> Callable[..., bool]:
    """Make waiting cancellable, including that of events, semaphores, queues and futures."""

    def wait(self: Any, timeout: float | None = None) -> bool:
        cancellation = _own_cancellation()
        if cancellation is None or not self._is_owned():
            return plain(self, timeout)
        # Repeat the original's steps. Calling it repeatedly could miss a notification in between.
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        saved = self._release_save()
        has_come = False
        try:
            has_come = cancellation.in_steps(partial(waiter.acquire, True), timeout)
        finally:
            self._acquire_restore(saved)
            if not has_come:
                with suppress(ValueError):
                    self._waiters.remove(waiter)
        return has_come

    return wait


def _join(plain: Callable[..., None]) -> Callable[..., None]:
    def join(self: Any, timeout: float | None = None) -> None:
        def has_ended(seconds: float) -> bool:
            plain(self, seconds)
            return not self.is_alive()

        cancellation = _own_cancellation()
        if cancellation is None:
            plain(self, timeout)
        else:
            cancellation.in_steps(has_ended, timeout)

    return join


def _unraisablehook(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Handle a cancellation raised where it can only be ignored, as in ``__del__``."""

    def unraisablehook(unraisable: Any, /) -> None:
        cancellation = _own_cancellation()
        if cancellation is not None and issubclass(unraisable.exc_type, TaskCancelled):
            cancellation.was_ignored()
        else:
            plain(unraisable)

    return unraisablehook


def _get_handles(plain: Callable[..., Any]) -> Callable[..., Any]:
    def _get_handles(self: Any, stdin: Any, stdout: Any, stderr: Any) -> Any:
        task = active_task.get()
        if task is not None and not task.children.in_child:
            stdin = subprocess.DEVNULL if stdin is None else stdin
            stdout = task.children.stream(OutputKind.STDOUT) if stdout is None else stdout
            stderr = task.children.stream(OutputKind.STDERR) if stderr is None else stderr
        return plain(self, stdin, stdout, stderr)

    return _get_handles


def _starter() -> RunningTask | None:
    """Return the task whose code is starting a process, even if it has ended.

    An ended task's threads may live on. Processes that they start print in the foreground but end
    with the kernel, like all others of the task.
    """
    return active_task.variable.get()


def _children() -> Children | None:
    """Return the `Children` to which the calling code adds a process, or None.

    A forked child of the task adds none: it has the task's streams and passes them on.
    """
    task = _starter()
    children = None if task is None else task.children
    return children if isinstance(children, Children) and not children.in_child else None


def _fork_exec(plain: Callable[..., int]) -> Callable[..., int]:
    """Wrap the C function that starts a command, for `subprocess` and for spawned processes.

    ``Popen.__init__`` is not replaced, because it would appear in the traceback for a missing
    command.
    """

    def fork_exec(*args: Any) -> int:
        children = _children()
        if children is None:
            return plain(*args)
        given = [*args]
        if (
            not given[START_NEW_SESSION]
            and given[PROCESS_GROUP] == -1
            and given[PREEXEC_FN] is None
        ):
            given[PROCESS_GROUP] = 0
        with HeldBack(), _marked(given, children.mark):
            pid = plain(*given)
            children.add(pid)
        return pid

    return fork_exec


@contextmanager
def _marked(arguments: list[Any], mark: Mark) -> Iterator[None]:
    """Mark a command in the environment that it inherits.

    A command with an explicit environment keeps it unchanged. An open file marks it instead.
    """
    if arguments[ENVIRONMENT] is None:
        arguments[ENVIRONMENT] = [*_inherited_environment(), mark.variable]
        yield
        return
    file = mark.open()
    if file is None:
        yield
        return
    _open_marks[file] = mark
    try:
        arguments[KEPT_OPEN] = tuple(sorted({*arguments[KEPT_OPEN], file}))
        yield
    finally:
        del _open_marks[file]
        os.close(file)


def _inherited_environment() -> list[bytes]:
    """Return the inherited environment without a mark, including variables set by C code."""
    try:
        entries: Any = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.pythonapi, "environ")
        found = list(takewhile(lambda entry: entry is not None, entries))
    except ValueError:  # on macOS it cannot be found this way
        found = [name + b"=" + value for name, value in os.environb.items()]
    return [entry for entry in found if not entry.startswith(MARK_ENTRY)]


def _posix_spawn(plain: Callable[..., int]) -> Callable[..., int]:
    def posix_spawn(path: Any, argv: Any, env: Any, /, **options: Any) -> int:
        children = _children()
        if children is None:
            return plain(path, argv, env, **options)
        if not {"setpgroup", "setsid"} & options.keys():
            options["setpgroup"] = 0
        streams = [
            (os.POSIX_SPAWN_DUP2, children.stream(kind), descriptor)
            for kind, descriptor in DESCRIPTORS.items()
        ]
        options["file_actions"] = [*streams, *(options.get("file_actions") or ())]
        marked = {**(os.environ if env is None else env), MARK: str(children.mark)}
        with HeldBack():
            pid = plain(path, argv, marked, **options)
            children.add(pid)
        return pid

    return posix_spawn


def _system(plain: Callable[..., int]) -> Callable[..., int]:
    def system(*arguments: Any, **named: Any) -> int:
        if (
            active_task.get() is None
            or len([*arguments, *named]) != 1
            or named.keys() - {"command"}
        ):
            return plain(*arguments, **named)
        text = os.fsdecode(arguments[0] if arguments else named["command"])
        code = subprocess.call(text, shell=True)  # it is os.system  # nosec B602
        return code << 8 if code >= 0 else -code

    return system


def _fork(plain: Callable[..., Any], *, with_streams: bool) -> Callable[..., Any]:
    def fork(*arguments: Any) -> Any:
        children = _children()
        if children is None or arguments:
            return plain(*arguments)
        if with_streams:
            for kind in DESCRIPTORS:
                children.stream(kind)
        with HeldBack():
            forked = plain()
            pid = forked[0] if isinstance(forked, tuple) else forked
            if pid:
                children.add(pid)
        return forked

    return fork


def _process_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        children = _children()
        if children is None:
            return plain(self)
        # Pickled with the process by start methods that do not fork.
        streams = map(children.stream, DESCRIPTORS)
        self._ipytaskpersist_streams = HandedStreams(children.mark, *streams)
        with HeldBack():
            try:
                plain(self)
            finally:
                del self._ipytaskpersist_streams
            children.add(self.pid, is_of_multiprocessing=True)
        return None

    return start


class HandedStreams:
    """Travels in the pickle of a process about to start, and configures it on arrival."""

    def __init__(self, mark: Mark, stdout: int, stderr: int) -> None:
        self._mark = mark
        self._descriptors = (stdout, stderr)

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd

        return be_child, (str(self._mark), *map(DupFd, self._descriptors))


def be_child(mark: str, stdout: Any, stderr: Any) -> None:
    """Configure a new process for its task.

    It prints into the task's pipes, leaves the kernel's process group, and carries the task's mark.
    """
    os.dup2(stdout.detach(), 1)
    os.dup2(stderr.detach(), 2)
    worker_streams.have_given()
    child_processes.lead_group()
    Patches().replace(os, "setsid", child_processes.setsid_of_leader)
    known = Mark.parse(mark)
    if known is not None:
        known.take()


def _adopt_forked_child() -> None:
    task = _starter()
    children = None if task is None else task.children
    own = children.mark if isinstance(children, Children) else None
    for file, mark in _open_marks.items():
        if own != mark:
            os.close(file)  # another thread was starting a command for its task
    if task is None:
        return
    if not task.has_ended:
        task.continue_in_forked_child()
    if not _installed or not isinstance(children, Children):
        return  # a process of its own, whose descriptors are the task's
    # The kernel's exit functions must not run when its child ends: they would remove the kernel's
    # connection file. Functions that the child registers itself still run.
    atexit._clear()
    children.take_mark()
    for descriptor, kernel_stream in _kernel_streams.items():
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != kernel_stream:
            return  # a child on a pseudo-terminal, which prints where its parent reads
    children.adopt()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_adopt_forked_child)
