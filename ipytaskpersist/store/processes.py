"""The processes of tasks, and the supervisors that own them, in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.identity import ProcessIdentity, pid_namespace
from ipytaskpersist.records import Options, ProcessRecord, SupervisorRecord, from_timestamp
from ipytaskpersist.store.database import Database, storable

PROCESS = """task_key, tasks.id, tasks.kind, command, script, script_as, directory, environment,
    pty, timeout_s, grace_s, options, supervisor_key, pid, process_start, cpu_s,
    peak_memory_bytes, tasks.max_output_bytes, pid_namespace"""
FROM = "FROM processes JOIN tasks ON tasks.key = task_key"
SUPERVISOR = """key, session_id, host, boot_id, pid, process_start, started_at, heartbeat_at,
    ended_at, end_reason, pid_namespace"""


@dataclass(frozen=True, slots=True)
class NewProcess:
    """What is known of a task's process before it has begun. The fields are `ProcessRecord`'s."""

    command: Sequence[str]
    directory: str
    grace_s: float
    options: Options
    environment: Mapping[str, str | bool | None] = field(default_factory=dict)
    script: str | None = None
    script_as: str | None = None
    pty: bool = False

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
        }
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO processes ({names}) VALUES ({marks})", [*row.values()])


def kept_path(path: str) -> str:
    """A path as the store keeps it: one that is not UTF-8 as a string of JSON."""
    is_plain = storable(path) == path and not path.startswith('"')
    return path if is_plain else json.dumps(path)


def path_kept(text: str) -> str:
    """The path that the store has kept so."""
    return str(json.loads(text)) if text.startswith('"') else text


def _process(row: Any) -> ProcessRecord:
    fields = list(row)
    fields[6] = path_kept(fields[6])
    for place in (3, 7):
        fields[place] = json.loads(fields[place])
    fields[8] = bool(fields[8])
    fields[11] = Options.from_json(fields[11])
    return ProcessRecord(*fields)


def _supervisor(row: Any) -> SupervisorRecord:
    times: list[Any] = [from_timestamp(seconds) for seconds in row[6:9]]
    fields: list[Any] = [*row[:6], *times, *row[9:]]
    return SupervisorRecord(*fields)


class Processes:
    """The rows of `processes`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, task_key: int) -> ProcessRecord | None:
        """The process of a task, or None for a task in a thread."""
        row = self._database.row(f"SELECT {PROCESS} {FROM} WHERE task_key = ?", (task_key,))
        return None if row is None else self._database.record(_process, row)

    def claim(
        self, session_id: str, supervisor_key: int, at: float, limit: int
    ) -> list[ProcessRecord]:
        """Take the session's first pending tasks: they are running from now on, and this
        supervisor's.

        How their environment differs is not kept any longer than it is needed.
        """
        with self._database.transaction() as connection:
            keys = [
                key
                for (key,) in connection.execute(
                    """SELECT key FROM tasks INDEXED BY tasks_pending WHERE session_id = ?
                    AND state = 'pending' AND runner = 'process'
                    AND cancel_requested_at IS NULL ORDER BY key LIMIT ?""",
                    (session_id, limit),
                )
            ]
            marks = ", ".join("?" * len(keys))
            rows = connection.execute(
                f"SELECT {PROCESS} {FROM} WHERE task_key IN ({marks}) ORDER BY task_key",
                keys,
            ).fetchall()
            # Here, because tasks that cannot be read must not be said to run.
            claimed = [self._database.record(_process, row) for row in rows]
            # To claim a task is a sign of life: before, there may have been none for a long time.
            connection.execute(
                "UPDATE supervisors SET heartbeat_at = ? WHERE key = ?", (at, supervisor_key)
            )
            for key in keys:
                connection.execute(
                    "UPDATE tasks SET state = 'running', started_at = ? WHERE key = ?", (at, key)
                )
                connection.execute(
                    """UPDATE processes SET supervisor_key = ?, environment = '{}'
                    WHERE task_key = ?""",
                    (supervisor_key, key),
                )
        return claimed

    def has_pending(self, session_id: str) -> bool:
        """Whether a task of the session waits for its supervisor."""
        row = self._database.row(
            """SELECT 1 FROM tasks INDEXED BY tasks_pending
            WHERE session_id = ? AND state = 'pending' AND runner = 'process' LIMIT 1""",
            (session_id,),
        )
        return row is not None

    def started(self, task_key: int, pid: int, process_start: str | None) -> None:
        """Note which process a task is. It is in the PID namespace of the one that asks."""
        self._database.write(
            """UPDATE processes SET pid = ?, process_start = ?, pid_namespace = ?
            WHERE task_key = ?""",
            (pid, process_start, pid_namespace(), task_key),
        )

    def used(self, task_key: int, cpu_s: float, peak_memory_bytes: int) -> None:
        """Note what a task's process has used."""
        self._database.write(
            "UPDATE processes SET cpu_s = ?, peak_memory_bytes = ? WHERE task_key = ?",
            (cpu_s, peak_memory_bytes, task_key),
        )

    def live_of(self, supervisor_key: int) -> list[ProcessRecord]:
        """The processes of a supervisor's tasks that have not ended."""
        rows = self._database.rows(
            f"""SELECT {PROCESS} {FROM}
            WHERE supervisor_key = ? AND state IN ('pending', 'running') ORDER BY task_key""",
            (supervisor_key,),
        )
        return [self._database.record(_process, row) for row in rows]

    def has_live(self, supervisor_key: int) -> bool:
        """Whether a supervisor has a task that has not ended."""
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
        """Every live task of a supervisor to interrupted, but for those with these ids.

        `declared_dead` is `TaskRecord`'s. Returns how many.
        """
        cursor = self._database.write(
            """UPDATE tasks SET state = 'interrupted', reason = ?1, declared_dead = ?5,
                ended_at = max(?2, coalesce(started_at, created_at), coalesce(
                    (SELECT at FROM outputs WHERE task_key = tasks.key
                     ORDER BY sequence DESC LIMIT 1), 0))
            WHERE key IN (SELECT task_key FROM processes WHERE supervisor_key = ?3)
            AND state IN ('pending', 'running')
            AND id NOT IN (SELECT value FROM json_each(?4))""",
            (reason, at, supervisor_key, json.dumps([*except_tasks]), declared_dead),
        )
        return int(cursor.rowcount)


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
        """The supervisor in this row."""
        row = self._database.row(f"SELECT {SUPERVISOR} FROM supervisors WHERE key = ?", (key,))
        return None if row is None else self._database.record(_supervisor, row)

    def of_process(self, session_id: str, process: ProcessIdentity) -> SupervisorRecord | None:
        """What the store knows of this very process as the session's supervisor."""
        row = self._database.row(
            f"""SELECT {SUPERVISOR} FROM supervisors WHERE session_id = ? AND pid = ?
            AND process_start = ? AND boot_id = ? AND pid_namespace IS ? AND ended_at IS NULL""",
            (session_id, process.pid, process.start, process.boot_id, process.namespace),
        )
        return None if row is None else self._database.record(_supervisor, row)

    def unfinished(self) -> list[SupervisorRecord]:
        """The supervisors of which nobody has said how they ended."""
        rows = self._database.rows(f"SELECT {SUPERVISOR} FROM supervisors WHERE ended_at IS NULL")
        return [self._database.record(_supervisor, row) for row in rows]

    def orphaned_sessions(self) -> Sequence[str]:
        """The sessions with pending process tasks and without a supervisor."""
        rows = self._database.rows(
            """SELECT DISTINCT session_id FROM tasks
            WHERE state = 'pending' AND runner = 'process' AND session_id NOT IN
            (SELECT session_id FROM supervisors WHERE ended_at IS NULL)"""
        )
        return [session_id for (session_id,) in rows]

    def heartbeat(self, key: int) -> None:
        """Note that the supervisor is alive now."""
        self._database.write(
            "UPDATE supervisors SET heartbeat_at = ? WHERE key = ?", (time.time(), key)
        )

    def end(self, key: int, reason: str, at: float | None = None) -> None:
        """Note how the supervisor ended, unless that is known already."""
        self._database.write(
            """UPDATE supervisors SET ended_at = ?, end_reason = ?
            WHERE key = ? AND ended_at IS NULL""",
            (time.time() if at is None else at, reason, key),
        )

    def retire(self, record: SupervisorRecord) -> bool:
        """End the supervisor unless a task waits for it. Returns whether it has ended.

        In one transaction, so that a task launched meanwhile either is seen here or sees the end.
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
