"""Threads of this package's own."""

from __future__ import annotations

import threading
from contextvars import Context


def start_outside(thread: threading.Thread) -> bool:
    """Start a thread that serves all tasks, and so belongs to none, whichever task requests it.

    Returns False when the machine's limit on processes, which counts threads, too, forbids it.
    """
    try:
        Context().run(thread.start)
    except RuntimeError:
        return False
    return True
