"""Replace the store's tasks with those of a backup, while others may use the store.

Everything happens in one transaction, after the present store has been copied: a crash at any
moment leaves either everything as it was or everything restored. Notebooks and sessions stay,
because running kernels belong to them, and no number that a notebook has given is ever reused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base.private_files import new_private, remove
from ipytaskpersist.base.records import RESTORED
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.file.migrations import STEPS, migrate
from ipytaskpersist.store.file.open_store import OpenStore
from ipytaskpersist.store.file.repair import is_whole
from ipytaskpersist.store.file.sidecars import read_options
from ipytaskpersist.store.file.sqlite_errors import in_words
from ipytaskpersist.store.outputs import COPIED
from ipytaskpersist.store.tasks import INTERRUPT
from ipytaskpersist.store.transfer import attached, copy_chosen, copy_sessions

SINCE_UIDS = 4
"""From which schema on a notebook is the same in every file by its uid."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore."""

    tasks: int
    """Number of tasks after the restore."""
    set_aside: Path
    """Copy of the store before the restore."""


def check(file: Path) -> None:
    """Raise `StoreError` for a file that is no backup, or one of a newer version."""
    if not file.is_file():
        raise StoreError(f"there is no file {file}; %bg_doctor tells where the backups are")
    if not is_whole(file):
        raise StoreError(f"{file} is damaged, or no backup of a store; nothing was changed")
    version = _version(file)
    if version > len(STEPS):
        raise StoreError(
            f"{file} was written by a newer version of ipytaskpersist; upgrade with "
            "'pip install -U ipytaskpersist'. Nothing was changed"
        )
    if version == 0:
        raise StoreError(f"{file} is an SQLite database, but no backup of a store")


def _version(file: Path) -> int:
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?{read_options(file)}", uri=True)
    try:
        ours = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('notebooks', 'sessions', 'tasks')"
        ).fetchone()[0]
        return int(connection.execute("PRAGMA user_version").fetchone()[0]) if ours == 3 else 0
    finally:
        connection.close()


def restore(store: OpenStore, file: Path) -> Restored:
    """Replace the store's tasks with a backup's. Raises `InvalidRequest` while any task runs."""
    check(file)
    connection = store.database.connection
    numbers = _numbers_of_archives(store)
    with (
        _of_this_version(store, file) as origin,
        attached(connection, origin),
        store.database.transaction(),
    ):
        _refuse_live(connection)
        set_aside = _copy_of(store)
        if _version(file) < SINCE_UIDS:
            _recognise_notebooks(connection)
        tasks = _replace(connection)
        connection.executemany(
            "UPDATE notebooks SET last_number = max(last_number, ?) WHERE uid = ?", numbers
        )
    return Restored(tasks, set_aside)


def missing_from(store: OpenStore, file: Path, with_tasks: bool) -> int:
    """Add what a backup has and a repaired store lacks. Return the number of rows added.

    With `with_tasks`, adds whole tasks, too; else only what belongs to existing ones.
    """
    connection = store.database.connection
    with (
        _of_this_version(store, file) as origin,
        attached(connection, origin),
        store.database.transaction(),
    ):
        added = sum(connection.execute(query).rowcount for query in FILL)
        return int(added + (_missing_tasks(connection, _version(file)) if with_tasks else 0))


def _missing_tasks(connection: Any, version: int) -> int:
    if version < SINCE_UIDS:
        _recognise_notebooks(connection)
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT PRIMARY KEY)")
    missing = connection.execute(
        """INSERT INTO temp.chosen SELECT id FROM origin.tasks
        WHERE id NOT IN (SELECT id FROM main.tasks)"""
    ).rowcount
    copy_chosen(connection)
    connection.execute(f"{INTERRUPT} AND id IN (SELECT id FROM temp.chosen)", (RESTORED, None, 0))
    return int(missing)


def _fill(table: str, key: str, columns: Sequence[str], same: Sequence[str], place: str) -> str:
    """Return SQL that adds a backup's missing rows to existing tasks."""
    conditions = " AND ".join(f"mine.{name} IS theirs.{name}" for name in same)
    theirs = ", ".join(f"theirs.{name}" for name in columns)
    return f"""INSERT OR IGNORE INTO main.{table} ({key}, task_key, {", ".join(columns)})
        SELECT {place}, here.key, {theirs} FROM origin.{table} AS theirs
        JOIN origin.tasks AS there ON there.key = theirs.task_key
        JOIN main.tasks AS here ON here.id = there.id
        WHERE NOT EXISTS (SELECT 1 FROM main.{table} AS mine
            WHERE mine.task_key = here.key AND {conditions})
        ORDER BY theirs.{key}"""


FILL = tuple(
    _fill(table, key, columns, same, place)
    for table, key, columns, same in (
        ("outputs", "sequence", COPIED, ("kind", "at", "first_byte", "size_bytes")),
        ("events", "key", ("state", "reason", "at"), ("state", "at")),
    )
    # In its own place, to preserve the order; if that is taken, at the end.
    for place in (f"theirs.{key}", "NULL")
)


@contextmanager
def _of_this_version(store: OpenStore, file: Path) -> Iterator[Path]:
    """Copy the backup and migrate the copy. The backup itself is never changed."""
    copy = store.directory.root / f".restore-{os.urandom(4).hex()}.part"
    new_private(copy).close()
    try:
        _copy_and_migrate(file, copy)
        yield copy
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            remove(Path(f"{copy}{suffix}"))


def _copy_and_migrate(file: Path, copy: Path) -> None:
    source = sqlite3.connect(f"{file.absolute().as_uri()}?{read_options(file)}", uri=True)
    target = sqlite3.connect(copy, isolation_level=None)
    try:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
        target.execute("BEGIN IMMEDIATE")
        migrate(target)
        target.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise in_words(copy, str(error)) from error
    finally:
        source.close()
        target.close()


def _refuse_live(connection: Any) -> None:
    rows = connection.execute("SELECT id FROM tasks WHERE state IN ('pending', 'running')")
    live = [task_id for (task_id,) in rows]
    if live:
        raise InvalidRequest(
            f"nothing was restored, because {', '.join(live[:5])} still "
            f"{'runs' if len(live) == 1 else 'run'}; wait with %bg_wait {live[0]}, or cancel"
        )


def _copy_of(store: OpenStore) -> Path:
    """Copy the present store. No other process can write to it now."""
    target = store.new_backup("before-restore")
    other = sqlite3.connect(store.database.path)
    try:
        store.write_copy(other, target)
    finally:
        other.close()
    return target


def _replace(connection: Any) -> int:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT PRIMARY KEY)")
    connection.execute("DELETE FROM temp.chosen")
    connection.execute("INSERT INTO temp.chosen SELECT id FROM origin.tasks")
    connection.execute("DELETE FROM main.tasks")
    copy_sessions(connection, "SELECT id FROM origin.sessions")
    copy_chosen(connection)
    connection.execute(INTERRUPT, (RESTORED, None, 0))
    return int(connection.execute("SELECT count(*) FROM main.tasks").fetchone()[0])


def _recognise_notebooks(connection: Any) -> None:
    """Give an old backup's notebooks the uids of this store's notebooks with the same sessions."""
    connection.execute(
        """UPDATE OR IGNORE origin.notebooks SET uid = known.uid FROM
            (SELECT there.notebook_key AS key, notebook.uid AS uid FROM origin.sessions AS there
             JOIN main.sessions AS here ON here.id = there.id
             JOIN main.notebooks AS notebook ON notebook.key = here.notebook_key) AS known
        WHERE known.key = notebooks.key"""
    )


def _numbers_of_archives(store: OpenStore) -> list[tuple[int, str]]:
    """Return each notebook's highest number in the archives, as no number is reused."""
    numbers: list[tuple[int, str]] = []
    for month in store.directory.months():
        file = store.directory.archive(month).store
        archive = sqlite3.connect(f"{file.absolute().as_uri()}?{read_options(file)}", uri=True)
        try:
            numbers += archive.execute("SELECT last_number, uid FROM notebooks").fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"nothing was restored, because the archive {file} cannot be read ({error}); "
                "%bg_doctor says more"
            ) from error
        finally:
            archive.close()
    return numbers
