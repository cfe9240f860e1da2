"""Save what can be read of a damaged store.

The damaged file is set aside under a dated name. The newest backup that is whole takes its place,
or an empty store, and every row that can still be read is copied into it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.store.database import Database, sqlite3
from ipytaskpersist.store.migrations import FILL_UIDS, create_triggers, drop_triggers

TABLES = (
    *("notebooks", "sessions", "supervisors", "tasks", "events", "outputs", "results"),
    *("processes", "tags"),
)
SUFFIXES = ("", "-wal", "-shm")


def set_aside(directory: StateDirectory) -> Path:
    """Rename the store, with SQLite's files beside it, and return its new path.

    One that an earlier repair has set aside and that was killed then is what is to be repaired:
    what stands in its place is not finished, and goes.
    """
    aside = _begun(directory) or _new_name(directory)
    files = {suffix: Path(f"{directory.store}{suffix}") for suffix in SUFFIXES}
    if aside.exists():
        for file in files.values():
            file.unlink(missing_ok=True)
        return aside
    directory.damage_mark.write_text(aside.name, encoding="utf-8")
    # The database at last: once it has its new name, everything has.
    for suffix, file in reversed(files.items()):
        if file.exists():
            file.rename(f"{aside}{suffix}")
    return aside


def is_begun(directory: StateDirectory) -> bool:
    """Whether a repair has set the store aside, and has not come to its end."""
    return _begun(directory) is not None


def _begun(directory: StateDirectory) -> Path | None:
    """Under which name a repair has begun to set the store aside; the mark has it."""
    try:
        name = directory.damage_mark.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return directory.root / name if name and Path(name).name == name else None


def _new_name(directory: StateDirectory) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    unique = time.time_ns() % 10**6
    return directory.root / f"{directory.store.stem}-damaged-{stamp}-{unique}.db"


def backups(directory: StateDirectory) -> list[Path]:
    """The copies of a store that there are, the newest first."""
    found = directory.backups.glob(f"{directory.store.stem}-*.db")
    return sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)


def newest_whole_backup(directory: StateDirectory) -> Path | None:
    """The newest backup that passes SQLite's check."""
    for backup in backups(directory):
        if is_whole(backup):
            return backup
    return None


def is_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a database file."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        finally:
            connection.close()
    except sqlite3.Error:
        return False


def salvage(damaged: Path, database: Database) -> dict[str, int]:
    """Copy every row that can be read into a store, and return how many of each table came over.

    Rows that are there already stay as they are.
    """
    saved: dict[str, int] = {}
    if not damaged.exists():
        return saved  # somebody has taken it away
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)
    # Without it SQLite refuses a file that is shorter than its header says.
    source.execute("PRAGMA writable_schema = ON")
    try:
        with database.transaction() as target:
            drop_triggers(target)
            for table in TABLES:
                saved[table] = _copy(source, target, table)
            _drop_orphans(target)
            _keep_numbers(source, target)
            target.execute(FILL_UIDS)
            create_triggers(target)
    finally:
        source.close()
    return saved


def _keep_numbers(source: Any, target: Any) -> None:
    """No notebook gives a number again, whichever of the two files knew of it."""
    with suppress(sqlite3.DatabaseError):
        rows = source.execute("SELECT last_number, key FROM notebooks").fetchall()
        target.executemany(
            "UPDATE notebooks SET last_number = max(last_number, ?) WHERE key = ?", rows
        )
    target.execute(
        """UPDATE notebooks SET last_number = max(last_number, coalesce(
            (SELECT max(number) FROM tasks WHERE notebook_key = notebooks.key), 0))"""
    )


def _copy(source: Any, target: Any, table: str) -> int:
    """Read from the front to the damage, then from the end back to it."""
    # A store of an earlier version has fewer.
    columns = [name for name in _columns(target, table) if name in _columns(source, table)]
    if not columns:
        return 0
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    copied = 0
    for order in ("ASC", "DESC"):
        query = f"SELECT {', '.join(columns)} FROM {table} ORDER BY rowid {order}"
        try:
            for row in source.execute(query):
                copied += _insert(target, insert, row)
            break
        except sqlite3.DatabaseError:
            continue
    return copied


def _columns(connection: Any, table: str) -> list[str]:
    try:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    except sqlite3.DatabaseError:
        return []


def _insert(target: Any, insert: str, row: Any) -> int:
    try:
        return int(target.execute(insert, row).rowcount)
    except sqlite3.IntegrityError:
        return 0  # a damaged value that the schema refuses, or a row whose task is lost


def _drop_orphans(target: Any) -> None:
    """Remove what belongs to tasks that could not be read."""
    for table in ("events", "outputs", "results", "processes", "tags"):
        target.execute(f"DELETE FROM {table} WHERE task_key NOT IN (SELECT key FROM tasks)")
