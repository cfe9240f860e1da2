"""Launch tasks that run in processes of their own, by way of the session's supervisor."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ipytaskpersist import disks, environments
from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.identity import ProcessIdentity
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.payload import INPUTS, Payloads, Prepared
from ipytaskpersist.records import SessionRecord, SupervisorRecord, TaskRecord
from ipytaskpersist.runners.detached import own_environment, python_command, start_detached
from ipytaskpersist.secretnames import without_values
from ipytaskpersist.store import NewProcess, NewTask, TaskStore

REPLACED_AT_MOST = 3
"""How many supervisors in a row are replaced without a launch in between: a task that ends its
supervisor whenever it begins must not do so for ever."""

_started: list[subprocess.Popen[bytes]] = []
"""The supervisors that this process has started: a parent must take their exit status."""
_environments: dict[ProcessIdentity, dict[str, str]] = {}
"""The environment that each of them was given. Kept when the extension is loaded anew."""


class ProcessRunner:
    """The process tasks of one session, as its kernel launches them."""

    def __init__(
        self,
        store: TaskStore,
        directory: StateDirectory,
        payloads: Payloads,
        session: Callable[[], SessionRecord],
        on_loss: Callable[[], None],
    ) -> None:
        """`on_loss` is called, in a thread of its own, when a supervisor has ended by itself."""
        self._store = store
        self._directory = directory
        self._payloads = payloads
        self._session = session
        self._on_loss = on_loss
        self._replaced = 0
        """How many supervisors have been replaced since the last launch."""
        self._supervisor: SupervisorRecord | None = None
        self._one_at_a_time = threading.RLock()

    def launch(
        self, new: NewTask, process: NewProcess, inputs: Prepared | None = None
    ) -> TaskRecord:
        """Record a task for the supervisor to start, durably, and return it.

        `inputs` are what a Python task is given. Raises `StoreError` when it cannot be recorded.
        """
        if not hasattr(os, "fork"):
            raise InvalidRequest("tasks in processes of their own need Linux or macOS")
        self._replaced = 0
        try:
            supervisor = self._ensure_supervisor()
            changed = self._changes(supervisor, process.options.env)
            record = self._insert(new, process, changed, inputs)
        finally:
            if inputs is not None:
                inputs.discard()
        known = self._store.supervisors.get(supervisor.key)
        if known is None or known.ended_at is not None:
            self._start_supervisor()  # it had left in the very moment
        return record

    def _insert(
        self,
        new: NewTask,
        process: NewProcess,
        changed: Mapping[str, str | None],
        inputs: Prepared | None,
    ) -> TaskRecord:
        """Record a task. The values of its environment wait beside the store, not in it."""
        values = {name: value for name, value in changed.items() if value is not None}
        options = replace(process.options, env=without_values(process.options.env))
        marks = {name: None if value is None else True for name, value in changed.items()}
        stored = replace(process, environment=marks, options=options)
        written: list[str] = []
        try:
            return self._store.tasks.insert(
                new, partial(self._complete, stored, values, inputs, written)
            )
        except BaseException:
            for task_id in written:
                environments.remove(self._directory, task_id)
            raise

    def _complete(
        self,
        process: NewProcess,
        values: Mapping[str, str],
        inputs: Prepared | None,
        written: list[str],
        connection: Any,
        task_key: int,
        task_id: str,
    ) -> None:
        """Add to a task's row what belongs to it, in the same transaction."""
        process.insert(connection, task_key)
        if values:
            written.append(task_id)
            environments.put(self._directory, task_id, values)
        if inputs is not None:
            self._store.results.save(
                task_key, self._payloads.adopt(task_id, INPUTS, inputs, "what it was given")
            )

    @staticmethod
    def _changes(
        supervisor: SupervisorRecord, own: Mapping[str, str | None]
    ) -> dict[str, str | None]:
        """How the environment of a task that is launched now differs from its supervisor's."""
        given = _environments.get(ProcessIdentity.recorded(supervisor), {})
        now = {**os.environ, **own}
        changed = {name: value for name, value in now.items() if given.get(name) != value}
        # The interpreter of the supervisor may have set this one for itself (PEP 538).
        removed = {name: None for name in (*given, "LC_CTYPE") if name not in now}
        return {**changed, **removed}

    # The supervisor.

    def serve_pending(self) -> None:
        """Start a supervisor when tasks of this session wait for one and there is none."""
        session_id = self._session().id
        if self._store.processes.has_pending(session_id):
            self._ensure_supervisor()

    def _ensure_supervisor(self) -> SupervisorRecord:
        # A button of the panel may launch a task while a cell does.
        with self._one_at_a_time:
            if self._supervisor is None:
                self._supervisor = self._find_supervisor()
            known = self._supervisor
            if known is None or not ProcessIdentity.recorded(known).may_be_alive:
                return self._start_supervisor()
            return known

    def _find_supervisor(self) -> SupervisorRecord | None:
        """One that this session has from before the extension was unloaded and loaded again."""
        session_id = self._session().id
        for supervisor in self._store.supervisors.unfinished():
            process = ProcessIdentity.recorded(supervisor)
            if supervisor.session == session_id and process.may_be_alive:
                return supervisor
        return None

    def _start_supervisor(self) -> SupervisorRecord:
        """Start a process that has nothing of this one's: neither session nor streams."""
        self._store.require_writable()
        session = self._session()
        environment, log = dict(os.environ), self._directory.supervisor_log(session.id)
        command = python_command("runners.supervisor")
        try:
            process = start_detached(
                [*command, str(self._directory.root), session.id, self._store.database.synchronous],
                environment,
                log,
            )
        except OSError as error:
            if disks.has_words(error):
                raise disks.refused(f"the supervisor's log {log}", error, log) from error
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
        self._supervisor = self._store.supervisors.begin(session.id, identity)
        _environments[identity] = own_environment(environment)
        start_outside(
            threading.Thread(
                target=self._see_end,
                args=(process,),
                name="ipytaskpersist-supervisor",
                daemon=True,
            )
        )
        return self._supervisor

    def _see_end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a supervisor, which is none of its own while its kernel is there."""
        process.wait()
        if self._replaced < REPLACED_AT_MOST:
            self._replaced += 1
            self._on_loss()
            self._store.database.close_own()
