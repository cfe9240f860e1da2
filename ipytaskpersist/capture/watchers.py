"""What C code writes to file descriptors 1 and 2, as the kernel's own threads read it.

Nothing in what they read says who has written it: that is known by what was running. So it must be
known, too, whether anything that was written has still to be read and passed on.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from time import sleep
from typing import Any

AT_MOST_S = 1.0
"""How long what was written is waited for: a terminal behind the kernel may take nothing."""
PAUSE_S = 0.0005
CHUNK_BYTES = 1000
"""How much ipykernel reads at once."""
WAKING = "\0"


class Watcher:
    """A thread of the kernel that reads what is written to a file descriptor, and passes it on."""

    def __init__(self, stream: Any) -> None:
        self.thread: threading.Thread = stream.watch_fd_thread
        self._stream = stream
        self._descriptor: int = stream._fid
        self._copy: int = stream._original_stdstream_copy
        self._passed_on = 0
        """Of what it has read, so many bytes at least are where they belong."""
        self._reading = 0
        """So many bytes it is reading, or passing on."""
        self._is_followed = False
        """Whether it has come by here. In its first turn it waits in the reading already."""

    def wake(self) -> None:
        """Have the thread take one turn, of which nothing is seen: after it, it is followed."""
        os.write(self._stream._original_stdstream_fd, WAKING.encode())
        deadline = time.monotonic() + AT_MOST_S
        while not self._is_followed and time.monotonic() < deadline:
            sleep(PAUSE_S)

    def arrived(self, text: str) -> str:
        """What the thread has read, to be passed on."""
        if self._is_followed or WAKING not in text:
            return text
        rest = text.replace(WAKING, "", 1)
        # The kernel copies what it has read to where its own output went, after this.
        os.write(self._copy, rest.encode())
        self._stream._original_stdstream_copy = os.open(os.devnull, os.O_WRONLY)
        return rest

    def next_descriptor(self) -> int:
        """What the thread reads next; it asks when it has passed on all that it read before.

        The thread waits here for something to read, and not in the reading: so every byte is either
        still in the file descriptor or counted as being passed on.
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
        """How many bytes wait to be read."""
        # Not there on Windows, where no kernel watches its file descriptors.
        import fcntl
        import termios

        count = fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", count)[0])

    def settle(self, deadline: float) -> None:
        """Wait until what has been written so far is passed on, or until the deadline."""
        unread = self._unread  # before the rest is looked at: it goes from here to there
        awaited = self._passed_on + self._reading + unread
        while self._passed_on < awaited and time.monotonic() < deadline:
            if not self._unread and not self._reading:
                return
            sleep(PAUSE_S)


class Watchers:
    """The watching threads of this process's kernel."""

    def __init__(self) -> None:
        self._of_thread: dict[int | None, Watcher] = {}

    def add(self, watcher: Watcher) -> None:
        """Follow one more."""
        self._of_thread[watcher.thread.ident] = watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget one."""
        del self._of_thread[watcher.thread.ident]

    @property
    def are_there(self) -> bool:
        """Whether this process's file descriptors are watched."""
        return bool(self._of_thread)

    def of_thread(self, thread_id: int) -> Watcher | None:
        """The watcher whose thread this is, if it is one's."""
        return self._of_thread.get(thread_id)

    def settle(self) -> None:
        """Wait until what has been written to the file descriptors so far is passed on."""
        if self._of_thread and threading.get_ident() not in self._of_thread:
            deadline = time.monotonic() + AT_MOST_S
            for watcher in list(self._of_thread.values()):
                watcher.settle(deadline)


WATCHERS = Watchers()
