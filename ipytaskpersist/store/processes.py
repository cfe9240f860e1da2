"""Task processes and their supervisors in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.process_identity import ProcessIdentity, pid_namespace
from ipytaskpersist.base.records import Options, ProcessRecord, SupervisorRecord, from_timestamp
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.base.usage import Usage
from ipytaskpersist.store.booking import Machine, gpu_ids_of, lend, note_lacks
from ipytaskpersist.store.claiming import ready
from ipytaskpersist.store.file.database import Database, storable
from ipytaskpersist.store.occurrences import add_next_run
from ipytaskpersist.store.queue import set_running, settle, submit
from ipytaskpersist.store.tasks import INTERRUPT, IS_WHOLE
from ipytaskpersist.store.tries import add_try, tries_again

PROCESS_FIELDS = {
    "task_key": "task_key",
    "task_id": "tasks.id",
    "kind": "tasks.kind",
    "command": "command",
    "script": "script",
    "script_as": "script_as",
    "directory": "directory",
    "environment": "environment",
    "pty": "pty",
    "timeout_s": "timeout_s",
    "grace_s": "grace_s",
    "options": "options",
    "supervisor_key": "supervisor_key",
    "pid": "pid",
    "process_start": "process_start",
    "cpu_s": "cpu_s",
    "peak_memory_bytes": "peak_memory_bytes",
    "max_output_bytes": "tasks.max_output_bytes",
    "pid_namespace": "pid_namespace",
    "interpreter": "interpreter",
    "memory_bytes": "tasks.memory_bytes",
    "gpu_ids": "tasks.gpu_ids",
    "checkpoint_place": "tasks.checkpoint_place",
    "retries": "tasks.retry",
    "schedule": "tasks.schedule",
    "place": "runs_at",
    "spool_offset": "spool_offset",
    "far": "far",
    "is_whole": IS_WHOLE,
}
"""Where the fields of a `ProcessRecord` come from."""
PROCESS = ", ".join(PROCESS_FIELDS.values())
FROM = "FROM processes JOIN tasks ON tasks.key = task_key"
SUPERVISOR_FIELDS = {
    "key": "key",
    "session": "session_id",
    **{name: name for name in ("host", "boot_id", "pid", "process_start", "started_at")},
    **{name: name for name in ("heartbeat_at", "ended_at", "end_reason", "pid_namespace")},
}
"""Where the fields of a `SupervisorRecord` come from."""
SUPERVISOR = ", ".join(SUPERVISOR_FIELDS.values())
SUPERVISOR_TIMES = ("started_at", "heartbeat_at", "ended_at")


@dataclass(frozen=True, slots=True)
class NewProcess:
    """A task's process before it has started. The fields are `ProcessRecord`'s."""

    command: Sequence[str]
    directory: str
    grace_s: float
    options: Options
    environment: Mapping[str, str | bool | None] = field(default_factory=dict)
    script: str | None = None
    script_as: str | None = None
    pty: bool = False
    interpreter: str | None = None
    place: Mapping[str, Any] | None = None
    is_whole: bool = False

    def insert(self, connection: Any, task_key: int) -> None:
        """Add it to a task, in the caller's transaction."""
        row = {
            "task_key": task_key,
            "command": json.dumps(list(self.command)),
            "script": storable(self.script),
            "script_as": self.script_as,
            "directory": kept_path(self.directory),
            "environment": json.dumps(dict(self.environment)),
            "pty": int(self.pty),
            "timeout_s": self.options.timeout_s,
            "grace_s": self.grace_s,
            "options": self.options.as_json(),
            "interpreter": self.interpreter,
            "runs_at": None if self.place is None else json.dumps(dict(self.place)),
            "whole_environment": int(self.is_whole),
        }
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO processes ({names}) VALUES ({marks})", [*row.values()])


def note_modules(connection: Any, supervisor_key: int, modules: Sequence[str]) -> None:
    """Record which modules a supervisor's kernel has imported, in the caller's transaction."""
    connection.execute(
        "UPDATE supervisors SET modules = ? WHERE key = ?",
        (json.dumps(list(modules)), supervisor_key),
    )


def kept_path(path: str) -> str:
    """Return a path as the store keeps it: as a JSON string if it is not UTF-8."""
    is_plain = storable(path) == path and not path.startswith('"')
    return path if is_plain else json.dumps(path)


def path_kept(text: str) -> str:
    """Return the path that `kept_path` converted."""
    return str(json.loads(text)) if text.startswith('"') else text


def record_of(row: Any) -> ProcessRecord:
    """Return the record of a row with the columns of `PROCESS`."""
    known = dict(zip(PROCESS_FIELDS, row, strict=True))
    known["directory"] = path_kept(known["directory"])
    known |= {name: json.loads(known[name]) for name in ("command", "environment")}
    known["pty"] = bool(known["pty"])
    known["options"] = Options.from_json(known["options"])
    known["gpu_ids"] = gpu_ids_of(known["gpu_ids"])
    known["retries"] = Retries.from_json(known["retries"])
    known["schedule"] = Schedule.from_json(known["schedule"])
    known["place"] = None if known["place"] is None else json.loads(known["place"])
    known["far"] = json.loads(known["far"] or "{}")
    known["is_whole"] = bool(known["is_whole"])
    return ProcessRecord(**known)


def _supervisor(row: Any) -> SupervisorRecord:
    known = dict(zip(SUPERVISOR_FIELDS, row, strict=True))
    times = {name: from_timestamp(known[name]) for name in SUPERVISOR_TIMES}
    return SupervisorRecord(**known | times)


LET_GO = """UPDATE processes SET supervisor_key = NULL WHERE supervisor_key = ?
    AND runs_at IS NOT NULL AND (SELECT submitted_at IS NOT NULL
        AND state IN ('pending', 'running') FROM tasks WHERE key = task_key)"""
"""Leave a supervisor's live tasks at places to another supervisor."""


class Processes:
    """The rows of `processes`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, task_key: int) -> ProcessRecord | None:
        """Return the process of a task; None for a task in a thread."""
        row = self._database.row(f"SELECT {PROCESS} {FROM} WHERE task_key = ?", (task_key,))
        return None if row is None else self._database.record(record_of, row)

    def claim(
        self,
        session_id: str,
        supervisor_key: int,
        at: float,
        limit: int,
        machine: Machine | None = None,
    ) -> list[ProcessRecord]:
        """Claim the session's next tasks for this supervisor, and set them running.

        `machine` is what the supervisor has just seen of its machine; without it, no task starts
        that asks for a part of it. What is known of the tasks' environments is kept no longer than
        needed: until the last try, and while a schedule goes on.
        """
        asked_at = time.monotonic()
        with self._database.transaction() as connection:
            # Another claim may have been waited for, and a task that ended before it.
            at += time.monotonic() - asked_at
            settle(connection, session_id, at)
            chosen = ready(connection, session_id, "process", limit, machine)
            keys = chosen.keys
            note_lacks(connection, chosen.lacks, at)
            for key, gpu_ids in chosen.gpu_ids.items():
                lend(connection, key, gpu_ids)
            marks = ", ".join("?" * len(keys))
            rows = connection.execute(
                f"SELECT {PROCESS} {FROM} WHERE task_key IN ({marks})", keys
            ).fetchall()
            # Here, because unreadable tasks must not be recorded as running.
            claimed = [self._database.record(record_of, row) for row in rows]
            claimed.sort(key=lambda process: keys.index(process.task_key))
            # A claim is a sign of life: there may have been none for a long time before.
            connection.execute(
                "UPDATE supervisors SET heartbeat_at = ? WHERE key = ?", (at, supervisor_key)
            )
            for process in claimed:
                key = process.task_key
                if process.place is None:
                    set_running(connection, key, at)
                else:
                    submit(connection, key, at)
                connection.execute(
                    """UPDATE processes SET supervisor_key = ?,
                        environment = iif(?, environment, '{}')
                    WHERE task_key = ?""",
                    (supervisor_key, process.is_whole, key),
                )
                add_next_run(connection, key, at)
        return claimed

    def has_pending(self, session_id: str) -> bool:
        """Return whether a task of the session waits for its supervisor."""
        row = self._database.row(
            """SELECT 1 FROM tasks INDEXED BY tasks_pending
            WHERE session_id = ? AND state = 'pending' AND runner = 'process' LIMIT 1""",
            (session_id,),
        )
        return row is not None

    def started(
        self, task_key: int, pid: int, process_start: str | None, interpreter: str | None
    ) -> None:
        """Record a task's process, which is in the caller's PID namespace."""
        self._database.write(
            """UPDATE processes SET pid = ?, process_start = ?, pid_namespace = ?, interpreter = ?
            WHERE task_key = ?""",
            (pid, process_start, pid_namespace(), interpreter, task_key),
        )

    def interpreters(self, count: int) -> list[str]:
        """Return in which interpreters the last Python tasks have begun."""
        rows = self._database.rows(
            """SELECT interpreter FROM processes
            WHERE pid IS NOT NULL AND interpreter IS NOT NULL ORDER BY task_key DESC LIMIT ?""",
            (count,),
        )
        return [interpreter for (interpreter,) in rows]

    def used(self, task_key: int, cpu_s: float, peak_memory_bytes: int) -> None:
        """Record the resources that a task's process has used."""
        self._database.write(
            "UPDATE processes SET cpu_s = ?, peak_memory_bytes = ? WHERE task_key = ?",
            (cpu_s, peak_memory_bytes, task_key),
        )

    def note_usage(self, texts: Mapping[int, str]) -> None:
        """Record what tasks have used over time (`Usage.as_stored`), by the tasks' rows."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE processes SET usage = ? WHERE task_key = ?",
                [(text, key) for key, text in texts.items()],
            )

    def usage(self, task_key: int) -> Usage | None:
        """Return what a task has used over time; None when that is not known."""
        row = self._database.row("SELECT usage FROM processes WHERE task_key = ?", (task_key,))
        return None if row is None or row[0] is None else Usage.from_stored(row[0])

    def last_peak(self, notebook_key: int, name: str) -> int | None:
        """Return the peak memory of the last task with this name in a notebook, in bytes.

        None if none is known.
        """
        row = self._database.row(
            f"""SELECT peak_memory_bytes {FROM} WHERE notebook_key = ? AND name = ?
            AND peak_memory_bytes > 0 ORDER BY task_key DESC LIMIT 1""",
            (notebook_key, name),
        )
        return None if row is None else int(row[0])

    def live_of(self, supervisor_key: int) -> list[ProcessRecord]:
        """Return the processes of a supervisor's live tasks on this machine."""
        rows = self._database.rows(
            f"""SELECT {PROCESS} {FROM}
            WHERE supervisor_key = ? AND state IN ('pending', 'running')
            AND runs_at IS NULL ORDER BY task_key""",
            (supervisor_key,),
        )
        return [self._database.record(record_of, row) for row in rows]

    def has_live(self, supervisor_key: int) -> bool:
        """Return whether a supervisor has a live task."""
        row = self._database.row(
            f"""SELECT 1 {FROM} WHERE supervisor_key = ? AND state IN ('pending', 'running')
            LIMIT 1""",
            (supervisor_key,),
        )
        return row is not None

    def interrupt(
        self,
        supervisor_key: int,
        reason: str,
        at: float,
        *,
        except_tasks: Collection[str] = (),
        declared_dead: str | None = None,
    ) -> int:
        """Interrupt every live task of a supervisor, except those with these ids.

        Those at places go on there: they are left to another supervisor.

        `declared_dead` is `TaskRecord`'s. A task that is only presumed dead may still run, so it is
        not tried again. Returns how many there were.
        """
        left = json.dumps([*except_tasks])
        with self._database.transaction() as connection:
            connection.execute(LET_GO, (supervisor_key,))
            again = {}
            if declared_dead != "presumed":
                again = self._try_again(connection, supervisor_key, reason, left)
            cursor = connection.execute(
                f"""{INTERRUPT}
                AND key IN (SELECT task_key FROM processes WHERE supervisor_key = ?4)
                AND id NOT IN (SELECT value FROM json_each(?5))""",
                (reason, declared_dead, at, supervisor_key, left),
            )
            for key, number in again.items():
                connection.execute(
                    "UPDATE tasks SET reason = reason || '; ' || ? WHERE key = ?",
                    (tries_again(number), key),
                )
        return int(cursor.rowcount)

    @staticmethod
    def _try_again(connection: Any, supervisor_key: int, reason: str, left: str) -> dict[int, int]:
        """Add the next tries of a supervisor's tasks. Return their numbers by the tasks' keys."""
        keys = connection.execute(
            f"""SELECT task_key {FROM} WHERE supervisor_key = ? AND state = 'running'
            AND retry IS NOT NULL AND tasks.id NOT IN (SELECT value FROM json_each(?))""",
            (supervisor_key, left),
        ).fetchall()
        added = {key: add_try(connection, key, "interrupted", reason, None) for (key,) in keys}
        return {key: number for key, number in added.items() if number is not None}

    def tried_again(self, supervisor_key: int) -> int:
        """Return how many of a supervisor's interrupted tasks are tried again."""
        row = self._database.row(
            f"""SELECT count(*) {FROM} WHERE supervisor_key = ? AND state = 'interrupted'
            AND EXISTS (SELECT 1 FROM tasks AS later WHERE later.rerun_of = task_key
                AND later.try_number > tasks.try_number)""",
            (supervisor_key,),
        )
        return int(row[0])

    def may_be_adopted(self, session_id: str) -> bool:
        """Return whether tasks of a session wait that any supervisor can start."""
        row = self._database.row(
            f"""SELECT 1 FROM tasks INDEXED BY tasks_pending
            JOIN processes ON task_key = tasks.key WHERE session_id = ?
            AND state = 'pending' AND runner = 'process' AND {IS_WHOLE} LIMIT 1""",
            (session_id,),
        )
        return row is not None


class Supervisors:
    """The rows of `supervisors`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, session_id: str, process: ProcessIdentity) -> SupervisorRecord:
        """Record that a process supervises the session's tasks from now on."""
        now = time.time()
        cursor = self._database.write(
            """INSERT INTO supervisors
                (session_id, host, boot_id, pid, process_start, started_at, heartbeat_at,
                pid_namespace)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                *(session_id, process.host, process.boot_id, process.pid, process.start),
                *(now, now, process.namespace),
            ),
        )
        found = self.get(int(cursor.lastrowid))
        assert found is not None, "the supervisor was recorded by the statement above"
        return found

    def get(self, key: int) -> SupervisorRecord | None:
        """Return the supervisor in this row."""
        row = self._database.row(f"SELECT {SUPERVISOR} FROM supervisors WHERE key = ?", (key,))
        return None if row is None else self._database.record(_supervisor, row)

    def of_process(self, session_id: str, process: ProcessIdentity) -> SupervisorRecord | None:
        """Return the record of exactly this process as the session's supervisor."""
        row = self._database.row(
            f"""SELECT {SUPERVISOR} FROM supervisors WHERE session_id = ? AND pid = ?
            AND process_start = ? AND boot_id = ? AND pid_namespace IS ? AND ended_at IS NULL""",
            (session_id, process.pid, process.start, process.boot_id, process.namespace),
        )
        return None if row is None else self._database.record(_supervisor, row)

    def modules(self, key: int) -> list[str]:
        """Return the modules that the supervisor's kernel has imported from its environment."""
        row = self._database.row("SELECT modules FROM supervisors WHERE key = ?", (key,))
        return json.loads(row[0]) if row is not None and row[0] is not None else []

    def unfinished(self) -> list[SupervisorRecord]:
        """Return the supervisors whose end was not recorded."""
        rows = self._database.rows(f"SELECT {SUPERVISOR} FROM supervisors WHERE ended_at IS NULL")
        return [self._database.record(_supervisor, row) for row in rows]

    def orphaned_sessions(self) -> Sequence[str]:
        """Return the sessions without a supervisor that have tasks for one.

        Those are pending process tasks, and live ones at places. That of the task that was launched
        first comes first.
        """
        rows = self._database.rows(
            """SELECT session_id FROM tasks
            WHERE (state = 'pending' AND runner = 'process'
                OR state = 'running' AND submitted_at IS NOT NULL)
            AND session_id NOT IN (SELECT session_id FROM supervisors WHERE ended_at IS NULL)
            GROUP BY session_id ORDER BY min(key)"""
        )
        return [session_id for (session_id,) in rows]

    def heartbeat(self, key: int) -> None:
        """Record that the supervisor is alive now."""
        self._database.write(
            "UPDATE supervisors SET heartbeat_at = ? WHERE key = ?", (time.time(), key)
        )

    def end(self, key: int, reason: str, at: float | None = None) -> None:
        """Record how the supervisor ended, unless that is already known."""
        self._database.write(
            """UPDATE supervisors SET ended_at = ?, end_reason = ?
            WHERE key = ? AND ended_at IS NULL""",
            (time.time() if at is None else at, reason, key),
        )

    def retire(self, record: SupervisorRecord) -> bool:
        """End the supervisor unless a task waits for it. Return whether it has ended.

        In one transaction, so that a concurrently launched task is either seen here or sees the
        end.
        """
        with self._database.transaction() as connection:
            waiting = connection.execute(
                """SELECT 1 FROM tasks INDEXED BY tasks_pending
                WHERE session_id = ? AND state = 'pending' AND runner = 'process' LIMIT 1""",
                (record.session,),
            ).fetchone()
            if waiting is None:
                connection.execute(
                    """UPDATE supervisors SET ended_at = ?, end_reason = 'had nothing left to do'
                    WHERE key = ? AND ended_at IS NULL""",
                    (time.time(), record.key),
                )
        return waiting is None
