"""Notebooks and sessions in the store."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from ipytaskpersist.base.process_identity import SessionIdentity
from ipytaskpersist.base.records import NotebookRecord, SessionRecord, from_timestamp
from ipytaskpersist.store.file.database import Database, storable

FIELDS = (
    *("id", "notebook_key", "path", "front_end", "host", "pid", "process_start", "boot_id"),
    *("started_at", "heartbeat_at", "ended_at", "end_reason", "pid_namespace"),
)
COLUMNS = ", ".join(FIELDS)
TIMES = ("started_at", "heartbeat_at", "ended_at")


FAR_NUMBER = 10**12
"""Beyond every number that a task has."""
SHORT_CHARACTERS = 8
"""Displayed part of a session's id. Names the session if no other id starts with it."""


def short_id(database: Database, session_id: str) -> str:
    """Return the prefix of a session's id that no other session's id starts with."""
    neighbours = database.row(
        """SELECT (SELECT max(id) FROM sessions WHERE id < ?1),
            (SELECT min(id) FROM sessions WHERE id > ?1)""",
        (session_id,),
    )
    others = (each for each in neighbours if each is not None)
    needed = max([SHORT_CHARACTERS, *(_characters_shared(session_id, each) + 1 for each in others)])
    # Without a dash at its end: a task's id has another dash there.
    return session_id[: needed + session_id[:needed].endswith("-")]


def _characters_shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _record(row: Any) -> SessionRecord:
    known = dict(zip(FIELDS, row, strict=True))
    return SessionRecord(**known | {name: from_timestamp(known[name]) for name in TIMES})


@dataclass(frozen=True, slots=True)
class LeftNotebook:
    """A notebook with tasks of known cells, and without a running session."""

    key: int
    path: str
    host: str
    """Host of its latest session."""


class Sessions:
    """The rows of `sessions` and `notebooks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, identity: SessionIdentity) -> SessionRecord:
        """Record the session, in the notebook to which it belongs, and return it.

        A session that is already known continues.
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
        """Return the notebook that shares the session, the kernel's uuid or the path."""
        path = identity.path if identity.has_path else None
        return self.notebook_at(path, identity.kernel_uuid, identity.id)

    def notebook_at(
        self, path: str | None, kernel_uuid: str | None = None, session_id: str = ""
    ) -> NotebookRecord | None:
        """Return the notebook of a session, of a kernel, or at a path.

        The uuid takes precedence over the path: a kernel that runs on after its notebook was
        renamed to another's name is still the first notebook's kernel.
        """
        row = self._database.row(
            """SELECT notebooks.key, notebooks.path, notebooks.uid FROM sessions
            JOIN notebooks ON notebooks.key = sessions.notebook_key
            WHERE sessions.id = ? OR sessions.kernel_uuid = ?
            ORDER BY sessions.started_at DESC LIMIT 1""",
            (session_id, kernel_uuid),
        )
        if row is None and path is not None:
            row = self._database.row(
                """SELECT notebooks.key, notebooks.path, notebooks.uid FROM sessions
                JOIN notebooks ON notebooks.key = sessions.notebook_key
                WHERE sessions.path = ? AND sessions.has_path
                ORDER BY sessions.started_at DESC LIMIT 1""",
                (storable(path),),
            )
        if row is None and path is not None:
            # A notebook whose sessions were all deleted keeps its numbering.
            row = self._database.row(
                """SELECT key, path, uid FROM notebooks WHERE path = ? AND NOT EXISTS
                    (SELECT 1 FROM sessions WHERE notebook_key = notebooks.key)
                ORDER BY key DESC LIMIT 1""",
                (storable(path),),
            )
        return None if row is None else NotebookRecord(*row)

    def get(self, session_id: str) -> SessionRecord | None:
        """Return the session with exactly this id."""
        row = self._database.row(f"SELECT {COLUMNS} FROM sessions WHERE id = ?", (session_id,))
        return None if row is None else self._database.record(_record, row)

    def find(self, prefix: str) -> list[SessionRecord]:
        """Return the sessions whose id starts with `prefix`."""
        rows = self._database.rows(
            f"SELECT {COLUMNS} FROM sessions WHERE id >= ?1 AND id < ?1 || char(1114111) "
            "ORDER BY started_at",
            (storable(prefix),),
        )
        return [self._with_tasks(self._database.record(_record, row)) for row in rows]

    def beginning(self, prefix: str, limit: int) -> list[tuple[str, str]]:
        """Return the ids that start with this, with their notebooks' paths, newest first."""
        rows = self._database.rows(
            """SELECT id, path FROM sessions WHERE substr(id, 1, ?) = ?
            ORDER BY started_at DESC LIMIT ?""",
            (len(prefix), storable(prefix), limit),
        )
        return [(session_id, path) for session_id, path in rows]

    def short(self, session_id: str) -> str:
        """Return the displayed part of a session's id: `short_id`."""
        return short_id(self._database, session_id)

    def select(self, notebook_key: int | None, limit: int | None = None) -> list[SessionRecord]:
        """Return the sessions of one notebook, or of all, newest first, with their activity."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions
            WHERE ?1 IS NULL OR notebook_key = ?1 ORDER BY started_at DESC LIMIT ?2""",
            (notebook_key, -1 if limit is None else limit),
        )
        return [self._with_tasks(self._database.record(_record, row)) for row in rows]

    def visits(self, notebook_key: int, except_session: str, limit: int) -> list[SessionRecord]:
        """Return the notebook's latest other sessions that a user could work in, newest first.

        Excludes sessions of programs and imported ones. A launch counts as a heartbeat.
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
        """Return the number of sessions of the notebook, or of all notebooks."""
        row = self._database.row(
            "SELECT count(*) FROM sessions WHERE ?1 IS NULL OR notebook_key = ?1", (notebook_key,)
        )
        return int(row[0])

    def _with_tasks(self, session: SessionRecord) -> SessionRecord:
        """Add the session's task counts, its first task's source, and its last activity."""
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
        """Return the identity across stores of a notebook of this one."""
        row = self._database.row("SELECT uid FROM notebooks WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def notebook_of_uid(self, uid: str) -> int | None:
        """Return this store's key of the notebook with this uid; None when it is unknown."""
        row = self._database.row("SELECT key FROM notebooks WHERE uid = ?", (uid,))
        return None if row is None else int(row[0])

    def notebooks(self) -> list[NotebookRecord]:
        """Return every notebook that the store knows, latest last."""
        rows = self._database.rows("SELECT key, path, uid FROM notebooks ORDER BY key")
        return [NotebookRecord(*row) for row in rows]

    def left_notebooks(self, except_key: int) -> list[LeftNotebook]:
        """Return the notebooks with tasks of known cells and no running session, latest first."""
        rows = self._database.rows(
            """SELECT notebooks.key, notebooks.path, sessions.host, max(sessions.started_at)
            FROM notebooks JOIN sessions ON sessions.notebook_key = notebooks.key
            WHERE notebooks.key <> ? AND EXISTS (SELECT 1 FROM tasks
                WHERE notebook_key = notebooks.key AND cell_id IS NOT NULL)
            GROUP BY notebooks.key HAVING count(*) = count(sessions.ended_at)
            ORDER BY max(sessions.started_at) DESC""",
            (except_key,),
        )
        return [LeftNotebook(*row[:3]) for row in rows]

    def adopt(self, key: int, from_key: int) -> list[tuple[int, int]]:
        """Move the sessions and tasks of another notebook, which has moved here, to this one.

        They keep their numbers, by which they are known, and so do those in archives. The tasks
        that this notebook has already follow them. Return these ones' old and new numbers.
        """
        with self._database.transaction() as connection:
            (last,) = connection.execute(
                "SELECT last_number FROM notebooks WHERE key = ?", (from_key,)
            ).fetchone()
            own = connection.execute(
                "SELECT number FROM tasks WHERE notebook_key = ? ORDER BY number", (key,)
            ).fetchall()
            for shift in (FAR_NUMBER, last - FAR_NUMBER):  # never to a number that another one has
                connection.execute(
                    "UPDATE tasks SET number = number + ? WHERE notebook_key = ?", (shift, key)
                )
            connection.execute(
                "UPDATE tasks SET notebook_key = ? WHERE notebook_key = ?", (key, from_key)
            )
            # A new file of the old path is another notebook.
            connection.execute(
                "UPDATE sessions SET notebook_key = ?, has_path = 0 WHERE notebook_key = ?",
                (key, from_key),
            )
            connection.execute(
                "UPDATE notebooks SET last_number = last_number + ? WHERE key = ?", (last, key)
            )
            self._exchange_uids(connection, key, from_key)
        return [(number, number + last) for (number,) in own]

    @staticmethod
    def _exchange_uids(connection: Any, one: int, other: int) -> None:
        """Exchange two notebooks' identities, by which archives know them."""
        query = "SELECT uid FROM notebooks WHERE key = ?"
        (uid,), (other_uid,) = (
            connection.execute(query, (key,)).fetchone() for key in (one, other)
        )
        for key, new in ((other, uuid4().hex), (one, other_uid), (other, uid)):
            connection.execute("UPDATE notebooks SET uid = ? WHERE key = ?", (new, key))

    def delete(self, session_id: str) -> None:
        """Remove a session that no longer has tasks."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM supervisors WHERE session_id = ?", (session_id,))
            connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    def with_live_tasks(self) -> list[SessionRecord]:
        """Return the sessions with a live task in a thread, which ends with its session."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} FROM sessions WHERE id IN
            (SELECT session_id FROM tasks WHERE state IN ('pending', 'running')
             AND runner = 'thread')"""
        )
        return [self._database.record(_record, row) for row in rows]

    def unfinished(self) -> list[SessionRecord]:
        """Return the sessions whose end was not recorded."""
        rows = self._database.rows(f"SELECT {COLUMNS} FROM sessions WHERE ended_at IS NULL")
        return [self._database.record(_record, row) for row in rows]

    def latest_task(self, session_id: str) -> int:
        """Return the row of a session's latest task; 0 when there is none."""
        query = "SELECT coalesce(max(key), 0) FROM tasks WHERE session_id = ?"
        return int(self._database.row(query, (session_id,))[0])

    def heartbeat(self, session_id: str) -> None:
        """Record that the session is alive now."""
        self._database.write(
            "UPDATE sessions SET heartbeat_at = ? WHERE id = ?", (time.time(), session_id)
        )

    def end(self, session_id: str, reason: str, at: float | None = None) -> None:
        """Record how the session ended, unless that is already known."""
        self._database.write(
            """UPDATE sessions SET ended_at = ?, end_reason = ?
            WHERE id = ? AND ended_at IS NULL""",
            (time.time() if at is None else at, reason, session_id),
        )
