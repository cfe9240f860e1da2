"""Notebooks and sessions in the store."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

from ipytaskpersist.identity import SessionIdentity
from ipytaskpersist.records import NotebookRecord, SessionRecord, from_timestamp
from ipytaskpersist.store.database import Database, storable

COLUMNS = """id, notebook_key, path, front_end, host, pid, process_start, boot_id,
    started_at, heartbeat_at, ended_at, end_reason, pid_namespace"""


SHORT_CHARACTERS = 8
"""How much of a session's id is shown, and is enough to name it where no other begins so."""


def short_id(database: Database, session_id: str) -> str:
    """The beginning of a session's id by which it is known: no other session's begins so."""
    neighbours = database.row(
        """SELECT (SELECT max(id) FROM sessions WHERE id < ?1),
            (SELECT min(id) FROM sessions WHERE id > ?1)""",
        (session_id,),
    )
    others = (each for each in neighbours if each is not None)
    needed = max([SHORT_CHARACTERS, *(_characters_shared(session_id, each) + 1 for each in others)])
    # Not with the dash at its end: a task's id has another there.
    return session_id[: needed + session_id[:needed].endswith("-")]


def _characters_shared(one: str, other: str) -> int:
    """With how many same characters two texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _record(row: Any, counts: tuple[tuple[str, int], ...] = ()) -> SessionRecord:
    times: list[Any] = [from_timestamp(seconds) for seconds in row[8:11]]
    fields: list[Any] = [*row[:8], *times, *row[11:], counts]
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
                host, pid, process_start, boot_id, started_at, heartbeat_at, pid_namespace)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
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
                process.namespace,
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
        if row is None and identity.has_path:
            # One whose sessions were all deleted goes on counting.
            row = self._database.row(
                """SELECT key, path, uid FROM notebooks WHERE path = ? AND NOT EXISTS
                    (SELECT 1 FROM sessions WHERE notebook_key = notebooks.key)
                ORDER BY key DESC LIMIT 1""",
                (storable(identity.path),),
            )
        return None if row is None else NotebookRecord(*row)

    def get(self, session_id: str) -> SessionRecord | None:
        """The session with exactly this id."""
        row = self._database.row(f"SELECT {COLUMNS} FROM sessions WHERE id = ?", (session_id,))
        return None if row is None else self._database.record(_record, row)

    def find(self, prefix: str) -> list[SessionRecord]:
        """The sessions whose id begins with `prefix`."""
        rows = self._database.rows(
            f"SELECT {COLUMNS} FROM sessions WHERE id >= ?1 AND id < ?1 || char(1114111) "
            "ORDER BY started_at",
            (storable(prefix),),
        )
        return [self._with_tasks(self._database.record(_record, row)) for row in rows]

    def beginning(self, prefix: str, limit: int) -> list[tuple[str, str]]:
        """The ids that begin so, each with its notebook's path, the newest first."""
        rows = self._database.rows(
            """SELECT id, path FROM sessions WHERE substr(id, 1, ?) = ?
            ORDER BY started_at DESC LIMIT ?""",
            (len(prefix), storable(prefix), limit),
        )
        return [(session_id, path) for session_id, path in rows]

    def short(self, session_id: str) -> str:
        """As much of a session's id as is shown: `short_id`."""
        return short_id(self._database, session_id)

    def select(self, notebook_key: int | None, limit: int | None = None) -> list[SessionRecord]:
        """The sessions of one notebook, or of all, newest first, with what they did."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions
            WHERE ?1 IS NULL OR notebook_key = ?1 ORDER BY started_at DESC LIMIT ?2""",
            (notebook_key, -1 if limit is None else limit),
        )
        return [self._with_tasks(self._database.record(_record, row)) for row in rows]

    def visits(self, notebook_key: int, except_session: str, limit: int) -> list[SessionRecord]:
        """The notebook's latest other sessions in which a person could work, newest first.

        Not those of programs, nor those that were imported. A launch is a heartbeat, too.
        """
        alive = """max(heartbeat_at, coalesce((SELECT created_at FROM tasks
            WHERE session_id = sessions.id ORDER BY key DESC LIMIT 1), 0))"""
        rows = self._database.rows(
            f"""SELECT {COLUMNS.replace("heartbeat_at", alive)} FROM sessions
            WHERE notebook_key = ? AND id <> ? AND front_end <> 'program'
            AND (SELECT json_extract(provenance, '$.imported_at') FROM tasks
                WHERE session_id = sessions.id ORDER BY key DESC LIMIT 1) IS NULL
            ORDER BY started_at DESC LIMIT ?""",
            (notebook_key, except_session, limit),
        )
        return [self._database.record(_record, row) for row in rows]

    def count(self, notebook_key: int | None) -> int:
        """How many sessions the notebook, or every one, has had."""
        row = self._database.row(
            "SELECT count(*) FROM sessions WHERE ?1 IS NULL OR notebook_key = ?1", (notebook_key,)
        )
        return int(row[0])

    def _with_tasks(self, session: SessionRecord) -> SessionRecord:
        """The session with its tasks counted, its first task's source, and its last activity."""
        rows = self._database.rows(
            """SELECT state, count(*), min(key), max(coalesce(ended_at, started_at, created_at))
            FROM tasks WHERE session_id = ? GROUP BY state""",
            (session.id,),
        )
        if not rows:
            return session
        first = min(key for _state, _count, key, _at in rows)
        (source,) = self._database.row("SELECT source FROM tasks WHERE key = ?", (first,))
        return replace(
            session,
            task_counts=tuple((state, count) for state, count, _key, _at in rows),
            first_source=source,
            last_active_at=from_timestamp(max(at for *_others, at in rows)),
        )

    def uid_of_notebook(self, key: int) -> str | None:
        """What makes a notebook of this store the same in another."""
        row = self._database.row("SELECT uid FROM notebooks WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def notebook_of_uid(self, uid: str) -> int | None:
        """The key here of the notebook that has this uid; None where it is not known."""
        row = self._database.row("SELECT key FROM notebooks WHERE uid = ?", (uid,))
        return None if row is None else int(row[0])

    def notebooks(self) -> list[NotebookRecord]:
        """Every notebook that the store knows, the latest last."""
        rows = self._database.rows("SELECT key, path, uid FROM notebooks ORDER BY key")
        return [NotebookRecord(*row) for row in rows]

    def delete(self, session_id: str) -> None:
        """Remove a session that has no tasks any more."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM supervisors WHERE session_id = ?", (session_id,))
            connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    def with_live_tasks(self) -> list[SessionRecord]:
        """The sessions that have a pending or running task in a thread, which ends with them."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions WHERE id IN
            (SELECT session_id FROM tasks WHERE state IN ('pending', 'running')
             AND runner = 'thread')"""
        )
        return [self._database.record(_record, row) for row in rows]

    def unfinished(self) -> list[SessionRecord]:
        """The sessions of which nobody has said how they ended."""
        rows = self._database.rows(f"SELECT {COLUMNS} FROM sessions WHERE ended_at IS NULL")
        return [self._database.record(_record, row) for row in rows]

    def latest_task(self, session_id: str) -> int:
        """The row of the task that a session has launched last; 0 where it has none."""
        query = "SELECT coalesce(max(key), 0) FROM tasks WHERE session_id = ?"
        return int(self._database.row(query, (session_id,))[0])

    def heartbeat(self, session_id: str) -> None:
        """Note that the session is alive now."""
        self._database.write(
            "UPDATE sessions SET heartbeat_at = ? WHERE id = ?", (time.time(), session_id)
        )

    def end(self, session_id: str, reason: str, at: float | None = None) -> None:
        """Note how the session ended, unless that is known already."""
        self._database.write(
            """UPDATE sessions SET ended_at = ?, end_reason = ?
            WHERE id = ? AND ended_at IS NULL""",
            (time.time() if at is None else at, reason, session_id),
        )
