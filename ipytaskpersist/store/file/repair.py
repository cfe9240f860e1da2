"""Save what can be read from a damaged store.

A new store is created beside the damaged one. Every row that can still be read is copied into it.
What the damaged one can no longer provide comes from the newest intact backup. Then the new store
takes the damaged one's name, and the damaged one is kept under another.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_durable
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.errors import StoreError, StoreUnwritable
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.file.migrations import FILL_UIDS, STEPS, migrate, without_triggers
from ipytaskpersist.store.file.open_store import OpenStore
from ipytaskpersist.store.file.sidecars import (
    LOST_LOG,
    identity_of,
    log_of,
    move_log,
    read_options,
    was_log_cut,
)
from ipytaskpersist.store.tasks import INTERRUPT
from ipytaskpersist.text.formatting import counted

TABLES = (
    *("notebooks", "sessions", "supervisors", "tasks", "events", "outputs", "results"),
    *("processes", "tags", "groups", "dependencies"),
)
DEFINITIONS = "SELECT rowid, type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
CHECKS = ("PRAGMA integrity_check(1)", "PRAGMA integrity_check(sqlite_master)")
"""The second one looks at the list of free pages, which the first leaves out for some views."""
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""SQLite's exceptions on damaged data: its own message may not be valid UTF-8."""
BELONGING = ("events", "outputs", "results", "processes", "tags")
SUFFIXES = ("", "-wal", "-shm")
LOWEST, HIGHEST = -1, 2**62
LOOKS_AT_MOST = 20_000
"""How often is looked for more of one table where some of it could not be read."""
CUT_OFF = "not known: the store lost its log"
YEAR_2200_S = 7_258_118_400.0
JSON: dict[str, dict[str, str | None]] = {
    "tasks": {"provenance": "{}", "progress": None, "notify": None, "post_mortem": None},
    "processes": {"command": "[]", "environment": "{}", "options": "{}"},
}
"""JSON columns, with the replacement for unreadable content."""
TIMES = {
    "sessions": ("started_at", "heartbeat_at", "ended_at"),
    "supervisors": ("started_at", "heartbeat_at", "ended_at"),
    "tasks": ("created_at", "started_at", "ended_at", "cancel_requested_at", "cleared_at"),
    "events": ("at",),
    "outputs": ("at",),
}
ENUMERATIONS: dict[str, tuple[str, frozenset[str]]] = {
    "outputs": ("kind", frozenset(kind.value for kind in OutputKind)),
    "events": ("state", frozenset(state.value for state in TaskState)),
}
"""Columns restricted to a few values, where the schema does not enforce them."""


def backups(directory: StateDirectory) -> list[Path]:
    """Return the existing backups of a store, newest first."""
    found = directory.backups.glob(f"{directory.store.stem}-*.db")
    return sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)


def newest_whole_backup(directory: StateDirectory) -> Path | None:
    """Return the newest intact backup."""
    for backup in backups(directory):
        if is_whole(backup):
            return backup
    return None


def is_whole(path: Path) -> bool:
    """Return whether SQLite finds nothing wrong with a file, and all of its rows can be read."""
    try:
        with closing(_opened(path)) as connection:
            return (
                all(connection.execute(check).fetchone()[0] == "ok" for check in CHECKS)
                and _has_its_schema(connection)
                and all(_can_be_read(connection, table) for table in TABLES)
            )
    except UNREADABLE:
        return False


def has_lost_log(directory: StateDirectory) -> bool:
    """Return whether a damaged store's log was cut, or its mark says so."""
    with suppress(OSError):
        if directory.damage_mark.read_bytes().startswith(LOST_LOG):
            return True
    return was_log_cut(directory.store)


def _has_its_schema(connection: Any) -> bool:
    """Return whether a store of this version has its full schema. Others are not checked."""
    if connection.execute("PRAGMA user_version").fetchone()[0] != len(STEPS):
        return True
    with closing(sqlite3.connect(":memory:")) as reference:
        migrate(reference)
        return _schema(reference) <= _schema(connection)


def _schema(connection: Any) -> set[tuple[str, str]]:
    """Return tables, indexes and triggers by name, and columns by table and name.

    Views hold nothing, so a store from which a view was dropped is whole.
    """
    query = "SELECT name FROM sqlite_master WHERE type <> 'view'"
    names = {("", name) for (name,) in connection.execute(query)}
    columns = {(table, name) for table in TABLES for name in _columns(connection, table)}
    return columns | {each for each in names if not each[1].startswith(("sqlite_", "_sqlite"))}


def _opened(path: Path) -> Any:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{read_options(path)}", uri=True)


def _opened_to_the_cut(path: Path, cleanup: ExitStack) -> Any:
    """Open a copy of a file with its log up to a cut. The index still mentions what is gone.

    Reading the file drops this process's locks on it, which it no longer needs.
    """
    return sqlite3.connect(_copied_with_log(path, cleanup))


def _copied_with_log(path: Path, cleanup: ExitStack) -> Path:
    """Return a copy of a file and its log, which is removed with the clean-up."""
    copy = Path(cleanup.enter_context(_folder_beside(path))) / "copy.db"
    shutil.copyfile(path, copy)
    with suppress(FileNotFoundError):
        shutil.copyfile(log_of(path), log_of(copy))
    return copy


def _opened_by_known_schema(path: Path, cleanup: ExitStack) -> Any:
    """Open a file, or a copy that has the right definitions if some in its schema are damaged.

    SQLite finds a table through its definition: one wrong letter there would hide all rows.
    """
    source = _opened(path)
    wrong = _damaged_definitions(source)
    if not wrong:
        return source
    source.close()
    copy = _copied_with_log(path, cleanup)
    with closing(sqlite3.connect(copy)) as target, target:
        target.execute("PRAGMA writable_schema = ON")
        target.executemany(
            "UPDATE sqlite_master SET type = ?, name = ?, tbl_name = ?, sql = ? WHERE rowid = ?",
            wrong,
        )
    return sqlite3.connect(copy)


def _damaged_definitions(source: Any) -> list[tuple[str, str, str, str, int]]:
    """Return the right type, name, table, definition and row of each that the schema has wrong.

    A row is known by its name, and if that is damaged too by its place: the migrations of a version
    create everything in the same order. Without a readable schema of this version there are none.
    """
    with closing(sqlite3.connect(":memory:")) as reference, suppress(*UNREADABLE):
        source.execute("PRAGMA writable_schema = ON")
        source.text_factory = lambda data: data.decode("utf-8", "replace")
        if source.execute("PRAGMA user_version").fetchone()[0] != len(STEPS):
            return []
        migrate(reference)
        known = {
            name: (row, kind, name, *rest)
            for row, kind, name, *rest in reference.execute(DEFINITIONS)
        }
        found = source.execute(DEFINITIONS).fetchall()
        names = {name for _row, _kind, name, *_rest in found}
        missing = {each[0]: each for name, each in known.items() if name not in names}
        pairs = ((each, known.get(each[2], missing.get(each[0]))) for each in found)
        return [(*right[1:], each[0]) for each, right in pairs if right and right[1:] != each[1:]]
    return []


def _folder_beside(path: Path) -> TemporaryDirectory[str]:
    return TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part")


def _can_be_read(connection: Any, table: str) -> bool:
    """Return whether this package understands every row of a table."""
    columns = [name for name in _columns(connection, table) if name != "data"]
    if not columns:
        return True  # a store of an earlier version has fewer tables
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
    return all(_mended(table, row := dict(zip(columns, each, strict=True))) == row for each in rows)


# Replacing the store.


def replace(
    directory: StateDirectory, fresh: OpenStore, fill_in: Callable[[OpenStore, Path, bool], int]
) -> str:
    """Replace a damaged store with one that contains everything that can be saved.

    Returns what to say. `fresh` is an empty store in a file beside it, which is used up; `fill_in`
    adds what a backup has and it lacks. A crash at any moment leaves either store complete under
    the name, and the damage mark. Raises `StoreUnwritable` when the disk is full: the damaged store
    is then still in place.
    """
    source = _whole_name(directory)
    backup = newest_whole_backup(directory)
    saved = Saved(has_lost_log=has_lost_log(directory))
    try:
        salvage(source, fresh, saved)
    except StoreUnwritable:
        raise  # no room for what could be read: the damaged store stays, to be retried
    except (StoreError, OSError, *UNREADABLE):
        pass
    restored = 0
    if backup is not None and not saved.is_complete:
        # If all tasks could be read, what the store lacks was deleted, and stays deleted.
        restored = fill_in(fresh, backup, "tasks" in saved.unread or saved.has_lost_log)
    fresh.close()
    if Path(f"{fresh.database.path}-wal").exists():
        # SQLite could not checkpoint the log, so that the rows are in the log alone.
        raise StoreUnwritable(
            f"what was saved of the damaged store cannot be written to {fresh.database.path}; the "
            "next command tries again, %bg_doctor says what to change"
        )
    make_durable(fresh.database.path)
    aside = _exchange(directory, source, fresh.database.path)
    return _in_words(aside, saved, backup, restored)


def _in_words(aside: Path, saved: Saved, backup: Path | None, restored: int) -> str:
    rescued = ", ".join(f"{count} {table}" for table, count in saved.rows.items() if count)
    said = (
        f"the store was damaged and has been set aside as {aside}; "
        f"saved from it: {rescued or 'nothing, it cannot be read'}"
    )
    if restored and backup is not None:
        rows = counted(restored, "row")
        said += f"; {rows} more from the backup {backup.name}"
    if saved.is_complete:
        return f"{said}. Nothing is missing"
    if saved.has_lost_log:
        said += ". Its log was cut while it was in use: what was in that alone is lost"
    return f"{said}. What could not be read is missing; %bg_list --all shows what is there"


def _whole_name(directory: StateDirectory) -> Path:
    """Return the name under which the damaged file is together with its log.

    A process may have been killed between renaming it and moving the new file into place.
    """
    aside = _aside(directory, "*")
    same = (file for file in aside.parent.glob(aside.name) if _is_same(file, directory.store))
    return next(same, directory.store)


def _is_same(file: Path, other: Path) -> bool:
    return identity_of(file) == identity_of(other)


def _aside(directory: StateDirectory, when: str) -> Path:
    return directory.store.with_name(f"{directory.store.stem}-damaged-{when}.db")


def _exchange(directory: StateDirectory, damaged: Path, fresh: Path) -> Path:
    """Rename the damaged file, and give its name to the new one, in one step."""
    aside = damaged
    if damaged == directory.store:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = _aside(directory, f"{stamp}-{time.time_ns() % 10**6}")
        # A second link, so that the name always exists: a process that finds no store creates one.
        try:
            aside.hardlink_to(damaged)
        except OSError:
            damaged.rename(aside)
        # The damaged file's log must not be taken for the new one's.
        move_log(damaged, aside)
    fresh.replace(directory.store)
    return aside


# Reading.


@dataclass
class Saved:
    """The content saved from a damaged store."""

    rows: dict[str, int] = field(default_factory=dict)
    """Number of rows by table."""
    unread: set[str] = field(default_factory=lambda: {*TABLES})
    """Tables that could not be read completely."""
    has_lost_log: bool = False
    """Whether missing content was in its log."""
    refused: int = 0
    """Number of rows that made no sense, or belong to a lost task."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return not (self.unread or self.refused or self.has_lost_log)


def salvage(damaged: Path, fresh: OpenStore, saved: Saved) -> None:
    """Copy every readable row into an empty store, under its old key."""
    open_it = _opened_to_the_cut if saved.has_lost_log else _opened_by_known_schema
    with ExitStack() as cleanup:
        source = cleanup.enter_context(closing(open_it(damaged, cleanup)))
        source.text_factory = lambda data: data.decode("utf-8", "replace")
        # Otherwise SQLite refuses a file that is shorter than its header says.
        source.execute("PRAGMA writable_schema = ON")
        source.execute("PRAGMA cell_size_check = ON")
        with _filling(fresh) as target:
            for table in TABLES:
                saved.rows[table] = _copy(source, target, table, saved)
            saved.refused += _make_up_owners(target)
            saved.refused += _drop_orphans(target)
            _keep_counters(source, target)
            target.execute(FILL_UIDS)
        if saved.has_lost_log:
            fresh.database.execute(INTERRUPT, (CUT_OFF, "presumed", 0))


@contextmanager
def _filling(fresh: OpenStore) -> Iterator[Any]:
    """Run a transaction that accepts rows in any order, with all triggers off."""
    fresh.database.execute("PRAGMA foreign_keys = OFF")
    try:
        with fresh.database.transaction() as target, without_triggers(target):
            yield target
    finally:
        fresh.database.execute("PRAGMA foreign_keys = ON")


def _copy(source: Any, target: Any, table: str, saved: Saved) -> int:
    there = _columns(source, table)
    columns = [name for name in _columns(target, table) if name in there]
    if not columns:
        return 0
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    copied = 0

    def take(values: Sequence[Any]) -> None:
        nonlocal copied
        row = _mended(table, dict(zip(columns, values, strict=True)))
        is_in = row is not None and _insert(target, insert, [*row.values()])
        copied += is_in
        saved.refused += not is_in

    if _read(source, table, columns, take):
        saved.unread.discard(table)
    return copied


def _read(
    source: Any, table: str, columns: Sequence[str], take: Callable[[Sequence[Any]], None]
) -> bool:
    """Read all readable rows, and return whether that is all.

    Reads from the front to the damage and from the end back to it, then likewise in both halves of
    the gap.
    """
    gaps, looks, is_whole = deque([(LOWEST, HIGHEST)]), 0, True
    while gaps and looks < LOOKS_AT_MOST:
        low, high = gaps.popleft()
        for order in ("ASC", "DESC"):
            looks += 1
            end = _read_range(source, (table, columns, order), low, high, take)
            if end is None:
                break
            is_whole = False
            low, high = (max(low, end), high) if order == "ASC" else (low, min(high, end))
        else:
            middle = (low + high) // 2
            if high - low > 1:
                gaps.extend(((low, middle + 1), (middle, high)) if middle > low else ())
    return is_whole


def _read_range(
    source: Any,
    what: tuple[str, Sequence[str], str],
    low: int,
    high: int,
    take: Callable[[Sequence[Any]], None],
) -> int | None:
    """Read the rows between two. Return None at their end, else the last one that was readable."""
    table, columns, order = what
    last = low if order == "ASC" else high
    query = f"""SELECT rowid, {", ".join(columns)} FROM {table} NOT INDEXED
        WHERE rowid > ? AND rowid < ? ORDER BY rowid {order}"""
    try:
        for row in source.execute(query, (low, high)):
            if not low < row[0] < high:
                return last  # the pages lead back to where it has been
            last = row[0]
            take(row[1:])
    except UNREADABLE:
        return last
    return None


def _columns(connection: Any, table: str) -> list[str]:
    try:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    except UNREADABLE:
        return []


def _mended(table: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row in a form that this package can read; None when it holds nothing useful."""
    defaults = JSON.get(table, {})
    mended = {
        name: defaults[name] if name in defaults and not _is_json(value, defaults[name]) else value
        for name, value in row.items()
    }
    for name in TIMES.get(table, ()):
        if isinstance(at := row.get(name), float) and not 0 <= at < YEAR_2200_S:
            mended[name] = _another_time(row, TIMES[table])
    name, known = ENUMERATIONS.get(table, ("", frozenset()))
    return None if known and row.get(name) not in known else mended


def _is_json(text: Any, instead: str | None) -> bool:
    if text is None:
        return instead is None
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return instead is None or type(found) is type(json.loads(instead))


def _another_time(row: Mapping[str, Any], names: Sequence[str]) -> float:
    """Return a plausible time from the same row in place of an impossible one."""
    times = (row.get(name) for name in names)
    return next((at for at in times if isinstance(at, float) and 0 <= at < YEAR_2200_S), 0.0)


def _insert(target: Any, insert: str, row: Sequence[Any]) -> int:
    try:
        return int(target.execute(insert, row).rowcount)
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError):
        return 0  # a damaged value that the schema refuses


def _make_up_owners(target: Any) -> int:
    """Create the missing sessions and notebooks of tasks, which are worth keeping without them.

    Returns how many were created.
    """
    sessions = target.execute(
        """INSERT INTO sessions (id, notebook_key, path, has_path, front_end, host, pid,
            process_start, boot_id, started_at, heartbeat_at, ended_at, end_reason)
        SELECT session_id, min(notebook_key), '', 0, 'program', '', 0, '', '', min(created_at),
            max(created_at), max(created_at), 'not known: the store was damaged'
        FROM tasks WHERE session_id NOT IN (SELECT id FROM sessions) GROUP BY session_id"""
    ).rowcount
    notebooks = target.execute(
        """INSERT INTO notebooks (key, path, created_at)
        SELECT notebook_key, '', min(at) FROM
            (SELECT notebook_key, created_at AS at FROM tasks
             UNION ALL SELECT notebook_key, started_at FROM sessions)
        WHERE notebook_key NOT IN (SELECT key FROM notebooks) GROUP BY notebook_key"""
    ).rowcount
    return int(sessions + notebooks)


def _drop_orphans(target: Any) -> int:
    """Remove what belongs to unreadable tasks. Return how many rows those were."""
    dropped = 0
    for table in BELONGING:
        query = f"DELETE FROM {table} WHERE task_key NOT IN (SELECT key FROM tasks)"
        dropped += target.execute(query).rowcount
    for query in (
        # A task that waits for one that is lost would wait for ever.
        """UPDATE tasks SET doomed_by = 0 WHERE state = 'pending' AND key IN (
            SELECT task_key FROM dependencies WHERE on_key NOT IN (SELECT key FROM tasks))""",
        "DELETE FROM dependencies WHERE task_key NOT IN (SELECT key FROM tasks)",
        "UPDATE tasks SET rerun_of = NULL WHERE rerun_of NOT IN (SELECT key FROM tasks)",
        "DELETE FROM supervisors WHERE session_id NOT IN (SELECT id FROM sessions)",
        """UPDATE processes SET supervisor_key = NULL
            WHERE supervisor_key NOT IN (SELECT key FROM supervisors)""",
    ):
        dropped += target.execute(query).rowcount
    return dropped


def _keep_counters(source: Any, target: Any) -> None:
    """Keep notebooks and tables from reusing numbers and keys that the damaged file had given.

    A damaged counter is ignored if it would exhaust the numbers.
    """
    with suppress(*UNREADABLE):
        for name, last in source.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
            raise_counter(target, name, last)
    target.execute(
        """UPDATE notebooks SET last_number = max(last_number, coalesce(
            (SELECT max(number) FROM tasks WHERE notebook_key = notebooks.key), 0))"""
    )


def raise_counter(target: Any, table: str, last: Any) -> None:
    """Keep a table from giving a key that is not higher than this."""
    if not isinstance(last, int) or not 0 <= last < HIGHEST:
        return
    target.execute(
        """INSERT INTO sqlite_sequence (name, seq) SELECT ?1, 0
        WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)""",
        (table,),
    )
    target.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table))
