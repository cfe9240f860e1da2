"""Read whole tasks as they may leave the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ipytaskpersist.records import (
    STREAM_KINDS,
    OutputKind,
    Progress,
    ResultRecord,
    TaskState,
)
from ipytaskpersist.store.chunks import Unreadable, unpack
from ipytaskpersist.store.database import Database
from ipytaskpersist.store.outputs import LOST
from ipytaskpersist.store.portable import (
    OF_THIS_STORE,
    PortableEvent,
    PortableNotebook,
    PortableOutput,
    PortableProcess,
    PortableSession,
    PortableTask,
)
from ipytaskpersist.store.processes import path_kept

READ_AT_ONCE = 16
SESSION = """sessions.path, has_path, kernel_uuid, front_end, host, pid, process_start, boot_id,
    started_at, heartbeat_at, ended_at, end_reason, pid_namespace"""
TASK = """id, number, session_id, name, kind, runner, state, reason, exit_code, created_at,
    started_at, ended_at, cancel_requested_at, cleared_at, cell_id, execution_count, source,
    is_call, max_output_bytes, dropped_bytes"""
PROCESS = """command, script, script_as, directory, pty, timeout_s, grace_s, options, pid,
    process_start, cpu_s, peak_memory_bytes, pid_namespace"""


def session(database: Database, session_id: str) -> PortableSession:
    """A session that the store has, with its notebook."""
    row = database.row(
        f"""SELECT uid, notebooks.path, last_number, created_at, {SESSION} FROM sessions
        JOIN notebooks ON notebooks.key = notebook_key WHERE id = ?""",
        (session_id,),
    )
    fields: list[Any] = list(row[4:])
    fields[1] = bool(fields[1])
    return PortableSession(session_id, PortableNotebook(*row[:4]), *fields)


def task(database: Database, key: int) -> PortableTask | None:
    """The task in this row, with what belongs to it but its outputs and results."""
    row = database.row(
        f"""SELECT {TASK}, provenance, (SELECT id FROM tasks AS earlier
            WHERE earlier.key = tasks.rerun_of), progress, post_mortem
        FROM tasks WHERE key = ?""",
        (key,),
    )
    if row is None:
        return None
    fields: list[Any] = list(row[:-4])
    provenance, rerun_of, progress, post_mortem = row[-4:]
    fields[6], fields[17] = TaskState(fields[6]), bool(fields[17])
    known = {
        name: value for name, value in json.loads(provenance).items() if name not in OF_THIS_STORE
    }
    if rerun_of is not None:
        known["rerun_of"] = rerun_of
    fields += [
        known,
        None if progress is None else Progress(**json.loads(progress)),
        None if post_mortem is None else json.loads(post_mortem),
    ]
    fields += [_tags(database, key), _history(database, key), _process(database, key)]
    return PortableTask(*fields)


def _tags(database: Database, key: int) -> tuple[str, ...]:
    rows = database.rows("SELECT tag FROM tags WHERE task_key = ? ORDER BY tag", (key,))
    return tuple(tag for (tag,) in rows)


def _history(database: Database, key: int) -> tuple[PortableEvent, ...]:
    rows = database.rows(
        "SELECT state, reason, at FROM events WHERE task_key = ? ORDER BY key", (key,)
    )
    return tuple(PortableEvent(TaskState(state), reason, at) for state, reason, at in rows)


def _process(database: Database, key: int) -> PortableProcess | None:
    row = database.row(f"SELECT {PROCESS} FROM processes WHERE task_key = ?", (key,))
    if row is None:
        return None
    fields = list(row)
    fields[0], fields[4], fields[7] = json.loads(fields[0]), bool(fields[4]), json.loads(fields[7])
    fields[3] = path_kept(fields[3])
    return PortableProcess(*fields)


def _portable(kind: OutputKind, at: float, compression: str | None, data: Any) -> PortableOutput:
    try:
        return PortableOutput(kind, at, unpack(compression, data))
    except Unreadable:
        kind = kind if kind in STREAM_KINDS else OutputKind.STDERR
        return PortableOutput(kind, at, LOST.format(len(data)).encode() + b"\n")


def outputs(database: Database, key: int) -> Iterator[PortableOutput]:
    """What a task printed and displayed, in its order, a few pieces at a time."""
    after = 0
    while True:
        rows = database.rows(
            """SELECT sequence, kind, at, compression, data
            FROM outputs INDEXED BY outputs_task_order
            WHERE task_key = ? AND sequence > ? ORDER BY sequence LIMIT ?""",
            (key, after, READ_AT_ONCE),
        )
        for _sequence, kind, at, compression, data in rows:
            yield _portable(OutputKind(kind), at, compression, data)
        if len(rows) < READ_AT_ONCE:
            return
        after = rows[-1][0]


def results(database: Database, key: int) -> list[ResultRecord]:
    """What is known of a task's value, its variables and what it was given."""
    rows = database.rows(
        """SELECT name, path, size_bytes, digest, signature, text, problem FROM results
        WHERE task_key = ? ORDER BY key""",
        (key,),
    )
    return [ResultRecord(*row) for row in rows]
