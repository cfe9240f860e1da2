"""What a cell starts belongs to its task: threads and child processes.

Threads inherit no context variables before Python 3.14, child processes never do, so starting one
is where the task is handed on.
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

from ipytaskpersist import arrival, submitting
from ipytaskpersist.active import ActiveTask, active_task
from ipytaskpersist.cancellation import Cancellation
from ipytaskpersist.children import DESCRIPTORS, READER
from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.interruption import HeldBack
from ipytaskpersist.leftovers import Mark
from ipytaskpersist.patches import Patches
from ipytaskpersist.processes import MARK
from ipytaskpersist.records import OutputKind
from ipytaskpersist.submitting import Submitter

SHORT_SLEEP_S = 0.05
MARK_ENTRY = f"{MARK}=".encode()
KEPT_OPEN, ENVIRONMENT, START_NEW_SESSION, PROCESS_GROUP, PREEXEC_FN = 3, 5, 15, 16, 21
"""Places among the arguments of ``_posixsubprocess.fork_exec``, on Python 3.11 to 3.14."""

_installed = False
_open_marks: dict[int, Mark] = {}
"""The descriptors by which commands that are just being started are marked."""
_kernel_streams: dict[int, tuple[int, int]] = {}
"""Which files the kernel's own descriptors 1 and 2 are."""


def install(patches: Patches) -> None:
    """Hand tasks on from now on."""
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
    """Hand tasks on to threads and pools of threads."""
    patches.replace(threading.Thread, "start", _thread_start)
    submitting.install(patches)


def _install_for_processes(patches: Patches) -> None:
    for descriptor in DESCRIPTORS.values():
        status = os.fstat(descriptor)
        _kernel_streams[descriptor] = (status.st_dev, status.st_ino)
    patches.replace(subprocess.Popen, "_get_handles", _get_handles)
    if hasattr(subprocess, "_USE_POSIX_SPAWN"):
        # A spawned shell command could be given no process group, and nobody would learn its pid.
        patches.set(subprocess, "_USE_POSIX_SPAWN", False)
    if hasattr(subprocess, "_fork_exec"):
        patches.replace(subprocess, "_fork_exec", _fork_exec)
    for name in ("posix_spawn", "posix_spawnp"):
        if hasattr(os, name):
            patches.replace(os, name, _posix_spawn)
    patches.replace(os, "system", _system)
    patches.replace(os, "fork", partial(_fork, with_streams=True))
    patches.replace(os, "forkpty", partial(_fork, with_streams=False))
    patches.replace(BaseProcess, "start", _process_start)
    submitting.install_for_processes(patches)


def _stop_adopting() -> None:
    global _installed
    _installed = False


def _thread_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        task = active_task.get()
        if task is None:
            plain(self)
            return
        # Around the whole of the thread: what it raises is printed after `run` has ended.
        starter = Submitter.here()
        self._bootstrap_inner = partial(starter.context().run, self._bootstrap_inner)
        if getattr(self, "_context", self) is None:
            self._context = starter.context()  # Python 3.14 would run it in an empty one
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
    """How the cell is cancelled in whose own thread the caller runs."""
    task = active_task.get()
    here = task is not None and task.cancellation.runs_in(threading.get_ident())
    return task.cancellation if task is not None and here else None


def _condition_wait(plain: Callable[..., bool]) -> Callable[..., bool]:
    """Events, semaphores, queues and futures wait by this, too."""

    def wait(self: Any, timeout: float | None = None) -> bool:
        cancellation = _own_cancellation()
        if cancellation is None or not self._is_owned():
            return plain(self, timeout)
        # As the plain one does. To call that in steps could miss a notification between two.
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
    """A cancellation may be raised where it can only be ignored, as in ``__del__``."""

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


def _starter() -> ActiveTask | None:
    """The task whose code is about to start a process, also one that has ended.

    Its threads may live on. What they start prints in the foreground, but ends with the kernel like
    all that the task has started.
    """
    return active_task.variable.get()


def _fork_exec(plain: Callable[..., int]) -> Callable[..., int]:
    """The C function that starts a command, for `subprocess` and for spawned processes.

    Replaced rather than ``Popen.__init__``, which stands in the traceback of a command that is
    not there.
    """

    def fork_exec(*args: Any) -> int:
        task = _starter()
        if task is None or task.children.in_child:
            return plain(*args)
        given = [*args]
        if (
            not given[START_NEW_SESSION]
            and given[PROCESS_GROUP] == -1
            and given[PREEXEC_FN] is None
        ):
            given[PROCESS_GROUP] = 0
        with HeldBack(), _marked(given, task.children.mark):
            pid = plain(*given)
            task.children.add(pid)
        return pid

    return fork_exec


@contextmanager
def _marked(arguments: list[Any], mark: Mark) -> Iterator[None]:
    """Have a command carry a mark: in the environment that it inherits.

    One that was given an environment finds in it what it was given. It is marked by an open file.
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
    """The environment that a command inherits, without a mark: with what C code has set, too."""
    try:
        entries: Any = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.pythonapi, "environ")
        found = list(takewhile(lambda entry: entry is not None, entries))
    except ValueError:  # macOS does not let it be found so
        found = [name + b"=" + value for name, value in os.environb.items()]
    return [entry for entry in found if not entry.startswith(MARK_ENTRY)]


def _posix_spawn(plain: Callable[..., int]) -> Callable[..., int]:
    def posix_spawn(path: Any, argv: Any, env: Any, /, **options: Any) -> int:
        task = _starter()
        if task is None or task.children.in_child:
            return plain(path, argv, env, **options)
        if not {"setpgroup", "setsid"} & options.keys():
            options["setpgroup"] = 0
        streams = [
            (os.POSIX_SPAWN_DUP2, task.children.stream(kind), descriptor)
            for kind, descriptor in DESCRIPTORS.items()
        ]
        options["file_actions"] = [*streams, *(options.get("file_actions") or ())]
        marked = {**(os.environ if env is None else env), MARK: str(task.children.mark)}
        with HeldBack():
            pid = plain(path, argv, marked, **options)
            task.children.add(pid)
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
        task = _starter()
        if task is None or task.children.in_child or arguments:
            return plain(*arguments)
        if with_streams:
            for kind in DESCRIPTORS:
                task.children.stream(kind)
        with HeldBack():
            forked = plain()
            pid = forked[0] if isinstance(forked, tuple) else forked
            if pid:
                task.children.add(pid)
        return forked

    return fork


def _process_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        task = _starter()
        if task is None or task.children.in_child:
            return plain(self)
        # Pickled along by the start methods that do not fork.
        streams = map(task.children.stream, DESCRIPTORS)
        self._ipytaskpersist_streams = ChildStreams(task.children.mark, *streams)
        with HeldBack():
            try:
                plain(self)
            finally:
                del self._ipytaskpersist_streams
            task.children.add(self.pid, is_of_multiprocessing=True)
        return None

    return start


class ChildStreams:
    """Travels in the pickle of a process that is about to start, and changes it on arrival."""

    def __init__(self, mark: Mark, stdout: int, stderr: int) -> None:
        self._mark = mark
        self._descriptors = (stdout, stderr)

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd

        return be_child, (str(self._mark), *map(DupFd, self._descriptors))


def be_child(mark: str, stdout: Any, stderr: Any) -> None:
    """In the new process: print into the task's pipes, leave the kernel's process group, and
    carry the task's mark."""
    os.dup2(stdout.detach(), 1)
    os.dup2(stderr.detach(), 2)
    arrival.have_given()
    os.setpgid(0, 0)
    known = Mark.parse(mark)
    if known is not None:
        known.take()


def _adopt_forked_child() -> None:
    task = _starter()
    for file, mark in _open_marks.items():
        if task is None or task.children.mark != mark:
            os.close(file)  # another thread was starting a command for its task
    if task is None:
        return
    if not task.has_ended:
        task.continue_in_forked_child()
    if not _installed:
        return  # in a process of its own, whose descriptors are the task's
    # What runs at the end of the kernel is not for the end of its children: it would remove the
    # kernel's connection file. What a child registers itself is.
    atexit._clear()
    task.children.take_mark()
    for descriptor, kernel_stream in _kernel_streams.items():
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != kernel_stream:
            return  # a pseudo-terminal's child, which prints where its parent reads
    task.children.adopt()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_adopt_forked_child)
