"""Notice at once, without polling, that files are written: through inotify(7), on Linux.

A report is only a reason to look. On file systems shared between hosts there are none of what other
hosts do.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

WRITTEN = 0x2
"""Events of a file that is written (IN_MODIFY)."""
CHANGED = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Events of a folder in which a file is written, gets another time, comes, goes or is renamed, and
of a folder that goes itself."""
READ_BYTES = 64 * 1024


class FileWatch:
    """A descriptor that is readable if any of the files was written since it was last cleared."""

    def __init__(self, paths: Iterable[Path | str], events: int) -> None:
        self.descriptor = _open(paths, events)
        """Descriptor to wait for. -1 where some of the files cannot be watched."""

    @property
    def may_have_news(self) -> bool:
        """Whether something has happened, or is not known. Leaves the events to other processes."""
        if self.descriptor < 0:
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def clear(self) -> None:
        """Discard the pending events."""
        with suppress(BlockingIOError):
            while self.descriptor >= 0:
                os.read(self.descriptor, READ_BYTES)

    def close(self) -> None:
        """Stop watching."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _open(paths: Iterable[Path | str], events: int) -> int:
    if sys.platform != "linux":
        return -1
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        return -1
    for path in paths:
        if library.inotify_add_watch(descriptor, os.fsencode(path), events) < 0:
            os.close(descriptor)
            return -1
    return descriptor
