"""Whether a supervisor's kernel is there, and the end of what it has left when it is not."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import SessionRecord
from ipytaskpersist.store.task_store import TaskStore

KERNEL_S = 1.0
"""How often an idle supervisor checks that its kernel is alive."""


class KernelWatch:
    """The kernel of one session, as its supervisor sees it."""

    def __init__(self, store: TaskStore, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self._ending: threading.Thread | None = None

    def begin(self, wake: Callable[[], None]) -> None:
        """End the processes of the kernel's threads, once the kernel and its guard are gone.

        `wake` is called in another thread when that is so.
        """
        session = self._store.sessions.get(self._session_id)
        if session is not None:
            ending = threading.Thread(target=_end_left_by, args=(session, wake), daemon=True)
            with suppress(RuntimeError):  # the limit on processes also counts threads
                ending.start()
                self._ending = ending

    @property
    def is_watched(self) -> bool:
        """Whether its end will be told without being asked for."""
        return self._ending is not None and self._ending.is_alive()

    def is_there(self) -> bool:
        """Whether the session goes on."""
        session = self._store.sessions.get(self._session_id)
        if session is None or session.ended_at is not None:
            return False
        return session.process.may_be_alive

    def is_ending_left(self) -> bool:
        """Whether a kernel's leftovers are being ended. Its session may end before its process."""
        session, ending = self._store.sessions.get(self._session_id), self._ending
        if session is None or ending is None or not ending.is_alive():
            return False
        return not session.process.may_be_alive


def _end_left_by(session: SessionRecord, wake: Callable[[], None]) -> None:
    """Wait for a kernel's end, then end the processes it has left."""
    kernel = session.process
    _wait_for_end(kernel)
    if kernel.is_local and kernel.start:
        leftover_processes.end_of_kernel(kernel.pid, kernel.start)
    wake()


def _wait_for_end(process: ProcessIdentity) -> None:
    """Wait until a process has ended: asleep, where the system can tell."""
    with suppress(AttributeError, OSError):  # Linux only, and another one may have the pid
        descriptor = os.pidfd_open(process.pid)
        try:
            if process.may_be_alive:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll()
        finally:
            os.close(descriptor)
    while process.may_be_alive:
        time.sleep(KERNEL_S)
