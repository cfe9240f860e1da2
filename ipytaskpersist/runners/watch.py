"""Learn at once, and without asking again and again, that somebody has written to the store.

On Linux the kernel tells (inotify(7)) when SQLite's write-ahead log is written. That is only a
reason to look: whether anything has changed, the store's own version says. Elsewhere, and on file
systems that other hosts write to, there is nothing to be told, and the store is asked often.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

IN_MODIFY = 0x2
READ_BYTES = 64 * 1024


class LogWatch:
    """Readable whenever the log has been written since it was last cleared."""

    def __init__(self, log: Path) -> None:
        """`log` is the file that SQLite writes every commit to."""
        self.descriptor = _open(log)
        """What to wait for; -1 where the system does not tell."""

    def clear(self) -> None:
        """Take what was told."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, READ_BYTES)


def _open(log: Path) -> int:
    if sys.platform != "linux":
        return -1
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        return -1
    if library.inotify_add_watch(descriptor, os.fsencode(log), IN_MODIFY) < 0:
        os.close(descriptor)
        return -1
    return descriptor
