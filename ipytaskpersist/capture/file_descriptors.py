"""Output of C code on file descriptors 1 and 2, which the kernel's own threads read.

The output does not tell its writer, which is inferred from the code that is running. So it must be
known whether any written output has yet to be read and passed on.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from time import sleep
from typing import Any

PATIENCE_S = 5.0
"""How long a thread may pass nothing on before it counts as stuck.

A terminal behind the kernel may block. On a busy machine, or beside a computing task, the thread
runs late.
"""
PAUSE_S = 0.0005
CHUNK_BYTES = 1000
"""How much ipykernel reads at once."""
WAKING = "\0"


class Watcher:
    """A kernel thread that reads what is written to a file descriptor and passes it on."""

    def __init__(self, stream: Any) -> None:
        self.thread: threading.Thread = stream.watch_fd_thread
        self._stream = stream
        self._descriptor: int = stream._fid
        self._copy: int = stream._original_stdstream_copy
        self._passed_on = 0
        """Lower bound of the bytes that have been read and passed on."""
        self._reading = 0
        """How many bytes are being read or passed on."""
        self._is_followed = False
        """Whether the thread has called `next_descriptor`. At first, it is blocked in its read."""
        self._stuck_at: int | None = None
        """Value of `_passed_on` when the thread was last given up as stuck."""

    def wake(self) -> None:
        """Make the thread take one invisible turn, after which it is followed."""
        os.write(self._stream._original_stdstream_fd, WAKING.encode())
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_followed and time.monotonic() < deadline:
            sleep(PAUSE_S)

    def arrived(self, text: str) -> str:
        """Return the part of what the thread has read that is to be passed on."""
        if self._is_followed or WAKING not in text:
            return text
        rest = text.replace(WAKING, "", 1)
        # Do here, without the waking byte, what the kernel does next: copy to the original stream.
        os.write(self._copy, rest.encode())
        self._stream._original_stdstream_copy = os.open(os.devnull, os.O_WRONLY)
        return rest

    def next_descriptor(self) -> int:
        """Return the descriptor to read next. Called once all earlier input has been passed on.

        The thread waits here for input rather than in its read. So each byte is either still unread
        or counted as being passed on.
        """
        if self._stream._original_stdstream_copy != self._copy:
            os.close(self._stream._original_stdstream_copy)
            self._stream._original_stdstream_copy = self._copy
        self._passed_on += self._reading
        self._reading = 0
        self._is_followed = True
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.poll()
        self._reading = min(self._unread, CHUNK_BYTES) or CHUNK_BYTES
        return self._descriptor

    @property
    def _unread(self) -> int:
        """How many bytes are waiting to be read."""
        # Not available on Windows, where kernels do not watch their file descriptors.
        import fcntl
        import termios

        count = fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", count)[0])

    def settle(self) -> None:
        """Wait until everything written so far has been passed on or nothing progresses.

        A stuck thread is waited for again once it has passed something on.
        """
        unread = self._unread  # before the other counts, to which the bytes move
        awaited = self._passed_on + self._reading + unread
        seen, deadline = -1, 0.0
        while (passed_on := self._passed_on) < awaited and passed_on != self._stuck_at:
            if not self._unread and not self._reading:
                return
            if passed_on != seen:
                seen, deadline = passed_on, time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                self._stuck_at = passed_on
            sleep(PAUSE_S)


class Watchers:
    """The watching threads of this process's kernel."""

    def __init__(self) -> None:
        self._of_thread: dict[int | None, Watcher] = {}

    def add(self, watcher: Watcher) -> None:
        """Follow another watcher."""
        self._of_thread[watcher.thread.ident] = watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        del self._of_thread[watcher.thread.ident]

    @property
    def are_there(self) -> bool:
        """Whether this process's file descriptors are watched."""
        return bool(self._of_thread)

    def of_thread(self, thread_id: int) -> Watcher | None:
        """Return the watcher with this thread, if there is one."""
        return self._of_thread.get(thread_id)

    def settle(self) -> None:
        """Wait until everything written to the file descriptors so far has been passed on."""
        if self._of_thread and threading.get_ident() not in self._of_thread:
            for watcher in list(self._of_thread.values()):
                watcher.settle()


WATCHERS = Watchers()
