"""Add whole tasks to the store, each in a transaction of its own, and none twice.

A task's output is first collected in a separate, unnamed file, which disappears with its
connection: the store is locked only while the task is added. A process that is killed leaves whole
tasks and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.private_files import new_private, remove
from ipytaskpersist.base.records import ResultRecord, TaskState
from ipytaskpersist.store.file.database import Database, storable
from ipytaskpersist.store.outputs import COPIED, NewOutput
from ipytaskpersist.store.portable import (
    OF_THIS_STORE,
    PortableEvent,
    PortableNotebook,
    PortableProcess,
    PortableSession,
    PortableTask,
)
from ipytaskpersist.store.processes import kept_path
from ipytaskpersist.store.sessions import short_id
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import ADD_TAG

GATHERED = f"""CREATE TABLE IF NOT EXISTS gathered.outputs
    (sequence INTEGER PRIMARY KEY, {", ".join(COPIED)})"""
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}-[1-9][0-9]{0,9}", re.ASCII)
"""Form of an id that is kept; it becomes a folder's name."""
ORIGINAL = "json_extract(provenance, '$.original_id')"
# The plus sign keeps SQLite from using the index of sessions: one has many tasks.
SAME = f"""+session_id = ?1 AND tasks.created_at = ?2
    AND (id IN (?3, ?4) OR {ORIGINAL} IN (?3, ?4))"""
SAME_WHENEVER = f"session_id = ?1 AND {ORIGINAL} = ?4 AND ?2 = ?2 AND ?3 = ?3"
IS_OWN = """(NOT EXISTS (SELECT 1 FROM tasks WHERE session_id = sessions.id)
    OR EXISTS (SELECT 1 FROM tasks WHERE session_id = sessions.id
        AND json_extract(provenance, '$.imported_at') IS NULL))"""
"""Whether a session is this store's own: it has a task that was not imported, or none."""

Complete = Callable[[str], Sequence[ResultRecord]]
"""Returns the results of a task once its id in this store is certain."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The location of a task in this store."""

    id: str
    notebook: str
    """Uid of its notebook."""
    is_new: bool
    """Whether it was added just now."""


class Importer:
    """Adds tasks to a store. Uses one connection, so it belongs to one thread."""

    def __init__(self, store: TaskStore, archives: Callable[[], Sequence[TaskStore]]) -> None:
        """`archives` returns the stores in which the store's own tasks may be archived."""
        self._database = store.database
        self._archives = archives
        self._is_gathering = False
        self._file = Path()

    # Collecting output.

    def forget_outputs(self) -> None:
        """Start to collect another task's outputs."""
        if not self._is_gathering:
            self._begin_to_gather()
        self._database.execute("DELETE FROM gathered.outputs")

    def _begin_to_gather(self) -> None:
        # Not a temporary table: pysqlite3 keeps those in memory, and an output may be larger.
        file = self._database.directory.root / f".import-{secrets.token_hex(4)}.part"
        self._detach()  # left by an import that the stop button interrupted
        with disk_errors.writing(f"what is imported to {file.parent}", file):
            new_private(file).close()
        try:
            self._database.execute("ATTACH ? AS gathered", (os.fsencode(file),))
            self._is_gathering = True
            self._database.execute("PRAGMA gathered.journal_mode = OFF")
            self._database.execute("PRAGMA gathered.synchronous = OFF")
            self._database.execute(GATHERED)
        finally:
            # The connection has it open, and no other process needs it. Windows refuses this.
            remove(file)
            self._file = file

    def close(self) -> None:
        """Close and remove the collected outputs."""
        if self._is_gathering:
            self._detach()
            remove(self._file)
            self._is_gathering = False

    def _detach(self) -> None:
        # Not the list itself: its file names may not be UTF-8.
        if self._database.row("SELECT 1 FROM pragma_database_list WHERE name = 'gathered'"):
            self._database.execute("DETACH gathered")

    def add_outputs(self, outputs: Sequence[NewOutput]) -> None:
        """Collect outputs, in order. Locks nothing."""
        names, marks = ", ".join(COPIED), ", ".join("?" * len(COPIED))
        rows = [output.as_row()[1:] for output in outputs]
        with self._database.transaction("BEGIN") as connection:
            connection.executemany(f"INSERT INTO gathered.outputs ({names}) VALUES ({marks})", rows)

    # Finding a task.

    def find(self, task: PortableTask) -> Placed | None:
        """Return where the task already is, in the store or in an archive."""
        found = _same(self._database, task)
        # Archives are searched after the store: a task is copied to its destination before it is
        # removed from its origin.
        archives = iter(self._archives() if found is None else ())
        while found is None and (archive := next(archives, None)):
            found = _same(archive.database, task)
        return found

    # Adding a task.

    def insert(
        self, session: PortableSession, task: PortableTask, at: float, complete: Complete
    ) -> Placed:
        """Add an ended task with its collected outputs to the store, unless it is there.

        `at` is the time of the import. Raises `ValueError` for what the store refuses.
        """
        assert task.state.is_final
        try:
            with self._database.transaction() as connection:
                found = self.find(task)
                if found is not None:
                    return found
                notebook_key = self._notebook_of_session(connection, session)
                number = self._number(connection, notebook_key, task)
                task_id = self._id(connection, task, number)
                provenance = _provenance(task, task_id, number, at)
                key = _insert(connection, task, task_id, number, notebook_key, provenance)
                _end(connection, key, task)
                _insert_results(connection, key, complete(task_id))
        except self._database.integrity_error as error:
            raise ValueError(f"the store refuses it ({error})") from error
        return Placed(task_id, _uid(self._database.connection, notebook_key), is_new=True)

    def _notebook_of_session(self, connection: Any, session: PortableSession) -> int:
        row = connection.execute(
            "SELECT notebook_key FROM sessions WHERE id = ?", (session.id,)
        ).fetchone()
        key = int(row[0]) if row else self._notebook(connection, session)
        connection.execute(
            "UPDATE notebooks SET last_number = max(last_number, ?) WHERE key = ?",
            (session.notebook.last_number, key),
        )
        if not row:
            _insert_session(connection, session, key)
        return key

    def _notebook(self, connection: Any, session: PortableSession) -> int:
        """Return the notebook with this uid, else of this path on its host, else a new one.

        Two notebooks of a file stay two, even if one was renamed to the other's earlier path.
        """
        notebook = session.notebook
        row = (
            connection.execute(
                "SELECT key FROM notebooks WHERE uid = ?", (notebook.uid,)
            ).fetchone()
            or connection.execute(
                f"""SELECT notebook_key FROM sessions WHERE path = ? AND host = ? AND has_path
                AND {IS_OWN} AND ? ORDER BY started_at DESC LIMIT 1""",
                (storable(session.path), storable(session.host), int(session.has_path)),
            ).fetchone()
        )
        return int(row[0]) if row else _insert_notebook(connection, notebook)

    def _number(self, connection: Any, notebook_key: int, task: PortableTask) -> int:
        """Return the task's own number if it is free, else the notebook's next."""
        number = task.number
        if not number or self._is_number_taken(connection, notebook_key, number):
            (last,) = connection.execute(
                "SELECT last_number FROM notebooks WHERE key = ?", (notebook_key,)
            ).fetchone()
            number = last + 1
        connection.execute(
            "UPDATE notebooks SET last_number = max(last_number, ?) WHERE key = ?",
            (number, notebook_key),
        )
        return number

    def _is_number_taken(self, connection: Any, notebook_key: int, number: int) -> bool:
        here = "SELECT 1 FROM tasks WHERE notebook_key = ? AND number = ?"
        if connection.execute(here, (notebook_key, number)).fetchone():
            return True
        uid = _uid(connection, notebook_key)
        there = """SELECT 1 FROM tasks JOIN notebooks ON notebooks.key = notebook_key
            WHERE uid = ? AND number = ?"""
        return any(archive.database.row(there, (uid, number)) for archive in self._archives())

    def _id(self, connection: Any, task: PortableTask, number: int) -> str:
        """Return the task's own id if it is valid and free, else a new one of the same form."""
        short = short_id(self._database, task.session)
        candidates = (each for each in _ids(task, short, number) if SAFE_ID.fullmatch(each))
        return next(each for each in candidates if not self._is_id_taken(connection, each))

    def _is_id_taken(self, connection: Any, task_id: str) -> bool:
        query = "SELECT 1 FROM tasks WHERE id = ?"
        if connection.execute(query, (task_id,)).fetchone():
            return True
        return any(archive.database.row(query, (task_id,)) for archive in self._archives())


def _same(database: Database, task: PortableTask) -> Placed | None:
    """Return where the same task is in one file."""
    original = task.provenance.get("original_id")
    # A task that never had an id of ours is known by its old one alone: its time may be a guess.
    condition = SAME if task.id else SAME_WHENEVER
    row = database.row(
        f"""SELECT id, uid FROM tasks JOIN notebooks ON notebooks.key = notebook_key
        WHERE {condition} LIMIT 1""",
        (
            task.session,
            task.created_at,
            task.id,
            storable(original) if isinstance(original, str) else task.id,
        ),
    )
    return None if row is None else Placed(str(row[0]), str(row[1]), is_new=False)


def _uid(connection: Any, notebook_key: int) -> str:
    query = "SELECT uid FROM notebooks WHERE key = ?"
    return str(connection.execute(query, (notebook_key,)).fetchone()[0])


def _ids(task: PortableTask, short_session: str, number: int) -> Iterator[str]:
    yield task.id
    yield f"{short_session}-{number}"
    for turn in range(2**32):
        digest = hashlib.sha256(f"{turn} {task.session}".encode("utf-8", "replace")).hexdigest()
        yield f"{digest[:8]}-{number}"


def _provenance(task: PortableTask, task_id: str, number: int, at: float) -> Mapping[str, Any]:
    """Return the task's provenance, with what has become of its id and number."""
    known: dict[str, Any] = {
        name: value for name, value in task.provenance.items() if name not in OF_THIS_STORE
    }
    known["imported_at"] = at
    if task.id and task.id != task_id:
        known.setdefault("original_id", task.id)
    if task.number and task.number != number:
        known.setdefault("original_number", task.number)
    return known


def _insert_notebook(connection: Any, notebook: PortableNotebook) -> int:
    cursor = connection.execute(
        "INSERT INTO notebooks (path, last_number, created_at, uid) VALUES (?, ?, ?, ?)",
        (
            storable(notebook.path),
            notebook.last_number,
            notebook.created_at,
            notebook.uid or uuid.uuid4().hex,
        ),
    )
    return int(cursor.lastrowid)


def _insert_row(connection: Any, table: str, row: Mapping[str, Any]) -> int:
    stored = [storable(value) if isinstance(value, str) else value for value in row.values()]
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    cursor = connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", stored)
    return int(cursor.lastrowid)


def _insert_session(connection: Any, session: PortableSession, notebook_key: int) -> None:
    row = {
        "id": session.id,
        "notebook_key": notebook_key,
        "path": session.path,
        "has_path": int(_keeps_path(connection, session, notebook_key)),
        "kernel_uuid": session.kernel_uuid,
        "front_end": session.front_end,
        "host": session.host,
        "pid": session.pid,
        "process_start": session.process_start,
        "boot_id": session.boot_id,
        "started_at": session.started_at,
        "heartbeat_at": session.heartbeat_at,
        "ended_at": session.ended_at,
        "end_reason": session.end_reason,
        "pid_namespace": session.pid_namespace,
    }
    _insert_row(connection, "sessions", row)


def _keeps_path(connection: Any, session: PortableSession, notebook_key: int) -> bool:
    """Return whether later sessions at its path belong to its notebook.

    Not if the path is that of a notebook used here: that notebook's kernels stay with it.
    """
    row = connection.execute(
        f"""SELECT 1 FROM sessions WHERE path = ? AND has_path AND notebook_key <> ?
        AND {IS_OWN} LIMIT 1""",
        (storable(session.path), notebook_key),
    ).fetchone()
    return session.has_path and row is None


def _insert(
    connection: Any,
    task: PortableTask,
    task_id: str,
    number: int,
    notebook_key: int,
    provenance: Mapping[str, Any],
) -> int:
    """Insert the task's row, pending as every new task, with all that belongs to it."""
    row = {
        "id": task_id,
        "notebook_key": notebook_key,
        "number": number,
        "session_id": task.session,
        "name": task.name,
        "kind": task.kind,
        "runner": task.runner,
        "state": TaskState.PENDING.value,
        "created_at": task.created_at,
        "cancel_requested_at": task.cancel_requested_at,
        "cleared_at": task.cleared_at,
        "cell_id": task.cell_id,
        "execution_count": task.execution_count,
        "source": task.source,
        "is_call": int(task.is_call),
        "max_output_bytes": task.max_output_bytes,
        "dropped_bytes": task.dropped_bytes,
        "progress": None if task.progress is None else json.dumps(task.progress.as_json()),
        "post_mortem": None if task.post_mortem is None else json.dumps(task.post_mortem),
        "provenance": json.dumps(provenance),
        "rerun_of": _earlier(connection, task),
        "group_name": task.group,
        "priority": task.priority,
        "paused_s": task.paused_s,
        "gpu_ids": json.dumps([*task.gpu_ids]) if task.gpu_ids else None,
        "try_number": task.try_number,
        "retry": None if task.retries is None else task.retries.as_json(),
        "schedule": None if task.schedule is None else task.schedule.as_json(),
        **task.demands.columns,
    }
    key = _insert_row(connection, "tasks", row)
    for tag in task.tags:
        connection.execute(ADD_TAG, (key, storable(tag)))
    if task.process is not None:
        _insert_process(connection, key, task.process)
    names = ", ".join(COPIED)
    connection.execute(
        f"""INSERT INTO main.outputs (task_key, {names})
        SELECT ?, {names} FROM gathered.outputs ORDER BY sequence""",
        (key,),
    )
    return key


def _earlier(connection: Any, task: PortableTask) -> int | None:
    """Return the row of the task that this one runs again."""
    earlier = task.provenance.get("rerun_of")
    row = connection.execute("SELECT key FROM tasks WHERE id = ?", (earlier,)).fetchone()
    return int(row[0]) if row else None


def _insert_process(connection: Any, key: int, process: PortableProcess) -> None:
    row = {
        "task_key": key,
        "command": json.dumps(list(process.command)),
        "script": process.script,
        "script_as": process.script_as,
        "directory": kept_path(process.directory),
        "environment": "{}",
        "pty": int(process.pty),
        "timeout_s": process.timeout_s,
        "grace_s": process.grace_s,
        "options": json.dumps(dict(process.options)),
        "pid": process.pid,
        "process_start": process.process_start,
        "cpu_s": process.cpu_s,
        "peak_memory_bytes": process.peak_memory_bytes,
        "pid_namespace": process.pid_namespace,
        "interpreter": process.interpreter,
    }
    _insert_row(connection, "processes", row)


def _end(connection: Any, key: int, task: PortableTask) -> None:
    """Take the task through its states, as the triggers require, and set its own history."""
    if task.started_at is not None:
        connection.execute(
            "UPDATE tasks SET state = 'running', started_at = ? WHERE key = ?",
            (task.started_at, key),
        )
    connection.execute(
        "UPDATE tasks SET state = ?, reason = ?, exit_code = ?, ended_at = ? WHERE key = ?",
        (task.state.value, storable(task.reason), task.exit_code, task.ended_at, key),
    )
    if task.history:
        _write_history(connection, key, task.history)


def _write_history(connection: Any, key: int, history: Sequence[PortableEvent]) -> None:
    connection.execute("DELETE FROM events WHERE task_key = ?", (key,))
    connection.executemany(
        "INSERT INTO events (task_key, state, reason, at) VALUES (?, ?, ?, ?)",
        [(key, event.state.value, storable(event.reason), event.at) for event in history],
    )


def _insert_results(connection: Any, key: int, results: Sequence[ResultRecord]) -> None:
    for result in results:
        row = {
            "task_key": key,
            "name": result.name,
            "path": result.path,
            "size_bytes": result.size_bytes,
            "digest": result.digest,
            "signature": result.signature,
            "text": result.text,
            "problem": result.problem,
        }
        _insert_row(connection, "results", row)
