"""Notice writes to the store at once, without polling.

On Linux, inotify(7) reports writes to SQLite's write-ahead log. A report is only a reason to look:
the store's data version tells whether anything changed. Elsewhere, and on file systems shared
between hosts, there are no reports, and the store is polled instead.
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
    """A descriptor that is readable if the log has been written since it was last cleared."""

    def __init__(self, log: Path) -> None:
        """`log` is SQLite's write-ahead log, to which every commit is written."""
        self.descriptor = _open(log)
        """Descriptor to wait for. -1 where inotify is not available."""

    def clear(self) -> None:
        """Discard the pending events."""
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
