"""Notebooks and sessions in the store."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any
from uuid import uuid4

from ipytaskpersist.identity import SessionIdentity
from ipytaskpersist.records import NotebookRecord, SessionRecord, from_timestamp
from ipytaskpersist.store.database import Database, storable

COLUMNS = """id, notebook_key, path, front_end, host, pid, process_start, boot_id,
    started_at, heartbeat_at, ended_at, end_reason"""


def _record(row: Any, counts: tuple[tuple[str, int], ...] = ()) -> SessionRecord:
    times: list[Any] = [from_timestamp(seconds) for seconds in row[8:11]]
    fields: list[Any] = [*row[:8], *times, row[11], counts]
    return SessionRecord(*fields)


class Sessions:
    """The rows of `sessions` and `notebooks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, identity: SessionIdentity) -> SessionRecord:
        """Record the session, in the notebook to which it belongs, and return it.

        A session that is known already goes on.
        """
        now = time.time()
        with self._database.transaction() as connection:
            known = self.get(identity.id)
            if known is None:
                notebook = self.find_notebook(identity)
                key = notebook.key if notebook else self._new_notebook(connection, identity, now)
                self._insert(connection, identity, key, now)
                connection.execute(
                    "UPDATE notebooks SET path = ? WHERE key = ?", (storable(identity.path), key)
                )
            elif known.ended_at is not None:
                connection.execute(
                    "UPDATE sessions SET ended_at = NULL, end_reason = NULL WHERE id = ?",
                    (identity.id,),
                )
        found = self.get(identity.id)
        assert found is not None, "the session was recorded by the transaction above"
        return found

    def _new_notebook(self, connection: Any, identity: SessionIdentity, now: float) -> int:
        cursor = connection.execute(
            "INSERT INTO notebooks (path, created_at, uid) VALUES (?, ?, ?)",
            (storable(identity.path), now, uuid4().hex),
        )
        return int(cursor.lastrowid)

    def _insert(self, connection: Any, identity: SessionIdentity, key: int, now: float) -> None:
        process = identity.process
        connection.execute(
            """INSERT INTO sessions (id, notebook_key, path, has_path, kernel_uuid, front_end,
                host, pid, process_start, boot_id, started_at, heartbeat_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                identity.id,
                key,
                storable(identity.path),
                int(identity.has_path),
                identity.kernel_uuid,
                identity.front_end,
                process.host,
                process.pid,
                process.start,
                process.boot_id,
                now,
                now,
            ),
        )

    def find_notebook(self, identity: SessionIdentity) -> NotebookRecord | None:
        """The notebook that shares a session, the kernel's uuid or the path with this one.

        The uuid goes before the path: the kernel that runs on after its notebook was renamed to
        the name of another is still the kernel of the first.
        """
        row = self._database.row(
            """SELECT notebooks.key, notebooks.path, notebooks.uid FROM sessions
            JOIN notebooks ON notebooks.key = sessions.notebook_key
            WHERE sessions.id = ? OR sessions.kernel_uuid = ?
            ORDER BY sessions.started_at DESC LIMIT 1""",
            (identity.id, identity.kernel_uuid),
        )
        if row is None and identity.has_path:
            row = self._database.row(
                """SELECT notebooks.key, notebooks.path, notebooks.uid FROM sessions
                JOIN notebooks ON notebooks.key = sessions.notebook_key
                WHERE sessions.path = ? AND sessions.has_path
                ORDER BY sessions.started_at DESC LIMIT 1""",
                (storable(identity.path),),
            )
        return None if row is None else NotebookRecord(*row)

    def get(self, session_id: str) -> SessionRecord | None:
        """The session with exactly this id."""
        row = self._database.row(f"SELECT {COLUMNS} FROM sessions WHERE id = ?", (session_id,))
        return None if row is None else _record(row)

    def find(self, prefix: str) -> list[SessionRecord]:
        """The sessions whose id begins with `prefix`."""
        rows = self._database.rows(
            f"SELECT {COLUMNS} FROM sessions WHERE substr(id, 1, ?) = ? ORDER BY started_at",
            (len(prefix), prefix),
        )
        return [_record(row) for row in rows]

    def select(self, notebook_key: int | None, limit: int | None = None) -> list[SessionRecord]:
        """The sessions of one notebook, or of all, oldest first, with their tasks counted."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions
            WHERE ?1 IS NULL OR notebook_key = ?1 ORDER BY started_at DESC LIMIT ?2""",
            (notebook_key, -1 if limit is None else limit),
        )
        counts = self._task_counts()
        return [_record(row, counts.get(row[0], ())) for row in reversed(rows)]

    def _task_counts(self) -> dict[str, tuple[tuple[str, int], ...]]:
        counted: dict[str, Counter[str]] = {}
        for session, state, count in self._database.rows(
            "SELECT session_id, state, count(*) FROM tasks GROUP BY session_id, state"
        ):
            counted.setdefault(session, Counter())[state] = count
        return {session: tuple(counter.items()) for session, counter in counted.items()}

    def with_live_tasks(self) -> list[SessionRecord]:
        """The sessions that have a pending or running task in a thread, which ends with them."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions WHERE id IN
            (SELECT session_id FROM tasks WHERE state IN ('pending', 'running')
             AND runner = 'thread')"""
        )
        return [_record(row) for row in rows]

    def unfinished(self) -> list[SessionRecord]:
        """The sessions of which nobody has said how they ended."""
        rows = self._database.rows(f"SELECT {COLUMNS} FROM sessions WHERE ended_at IS NULL")
        return [_record(row) for row in rows]

    def heartbeat(self, session_id: str) -> None:
        """Note that the session is alive now."""
        self._database.execute(
            "UPDATE sessions SET heartbeat_at = ? WHERE id = ?", (time.time(), session_id)
        )

    def end(self, session_id: str, reason: str, at: float | None = None) -> None:
        """Note how the session ended, unless that is known already."""
        self._database.execute(
            """UPDATE sessions SET ended_at = ?, end_reason = ?
            WHERE id = ? AND ended_at IS NULL""",
            (time.time() if at is None else at, reason, session_id),
        )
