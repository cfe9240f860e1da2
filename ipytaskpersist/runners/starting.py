"""Start a supervisor for a session: by its kernel, or by a process that finds tasks without one."""

from __future__ import annotations

import os
import subprocess

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.detached import python_command, start_detached
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import SupervisorRecord
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store.task_store import TaskStore

_started: list[subprocess.Popen[bytes]] = []
"""Supervisors started by this process, which must reap them."""


def start_supervisor(
    store: TaskStore, session_id: str
) -> tuple[subprocess.Popen[bytes], SupervisorRecord]:
    """Start a supervisor that shares neither session nor streams with this process.

    Raises `StoreError` if it cannot be started.
    """
    store.require_writable()
    directory = store.directory
    log = directory.supervisor_log(session_id)
    command = python_command("runners.supervisor")
    try:
        process = start_detached(
            [*command, str(directory.root), session_id, store.database.synchronous],
            os.environ,
            log,
        )
    except OSError as error:
        if disk_errors.has_words(error):
            raise disk_errors.refused(f"the supervisor's log {log}", error, log) from error
        raise StoreError(
            f"the supervisor of process tasks could not be started ({error.strerror}); "
            "run the cell with --thread, or free some of this machine's processes"
        ) from error
    _started[:] = [each for each in _started if each.poll() is None]
    _started.append(process)
    identity = ProcessIdentity.of(process.pid)
    if identity is None:
        raise StoreError(
            f"the supervisor of process tasks ended at once; see {log}, and run the cell with "
            "--thread meanwhile"
        )
    return process, store.supervisors.begin(session_id, identity)
