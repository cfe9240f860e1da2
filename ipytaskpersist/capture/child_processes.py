"""The child processes of a task that runs in a thread: their output, and their end.

A child that inherits the kernel's file descriptors 1 and 2 would print into whichever cell runs. So
a task's children get the task's own pipes. They also get a process group of their own, which the
stop button and Ctrl-C do not reach.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.leftover_processes import Kernel, Mark
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.capture import worker_streams
from ipytaskpersist.text.encoding import encode, new_decoder

READ_BYTES = 64 * 1024
GRACE_S = 2.0
DESCRIPTORS = {OutputKind.STDOUT: 1, OutputKind.STDERR: 2}


_group_before: int | None = None
"""Process group that this process has left to lead its own; None if it has left none."""


class Output(Protocol):
    """Takes the output of child processes."""

    def write(self, kind: OutputKind, data: str | bytes, /) -> None:
        """Take a piece of a stream."""


class Children:
    """The child processes of one task, and the pipes they print to."""

    def __init__(self, recording: Output, mark: Mark, on_start: Callable[[], None]) -> None:
        """`mark` is carried by every child. `on_start` is called when a child has been started."""
        self._recording = recording
        self._on_start = on_start
        self._is_marked = False
        """Whether this copy's process carries the mark."""
        self.mark = mark
        self._owner = os.getpid()
        self._read: dict[OutputKind, int] = {}
        self._write: dict[OutputKind, int] = {}
        self._lock = threading.Lock()
        self._processes: dict[int, tuple[ProcessIdentity, bool]] = {}
        """Each started process by its pid, and whether multiprocessing started it."""
        self._ended = False
        self.have_streams = False

    def silent(self, sink: Output) -> Children:
        """Return other children, whose output goes to a sink that discards it."""
        return Children(sink, self.mark, self._on_start)

    @property
    def in_child(self) -> bool:
        """Whether this is a forked copy in a child of the task."""
        return os.getpid() != self._owner

    def stream(self, kind: OutputKind) -> int:
        """Return the file descriptor to which the task's children write this stream."""
        if self.in_child:
            return DESCRIPTORS[kind]
        with self._lock:
            if self._ended:
                return DESCRIPTORS[kind]
            if not self.have_streams:
                for each in DESCRIPTORS:
                    read, self._write[each] = os.pipe()
                    os.set_blocking(read, False)
                    self._read[each] = read
                self.have_streams = True
                READER.watch(self)
        return self._write[kind]

    def drain(self) -> None:
        """Record what children have written so far.

        Called before the task itself prints, so that earlier output of a child comes first.
        """
        if not self.have_streams or self.in_child:
            return
        with self._lock:
            for kind in list(self._read):
                self._drain(kind)

    def _drain(self, kind: OutputKind) -> None:
        while kind in self._read:
            try:
                data = os.read(self._read[kind], READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._recording.write(kind, data)
            else:
                READER.forget(self._read[kind])
                os.close(self._read.pop(kind))

    def close(self) -> None:
        """Record what children have printed until now, because the task has ended."""
        self.drain()
        with self._lock:
            self._ended = True
            while self._write:
                os.close(self._write.popitem()[1])

    def leave_to_foreground(self) -> None:
        """Show later output of the children in the foreground, until they end."""
        with self._lock:
            self._recording = ForegroundStreams()

    @property
    def read_ends(self) -> list[int]:
        """The file descriptors to watch."""
        return list(self._read.values())

    # In a forked child.

    def adopt(self) -> None:
        """Make a freshly forked child print into the task's pipes."""
        self._lock = threading.Lock()
        for kind, descriptor in DESCRIPTORS.items():
            if kind in self._write:
                os.dup2(self._write[kind], descriptor)
        worker_streams.have_given()
        lead_group()

    def take_mark(self) -> None:
        """Mark a freshly forked child. Its own forks carry the mark already."""
        if not self._is_marked:
            self._is_marked = True
            self.mark.take()

    # Ending the children.

    def add(self, pid: int, *, is_of_multiprocessing: bool = False) -> None:
        """Register a child, which is ended when the task is cancelled."""
        with suppress(OSError):  # a lack of descriptors must not make the start fail
            identity = ProcessIdentity.of(pid)
            if identity is not None:
                self._processes[pid] = identity, is_of_multiprocessing
        STARTED.add(self)
        self._on_start()

    def terminate(self, whole: bool) -> None:
        """End the children: SIGTERM to each one's process group, then SIGKILL after a grace period.

        Unless `whole`, spare those of multiprocessing. Always spare the workers of a pool: a worker
        killed while it holds its queue's lock leaves the queue locked for ever, and its pool hangs.
        """
        spared = {worker.pid for pool in self._pools() for worker in pool[1]}
        ended = [
            process
            for pid, (process, is_of_multiprocessing) in self._processes.copy().items()
            if pid not in spared and (whole or not is_of_multiprocessing)
        ]
        _kill_later([each for each in ended if _signal_group(each, signal.SIGTERM)])

    def terminate_left(self) -> None:
        """End the children that the task has left behind."""
        self.end_pools()
        self.terminate(whole=True)

    def end_pools(self) -> None:
        """Make the task's pools end their own workers, which a pool would otherwise replace."""
        pools = self._pools()
        if pools:
            _kill_later([process for process, _ in self._processes.copy().values()])
        for end_pool, _workers in pools:
            end_pool()

    def _pools(self) -> list[tuple[Callable[[], Any], list[Any]]]:
        """Return each open ``multiprocessing.Pool`` of the task: its finalizer and its workers."""
        module = sys.modules.get("multiprocessing.pool")
        if module is None or not self._processes:
            return []
        from multiprocessing import util

        registered: Any = util._finalizer_registry  # type: ignore[attr-defined]
        finalizers = list(registered.values())
        found = [(each, each._args[3]) for each in finalizers if _ends_pool(each, module)]
        return [each for each in found if any(one.pid in self._processes for one in each[1])]


def lead_group() -> None:
    """Make the calling process lead a process group, which the kernel's signals do not reach."""
    global _group_before
    before = os.getpgrp()
    with suppress(OSError):
        os.setpgid(0, 0)
        _group_before = before


def setsid_of_leader(plain: Callable[[], None]) -> Callable[[], None]:
    """Let a process call ``setsid`` although this package has made it lead a group.

    The system refuses that to a leader, so the process returns to its former group first.
    """

    def setsid() -> None:
        if _group_before is not None and os.getpgrp() == os.getpid():
            with suppress(OSError):  # the group has ended with its last process
                os.setpgid(0, _group_before)
        plain()

    return setsid


STARTED: WeakSet[Children] = WeakSet()
"""The `Children` of all tasks that have started a child."""


def end_all() -> None:
    """End all that the tasks of this process have started, because the process is ending."""
    for children in [*STARTED]:
        children.end_pools()
    leftover_processes.end(leftover_processes.of_kernel(Kernel.own()))


def _ends_pool(finalizer: Any, module: Any) -> bool:
    return bool(finalizer._callback == module.Pool._terminate_pool)


def _kill_later(processes: list[ProcessIdentity]) -> None:
    if processes:
        timer = threading.Timer(GRACE_S, _kill_groups, [processes])
        timer.daemon = True
        if not start_outside(timer):
            timer.run()


def _kill_groups(processes: list[ProcessIdentity]) -> None:
    for process in processes:
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: ProcessIdentity, number: int) -> bool:
    """Signal a child and its group. Returns False when it has ended.

    A child that may not be signalled must not affect the others.
    """
    try:
        if not _is_there(process):
            return False
        group = os.getpgid(process.pid)
        if group == process.pid:
            os.killpg(group, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _is_there(process: ProcessIdentity) -> bool:
    """Whether a child has not ended. Raises `OSError` if that cannot be determined."""
    try:
        return process.is_alive
    except OSError:  # without /proc only this process's own children can be checked
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class ForegroundStreams:
    """Stands in for a recording once the task has ended."""

    def __init__(self) -> None:
        self._decoders = {kind: new_decoder() for kind in DESCRIPTORS}

    def write(self, kind: OutputKind, data: str | bytes) -> None:
        """Print into the running cell or the last one, as the kernel does with its own streams."""
        stream = getattr(sys, kind.value)
        with suppress(OSError, ValueError, AttributeError):  # the stream may be closed or missing
            stream.write(self._decoders[kind].decode(encode(data)))
            stream.flush()


def of_foreground() -> Children:
    """Return the pipes for workers that work for the foreground. They belong to no task."""
    return Children(ForegroundStreams(), Mark(leftover_processes.GUARD, Kernel.own()), lambda: None)


class Reader:
    """The thread that records children's output while the task's own thread is busy."""

    def __init__(self) -> None:
        self._selector: selectors.BaseSelector | None = None
        self._closed: list[selectors.BaseSelector] = []
        self._wake = -1
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the thread once all its children have ended. Until then, they must not block."""
        with self._lock:
            wake, self._wake = self._wake, -1
            if self._selector is not None:
                self._closed.append(self._selector)
                self._selector = None
        if wake >= 0:
            os.close(wake)

    def watch(self, children: Children) -> None:
        """Record what these children print from now on."""
        with self._lock:
            if self._selector is None and not self._start():
                return  # the output is recorded whenever the task itself prints
            assert self._selector is not None
            for descriptor in children.read_ends:
                self._selector.register(descriptor, selectors.EVENT_READ, children)
            os.write(self._wake, b".")

    def forget(self, descriptor: int) -> None:
        """Stop watching a file descriptor that is about to be closed."""
        for selector in (self._selector, *self._closed):
            if selector is not None:
                with suppress(KeyError, ValueError, RuntimeError):
                    selector.unregister(descriptor)

    def _start(self) -> bool:
        """Start the thread. Returns False if that fails."""
        selector = selectors.DefaultSelector()
        read, wake = os.pipe()
        os.set_blocking(read, False)
        selector.register(read, selectors.EVENT_READ, None)
        thread = threading.Thread(
            target=self._run, args=(selector, read), name="ipytaskpersist-reader", daemon=True
        )
        if not start_outside(thread):
            selector.close()
            os.close(read)
            os.close(wake)
            return False
        self._selector, self._wake = selector, wake
        return True

    def _run(self, selector: selectors.BaseSelector, wake: int) -> None:
        while selector.get_map():
            for key, _events in selector.select():
                if key.data is not None:
                    key.data.drain()
                elif not os.read(wake, READ_BYTES):  # its other end is closed
                    selector.unregister(wake)
                    os.close(wake)
        self._closed.remove(selector)
        selector.close()

    def after_fork(self) -> None:
        """Start over in a forked child, which has no copy of the thread."""
        self.__init__()  # type: ignore[misc]


READER = Reader()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=READER.after_fork)
