"""Launch tasks in processes of their own, through the session's supervisor."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ipytaskpersist.base.detached import own_environment
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import INPUTS, SessionRecord, SupervisorRecord, TaskRecord
from ipytaskpersist.base.redaction import without_values
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.runners.session_modules import SessionModules
from ipytaskpersist.runners.starting import start_supervisor
from ipytaskpersist.store import environments
from ipytaskpersist.store.claiming import starts_at_once
from ipytaskpersist.store.processes import NewProcess, note_modules
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.pickle_files import Prepared

REPLACED_AT_MOST = 3
"""How many supervisors are replaced in a row without a launch in between.

Without this limit, a task that kills its supervisor at its start would do so for ever.
"""

NewModules = tuple[int, list[str]] | None
"""A supervisor, and the modules to record for it."""

_environments: dict[ProcessIdentity, dict[str, str]] = {}
"""Environment given to each supervisor. Kept when the extension is reloaded."""


class ProcessRunner:
    """The process tasks of one session, as launched by its kernel."""

    def __init__(
        self,
        store: TaskStore,
        payloads: Payloads,
        session: Callable[[], SessionRecord],
        on_loss: Callable[[], None],
    ) -> None:
        """`on_loss` is called in a separate thread when a supervisor ends unexpectedly."""
        self._store = store
        self._directory = store.directory
        self._payloads = payloads
        self._session = session
        self._on_loss = on_loss
        self._replaced = 0
        """How many supervisors have been replaced since the last launch."""
        self._supervisor: SupervisorRecord | None = None
        self._one_at_a_time = threading.RLock()
        self._modules = SessionModules()
        self._last_whole: tuple[Mapping[str, str], str] = ({}, "")
        """The last environment that was kept whole, and for which task."""
        self._noted: tuple[int, int] | None = None
        """Supervisor and number of modules for which these were recorded last."""

    def launch(
        self, new: NewTask, process: NewProcess, inputs: Prepared | None = None
    ) -> TaskRecord:
        """Record a task durably for the supervisor to start, and return it.

        `inputs` are the inputs of a Python task. Raises `StoreError` if the task cannot be
        recorded.
        """
        if not hasattr(os, "fork"):
            raise InvalidRequest("tasks in processes of their own need Linux or macOS")
        self._replaced = 0
        try:
            supervisor = self._ensure_supervisor()
            modules = self._new_modules(process, supervisor)
            record = self._insert(new, process, supervisor, inputs, modules)
        finally:
            if inputs is not None:
                inputs.discard()
        known = self._store.supervisors.get(supervisor.key)
        if known is None or known.ended_at is not None:
            self._start_supervisor()  # it retired just before the task was recorded
        return record

    def _insert(
        self,
        new: NewTask,
        process: NewProcess,
        supervisor: SupervisorRecord,
        inputs: Prepared | None,
        modules: NewModules,
    ) -> TaskRecord:
        """Record a task, with all that belongs to it."""
        written: list[str] = []

        def complete(connection: Any, task_key: int, task_id: str) -> None:
            written.append(task_id)
            # Another supervisor may start what waits, the next try, or the next run.
            if process.place is not None:  # it begins with the environment over there
                own = dict(process.options.env)
                self._add_changed(process, own, connection, task_key, task_id)
            elif new.retries or new.schedule or not starts_at_once(connection, task_key):
                self._add_whole(process, connection, task_key, task_id)
            else:
                changed = self._changes(supervisor, process.options.env)
                self._add_changed(process, changed, connection, task_key, task_id)
            self._add_parts(inputs, modules, connection, task_key, task_id)

        try:
            return self._store.tasks.insert(new, complete)
        except BaseException:
            for task_id in written:
                self._forget_unless_recorded(task_id)
            raise

    def _forget_unless_recorded(self, task_id: str) -> None:
        """Remove the files of a task that was not recorded.

        An interrupt may come just after the commit, and then the task needs them.
        """
        with suppress(StoreError):
            if self._store.tasks.by_id(task_id) is not None:
                return
        environments.remove(self._directory, task_id)
        with suppress(OSError):
            self._payloads.delete(task_id)

    def _add_whole(self, process: NewProcess, connection: Any, task_key: int, task_id: str) -> None:
        """Add a task's process, with its whole environment beside the store."""
        own = {name: value for name, value in process.options.env.items() if value is not None}
        environment = {**os.environ, **own}
        last, self._last_whole = self._last_whole, (environment, task_id)
        same_as = last[1] if last[0] == environment else ""
        environments.put(self._directory, task_id, environment, same_as)
        replace(_without_values(process), is_whole=True).insert(connection, task_key)

    def _add_changed(
        self,
        process: NewProcess,
        changed: Mapping[str, str | None],
        connection: Any,
        task_key: int,
        task_id: str,
    ) -> None:
        """Add a task's process, with the changed values of its environment beside the store."""
        values = {name: value for name, value in changed.items() if value is not None}
        marks = {name: None if value is None else True for name, value in changed.items()}
        if values:
            environments.put(self._directory, task_id, values)
        replace(_without_values(process), environment=marks).insert(connection, task_key)

    def _add_parts(
        self,
        inputs: Prepared | None,
        modules: NewModules,
        connection: Any,
        task_key: int,
        task_id: str,
    ) -> None:
        """Add a task's inputs, and the modules that its supervisor does not know yet."""
        if modules is not None:
            note_modules(connection, *modules)
            self._noted = (modules[0], len(modules[1]))
        if inputs is not None:
            self._store.results.save(
                task_key, self._payloads.adopt(task_id, INPUTS, inputs, "what it was given")
            )

    def _new_modules(self, process: NewProcess, supervisor: SupervisorRecord) -> NewModules:
        """Return the supervisor and this process's modules, if it does not know them yet."""
        if process.script is not None or process.interpreter is not None:
            return None
        names = self._modules.names()
        return None if self._noted == (supervisor.key, len(names)) else (supervisor.key, [*names])

    @staticmethod
    def _changes(
        supervisor: SupervisorRecord, own: Mapping[str, str | None]
    ) -> dict[str, str | None]:
        """Return how the environment of a task launched now differs from its supervisor's."""
        given = _environments.get(supervisor.process, {})
        now = {**os.environ, **own}
        changed = {name: value for name, value in now.items() if given.get(name) != value}
        # The supervisor's interpreter may have set this variable itself (PEP 538).
        removed = {name: None for name in (*given, "LC_CTYPE") if name not in now}
        return {**changed, **removed}

    # The supervisor.

    def serve_pending(self) -> None:
        """Start a supervisor if tasks of this session need one and there is none."""
        session_id = self._session().id
        has_pending = self._store.processes.has_pending(session_id)
        if has_pending or self._store.elsewhere.are_left(session_id):
            self._ensure_supervisor()

    def _ensure_supervisor(self) -> SupervisorRecord:
        # A panel button may launch a task while a cell does.
        with self._one_at_a_time:
            if self._supervisor is None:
                self._supervisor = self._find_supervisor()
            known = self._supervisor
            if known is None or not known.process.may_be_alive:
                return self._start_supervisor()
            return known

    def _find_supervisor(self) -> SupervisorRecord | None:
        """Return the supervisor that this session started before the extension was reloaded."""
        session_id = self._session().id
        for supervisor in self._store.supervisors.unfinished():
            process = supervisor.process
            if supervisor.session == session_id and process.may_be_alive:
                return supervisor
        return None

    def _start_supervisor(self) -> SupervisorRecord:
        """Start a supervisor, and notice its end."""
        environment = dict(os.environ)
        process, self._supervisor = start_supervisor(self._store, self._session().id)
        _environments[self._supervisor.process] = own_environment(environment)
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
        """Wait for a supervisor's end, which is unexpected while its kernel is alive."""
        process.wait()
        if self._replaced < REPLACED_AT_MOST:
            self._replaced += 1
            self._on_loss()
            self._store.database.close_own()


def _without_values(process: NewProcess) -> NewProcess:
    """Return a process without the values of secrets among the variables that were asked for."""
    options = replace(process.options, env=without_values(process.options.env))
    return replace(process, options=options)
