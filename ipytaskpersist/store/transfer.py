"""Move whole tasks between stores: to an archive, out of one, or from a backup.

A move has two steps, each a transaction of one file: the tasks are copied, then removed from the
origin. In between a task is in both files, and the store's own copy counts; an archive's copy
counts only when the store has no task with that id. So a task is in exactly one place at every
moment, wherever a crash occurs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from ipytaskpersist.running.interruption import HeldBack
from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import without_triggers

T = TypeVar("T")
BELONGING = ("events", "outputs", "results", "processes", "tags")
"""Tables whose rows belong to a task."""
NOT_COPIED = {"key", "sequence", "supervisor_key", "notify"}
"""Columns that have no meaning in another file, or may contain a secret."""
STEP_TASKS = 50
"""Number of tasks removed at once."""
SLICE_ROWS = 64
SLICE_BYTES = 2 << 20
"""Amount of output removed and overwritten at once, so that printing tasks need not wait."""
LOCK = "DELETE FROM main.tasks WHERE FALSE"
"""Locks the store's own file without changing anything."""
PAUSE_S = 0.003
"""Time for others to write between two steps."""


@contextmanager
def attached(connection: Any, origin: Path) -> Iterator[None]:
    """Attach another store's file to a connection as the schema ``origin``.

    Meanwhile nothing is raised from outside, as in a transaction.
    """
    with HeldBack():
        connection.execute("ATTACH ? AS origin", (os.fsencode(origin),))
        try:
            yield
        finally:
            connection.execute("DETACH origin")


def copy_tasks(target: Database, origin: Path, ids: Sequence[str]) -> None:
    """Copy tasks, with all that belongs to them, from another store's file, in one transaction.

    The target's copies of these tasks are replaced. Only the target is locked meanwhile.
    """
    connection = target.connection
    with target.errors(), attached(connection, origin):
        _choose(connection, ids)
        (durability,) = connection.execute("PRAGMA main.synchronous").fetchone()
        # The removal from the origin must not reach the disk before this.
        connection.execute("PRAGMA main.synchronous = FULL")
        try:
            # Not IMMEDIATE, which would lock the origin as well.
            with target.transaction("BEGIN", LOCK):
                copy_chosen(connection)
        finally:
            connection.execute(f"PRAGMA main.synchronous = {durability}")


def _choose(connection: Any, ids: Sequence[str]) -> None:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT PRIMARY KEY)")
    connection.execute("DELETE FROM temp.chosen")
    connection.executemany("INSERT INTO temp.chosen VALUES (?)", [(each,) for each in ids])


def copy_chosen(connection: Any) -> None:
    """Copy the tasks in ``temp.chosen`` from ``origin``, in the caller's transaction."""
    connection.execute(
        """DELETE FROM main.tasks WHERE id IN
        (SELECT origin.tasks.id FROM origin.tasks JOIN temp.chosen USING (id))"""
    )
    with without_triggers(connection):
        copy_sessions(connection, f"SELECT session_id FROM {ORIGIN_TASKS}")
        _copy_rows_of_tasks(connection)
        for table in BELONGING:
            _copy_belonging(connection, table)
        connection.execute(LINK_RERUNS)
        connection.execute(LINK_TRIES)


ORIGIN_TASKS = """origin.tasks AS old JOIN temp.chosen ON chosen.id = old.id"""
LINK_RERUNS = """UPDATE main.tasks SET rerun_of = (SELECT earlier.key FROM main.tasks AS earlier
    WHERE earlier.id = json_extract(main.tasks.provenance, '$.rerun_of'))
    WHERE rerun_of IS NULL AND json_extract(provenance, '$.rerun_of') IS NOT NULL
    AND (id IN (SELECT id FROM temp.chosen)
         OR json_extract(provenance, '$.rerun_of') IN (SELECT id FROM temp.chosen))"""

LINK_TRIES = """UPDATE main.tasks SET try_of = coalesce((SELECT first.key FROM main.tasks AS first
        WHERE first.id = json_extract(main.tasks.provenance, '$.try_of')), try_of)
    WHERE try_number > 1 AND json_extract(provenance, '$.imported_at') IS NULL
    AND (id IN (SELECT id FROM temp.chosen)
         OR json_extract(provenance, '$.try_of') IN (SELECT id FROM temp.chosen))"""
"""An imported try is not linked: a file could make it one of any task."""


def copy_sessions(connection: Any, ids: str) -> None:
    """Copy the sessions that a query returns, with their notebooks, where missing."""
    needed = f"SELECT notebook_key FROM origin.sessions WHERE id IN ({ids})"
    connection.execute(
        f"""INSERT OR IGNORE INTO main.notebooks (path, last_number, created_at, uid)
        SELECT path, last_number, created_at, uid FROM origin.notebooks WHERE key IN ({needed})"""
    )
    # A number is never reused, whatever the target file says.
    connection.execute(
        f"""UPDATE main.notebooks AS here SET last_number = max(last_number, (
            SELECT there.last_number FROM origin.notebooks AS there WHERE there.uid = here.uid))
        WHERE uid IN (SELECT uid FROM origin.notebooks WHERE key IN ({needed}))"""
    )
    columns = [name for name in _columns(connection, "sessions") if name != "notebook_key"]
    connection.execute(
        f"""INSERT OR IGNORE INTO main.sessions (notebook_key, {", ".join(columns)})
        SELECT (SELECT here.key FROM main.notebooks AS here
                JOIN origin.notebooks AS there ON there.uid = here.uid
                WHERE there.key = origin.sessions.notebook_key), {", ".join(columns)}
        FROM origin.sessions WHERE id IN ({ids})"""
    )


def _columns(connection: Any, table: str) -> list[str]:
    rows = connection.execute(f"PRAGMA origin.table_info({table})")
    return [name for _place, name, *_rest in rows if name not in NOT_COPIED]


def _copy_rows_of_tasks(connection: Any) -> None:
    keys = {"notebook_key", "rerun_of", "try_of", "doomed_by"}
    columns = [name for name in _columns(connection, "tasks") if name not in keys]
    connection.execute(
        f"""INSERT INTO main.tasks (notebook_key, {", ".join(columns)})
        SELECT here.key, {", ".join(f"old.{name}" for name in columns)} FROM {ORIGIN_TASKS}
        JOIN origin.notebooks AS there ON there.key = old.notebook_key
        JOIN main.notebooks AS here ON here.uid = there.uid ORDER BY old.key"""
    )


def _copy_belonging(connection: Any, table: str) -> None:
    columns = [name for name in _columns(connection, table) if name != "task_key"]
    connection.execute(
        f"""INSERT INTO main.{table} (task_key, {", ".join(columns)})
        SELECT new.key, {", ".join(f"row.{name}" for name in columns)} FROM {ORIGIN_TASKS}
        JOIN main.tasks AS new ON new.id = old.id
        JOIN origin.{table} AS row ON row.task_key = old.key ORDER BY old.key, row.rowid"""
    )


# Removing.


def remove_tasks(database: Database, ids: Sequence[str]) -> None:
    """Remove tasks with all that belongs to them, a little at a time.

    The first step removes the tasks. Their output follows in slices, so that no printing task waits
    long. `remove_leftovers` removes what a crash leaves.
    """
    for few in in_steps(ids, STEP_TASKS):
        keys = _remove_rows(database, few)
        _remove_outputs(database, keys)
        _forget(database, keys)


def in_steps(ids: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Return the ids or keys, a few at a time."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _remove_rows(database: Database, ids: Sequence[str]) -> list[int]:
    """Remove all but the outputs of tasks, and return the tasks' keys."""
    marks = ", ".join("?" * len(ids))
    database.execute("PRAGMA foreign_keys = OFF")
    try:
        with database.transaction() as connection:
            found = connection.execute(f"SELECT key FROM tasks WHERE id IN ({marks})", ids)
            keys = [key for (key,) in found.fetchall()]
            rows = [(key,) for key in keys]
            connection.executemany("UPDATE tasks SET rerun_of = NULL WHERE rerun_of = ?", rows)
            for table in BELONGING:
                if table != "outputs":
                    connection.executemany(f"DELETE FROM {table} WHERE task_key = ?", rows)
            connection.executemany("DELETE FROM tasks WHERE key = ?", rows)
            connection.executemany("INSERT INTO removed_tasks VALUES (?)", rows)
    finally:
        database.execute("PRAGMA foreign_keys = ON")
    return keys


def _remove_outputs(database: Database, keys: Sequence[int]) -> None:
    marks = ", ".join("?" * len(keys))
    query = f"SELECT sequence, length(data) FROM outputs WHERE task_key IN ({marks}) LIMIT ?"
    # Of these tasks only: SQLite reuses the keys of rows that were just removed.
    remove = f"""DELETE FROM outputs WHERE task_key IN ({marks})
        AND sequence IN (SELECT value FROM json_each(?))"""
    while rows := database.rows(query, (*keys, SLICE_ROWS)):
        database.write(remove, (*keys, json.dumps(_first(rows))))
        time.sleep(PAUSE_S)


def _first(rows: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first of these pieces of output that are not too much to remove at once."""
    before = accumulate((size for _sequence, size in rows), initial=0)
    return [row[0] for row, size in zip(rows, before, strict=False) if size < SLICE_BYTES]


def remove_leftovers(database: Database) -> None:
    """Remove the outputs of removed tasks, which a crash may have left."""
    query = "SELECT task_key FROM removed_tasks WHERE task_key NOT IN (SELECT key FROM tasks)"
    keys = [key for (key,) in database.rows(query)]
    for few in in_steps(keys, STEP_TASKS):
        _remove_outputs(database, few)
        _forget(database, few)


def _forget(database: Database, keys: Sequence[int]) -> None:
    """Record that nothing is left of these tasks."""
    marks = ", ".join("?" * len(keys))
    database.write(f"DELETE FROM removed_tasks WHERE task_key IN ({marks})", keys)
