"""Read whole tasks from the store, in portable form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ipytaskpersist.base.demands import COLUMNS as DEMANDS
from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, Progress, ResultRecord, TaskState
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.store.booking import gpu_ids_of
from ipytaskpersist.store.compression import Unreadable, unpack
from ipytaskpersist.store.file.database import Database
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
NOTEBOOK = {
    "uid": "uid",
    "notebook_path": "notebooks.path",
    "last_number": "last_number",
    "created_at": "created_at",
}
SESSION = (
    *("sessions.path", "has_path", "kernel_uuid", "front_end", "host", "pid", "process_start"),
    *("boot_id", "started_at", "heartbeat_at", "ended_at", "end_reason", "pid_namespace"),
)
TASK = {
    "id": "id",
    "number": "number",
    "session": "session_id",
    **{name: name for name in ("name", "kind", "runner", "state", "reason", "exit_code")},
    **{name: name for name in ("created_at", "started_at", "ended_at", "cancel_requested_at")},
    **{name: name for name in ("cleared_at", "cell_id", "execution_count", "source", "is_call")},
    **{name: name for name in ("max_output_bytes", "dropped_bytes", "provenance")},
    "rerun_of": "(SELECT id FROM tasks AS earlier WHERE earlier.key = tasks.rerun_of)",
    **{name: name for name in ("progress", "post_mortem", "group_name", "priority", "gpu_ids")},
    **{name: name for name in (*DEMANDS, "paused_s", "try_number", "retry", "schedule")},
}
PROCESS = (
    *("command", "script", "script_as", "directory", "pty", "timeout_s", "grace_s", "options"),
    *("pid", "process_start", "cpu_s", "peak_memory_bytes", "pid_namespace", "interpreter"),
)
NOTEBOOK_COLUMNS, TASK_COLUMNS = ", ".join(NOTEBOOK.values()), ", ".join(TASK.values())
SESSION_COLUMNS, PROCESS_COLUMNS = ", ".join(SESSION), ", ".join(PROCESS)


def session(database: Database, session_id: str) -> PortableSession:
    """Return a session of the store, with its notebook."""
    row = database.row(
        f"""SELECT {NOTEBOOK_COLUMNS}, {SESSION_COLUMNS} FROM sessions
        JOIN notebooks ON notebooks.key = notebook_key WHERE id = ?""",
        (session_id,),
    )
    notebook = dict(zip(NOTEBOOK, row, strict=False))
    notebook["path"] = notebook.pop("notebook_path")
    known = dict(zip(("path", *SESSION[1:]), row[len(NOTEBOOK) :], strict=True))
    known["has_path"] = bool(known["has_path"])
    return PortableSession(id=session_id, notebook=PortableNotebook(**notebook), **known)


def task(database: Database, key: int) -> PortableTask | None:
    """The task in this row, with what belongs to it but its outputs and results."""
    row = database.row(f"SELECT {TASK_COLUMNS} FROM tasks WHERE key = ?", (key,))
    if row is None:
        return None
    known = dict(zip(TASK, row, strict=True))
    provenance, rerun_of = json.loads(known["provenance"]), known.pop("rerun_of")
    known["provenance"] = {
        name: value for name, value in provenance.items() if name not in OF_THIS_STORE
    }
    if rerun_of is not None:
        known["provenance"]["rerun_of"] = rerun_of
    known["state"], known["is_call"] = TaskState(known["state"]), bool(known["is_call"])
    progress, post_mortem = known["progress"], known["post_mortem"]
    known["progress"] = None if progress is None else Progress(**json.loads(progress))
    known["post_mortem"] = None if post_mortem is None else json.loads(post_mortem)
    retries = Retries.from_json(known.pop("retry"))
    known["gpu_ids"] = gpu_ids_of(known["gpu_ids"])
    known["schedule"] = Schedule.from_json(known["schedule"])
    return PortableTask(
        **{name: value for name, value in known.items() if name not in (*DEMANDS, "group_name")},
        group=known["group_name"],
        demands=Demands(**{name: known[name] for name in DEMANDS}),
        # The environment is not exported.
        retries=None if retries is None else replace(retries, environment_of=None),
        tags=_tags(database, key),
        history=_history(database, key),
        process=_process(database, key),
    )


def _tags(database: Database, key: int) -> tuple[str, ...]:
    rows = database.rows("SELECT tag FROM tags WHERE task_key = ? ORDER BY tag", (key,))
    return tuple(tag for (tag,) in rows)


def _history(database: Database, key: int) -> tuple[PortableEvent, ...]:
    rows = database.rows(
        "SELECT state, reason, at FROM events WHERE task_key = ? ORDER BY key", (key,)
    )
    return tuple(PortableEvent(TaskState(state), reason, at) for state, reason, at in rows)


def _process(database: Database, key: int) -> PortableProcess | None:
    row = database.row(f"SELECT {PROCESS_COLUMNS} FROM processes WHERE task_key = ?", (key,))
    if row is None:
        return None
    known = dict(zip(PROCESS, row, strict=True))
    known |= {name: json.loads(known[name]) for name in ("command", "options")}
    known["pty"] = bool(known["pty"])
    known["directory"] = path_kept(known["directory"])
    return PortableProcess(**known)


def _portable(kind: OutputKind, at: float, compression: str | None, data: Any) -> PortableOutput:
    try:
        return PortableOutput(kind, at, unpack(compression, data))
    except Unreadable:
        kind = kind if kind in STREAM_KINDS else OutputKind.STDERR
        return PortableOutput(kind, at, LOST.format(len(data)).encode() + b"\n")


def outputs(database: Database, key: int) -> Iterator[PortableOutput]:
    """Yield a task's outputs in order, a few at a time."""
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
    """Return the records of a task's value, variables and inputs."""
    rows = database.rows(
        """SELECT name, path, size_bytes, digest, signature, text, problem FROM results
        WHERE task_key = ? ORDER BY key""",
        (key,),
    )
    return [ResultRecord(*row) for row in rows]
