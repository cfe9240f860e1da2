"""File locks between processes, for what SQLite's own locking does not cover."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import open_private
from ipytaskpersist.errors import StoreBusy, StoreError
from ipytaskpersist.store.file.sqlite_errors import DOCTOR

WAIT_S = 20.0
LOCK_POLL_S = 0.01
MAKING_S = 300.0
"""Time to wait for the process that creates or migrates the store. A migration backs up the whole
store first, and a hundred kernels may start at once."""


def _lock(descriptor: int, wait_s: float, busy: str) -> None:
    import fcntl

    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreBusy(busy) from None
            time.sleep(LOCK_POLL_S)
        else:
            return


def exclusive(path: Path, busy: str, wait_s: float = WAIT_S) -> AbstractContextManager[object]:
    """Hold the lock on this file. Raise `StoreBusy` with this message when it is taken.

    The context is the open file itself. C code closes it, so neither the stop button nor a
    cancellation can interrupt between the block's end and the release.
    """
    try:
        file = open(path, "r+b", buffering=0, opener=_open_private)  # noqa: SIM115
    except OSError as error:
        if path.exists():
            raise StoreError(f"cannot lock {path} ({error.strerror}); move it away") from error
        raise disk_errors.refused(f"the lock {path}", error, path.parent, DOCTOR) from error
    try:
        if os.name == "posix":
            _lock(file.fileno(), wait_s, busy)
        return file
    except BaseException:
        file.close()
        raise


def _open_private(path: str, _flags: int) -> int:
    return open_private(Path(path), os.O_RDWR)


def one_at_a_time(directory: StateDirectory) -> AbstractContextManager[object]:
    """Keep other processes from creating or repairing the same store meanwhile."""
    return exclusive(
        directory.lock,
        f"another process is making or repairing the store {directory.store} and does not come to "
        "an end; try again when it has",
        MAKING_S,
    )
