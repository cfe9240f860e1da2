"""What a cell starts belongs to its task: threads, pools, child processes.

Threads and ``ThreadPoolExecutor`` workers inherit no context variables before Python 3.14, child
processes never do, so starting one is where the task is handed on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

from ipytaskpersist.active import ActiveTask, active_task, redirects
from ipytaskpersist.children import DESCRIPTORS
from ipytaskpersist.patches import Patches
from ipytaskpersist.records import OutputKind

SHORT_SLEEP_S = 0.05

_installed = False
_kernel_streams: dict[int, tuple[int, int]] = {}
"""Which files the kernel's own descriptors 1 and 2 are."""


def install(patches: Patches) -> None:
    """Hand tasks on from now on."""
    global _installed
    patches.set(threading.Thread, "start", _thread_start(threading.Thread.start))
    patches.set(ThreadPoolExecutor, "submit", _submit(ThreadPoolExecutor.submit))
    patches.set(time, "sleep", _sleep(time.sleep))
    if sys.platform != "win32":
        _install_for_processes(patches)
        _installed = True
        patches.on_undo(_stop_adopting)


def _install_for_processes(patches: Patches) -> None:
    for descriptor in DESCRIPTORS.values():
        status = os.fstat(descriptor)
        _kernel_streams[descriptor] = (status.st_dev, status.st_ino)
    patches.set(subprocess.Popen, "__init__", _popen_init(subprocess.Popen.__init__))
    patches.set(os, "system", _system(os.system))
    patches.set(os, "fork", _fork(os.fork, with_streams=True))
    patches.set(os, "forkpty", _fork(os.forkpty, with_streams=False))
    patches.set(BaseProcess, "start", _process_start(BaseProcess.start))


def _stop_adopting() -> None:
    global _installed
    _installed = False


def run_as(task: ActiveTask | None, streams: dict[OutputKind, Any], call: Callable[[], Any]) -> Any:
    """Call something as a part of a task, in a thread that may be of another."""
    token, streams_token = active_task.set(task), redirects.set(streams)
    try:
        return call()
    finally:
        redirects.reset(streams_token)
        active_task.reset(token)


def _thread_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: threading.Thread) -> None:
        task = active_task.get()
        if task is not None:
            run, streams = self.run, redirects.get()
            self.run = lambda: run_as(task, streams, run)  # type: ignore[method-assign]
        plain(self)

    return start


def _submit(plain: Callable[..., Any]) -> Callable[..., Any]:
    def submit(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        # The worker may have been started by another task, or by the foreground.
        task, streams = active_task.get(), redirects.get()
        return plain(self, lambda: run_as(task, streams, lambda: fn(*args, **kwargs)))

    return submit


def _sleep(plain: Callable[[float], None]) -> Callable[[float], None]:
    def sleep(seconds: float, /) -> None:
        task = active_task.get()
        if task is None or not seconds > SHORT_SLEEP_S or not task.sleep(seconds):
            plain(seconds)

    return sleep


def _popen_init(plain: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        task = active_task.get()
        if task is None or task.children.in_child:
            return plain(self, args, *rest, **options)
        names = ("bufsize", "executable", "stdin", "stdout", "stderr")
        options.update(zip(names, rest, strict=False))
        _give_streams(task, options)
        plain(self, args, *rest[len(names) :], **options)
        task.children.add(self.pid)
        return None

    return __init__


def _give_streams(task: ActiveTask, options: dict[str, Any]) -> None:
    if options.get("stdin") is None:
        options["stdin"] = subprocess.DEVNULL
    for kind in DESCRIPTORS:
        if options.get(kind.value) is None:
            options[kind.value] = task.children.stream(kind)
    own_group = ("start_new_session", "process_group", "preexec_fn")
    if not any(options.get(name) not in (None, False) for name in own_group):
        options["process_group"] = 0


def _system(plain: Callable[[Any], int]) -> Callable[[Any], int]:
    def system(command: Any) -> int:
        if active_task.get() is None:
            return plain(command)
        code = subprocess.call(os.fsdecode(command), shell=True)
        return code << 8 if code >= 0 else -code

    return system


def _fork(plain: Callable[[], Any], *, with_streams: bool) -> Callable[[], Any]:
    def fork() -> Any:
        task = active_task.get()
        if task is None or task.children.in_child:
            return plain()
        if with_streams:
            for kind in DESCRIPTORS:
                task.children.stream(kind)
        forked = plain()
        pid = forked[0] if isinstance(forked, tuple) else forked
        if pid:
            task.children.add(pid)
        return forked

    return fork


def _process_start(plain: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        task = active_task.get()
        if task is None or task.children.in_child:
            return plain(self)
        # Pickled along by the start methods that do not fork.
        self._ipytaskpersist_streams = ChildStreams(*map(task.children.stream, DESCRIPTORS))
        try:
            plain(self)
        finally:
            del self._ipytaskpersist_streams
        task.children.add(self.pid)
        return None

    return start


class ChildStreams:
    """Travels in the pickle of a process that is about to start, and redirects it on arrival."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self._descriptors = (stdout, stderr)

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd

        return take_streams, tuple(DupFd(descriptor) for descriptor in self._descriptors)


def take_streams(stdout: Any, stderr: Any) -> None:
    """In the new process: print into the task's pipes, and leave the kernel's process group."""
    os.dup2(stdout.detach(), 1)
    os.dup2(stderr.detach(), 2)
    os.setpgid(0, 0)


def _adopt_forked_child() -> None:
    task = active_task.get()
    if not _installed or task is None:
        return
    for descriptor, kernel_stream in _kernel_streams.items():
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != kernel_stream:
            return  # a pseudo-terminal's child, which prints where its parent reads
    task.children.adopt()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_adopt_forked_child)
