"""Save what can be read of a damaged store.

A new store is made beside the damaged one. Every row that can still be read is copied into it;
what the damaged one had and cannot give any more comes from the newest backup that is whole. Then
the new store takes the damaged one's name, which is kept under another.
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
from typing import TYPE_CHECKING, Any

from ipytaskpersist.errors import StoreError, StoreUnwritable
from ipytaskpersist.paths import StateDirectory, make_durable
from ipytaskpersist.records import OutputKind, TaskState
from ipytaskpersist.store.database import sqlite3
from ipytaskpersist.store.files import (
    LOST_LOG,
    identity_of,
    log_of,
    move_log,
    read_options,
    was_log_cut,
)
from ipytaskpersist.store.migrations import FILL_UIDS, STEPS, migrate, without_triggers

if TYPE_CHECKING:
    from ipytaskpersist.store import TaskStore

TABLES = (
    *("notebooks", "sessions", "supervisors", "tasks", "events", "outputs", "results"),
    *("processes", "tags"),
)
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises where it meets damage: a message of its own may be no UTF-8."""
BELONGING = ("events", "outputs", "results", "processes", "tags")
SUFFIXES = ("", "-wal", "-shm")
LOWEST, HIGHEST = -1, 2**62
LOOKS = 20_000
"""How often is looked for more of one table where some of it could not be read."""
CUT_OFF = "not known: the store lost its log"
INTERRUPT = """UPDATE tasks SET state = 'interrupted', reason = ?, declared_dead = 'presumed',
    ended_at = max(created_at, coalesce(started_at, 0)) WHERE state IN ('pending', 'running')"""
"""What became of a task may have been in the log. The owner of one that runs takes it back."""
YEAR_2200_S = 7_258_118_400.0
JSON: dict[str, dict[str, str | None]] = {
    "tasks": {"provenance": "{}", "progress": None, "notify": None, "post_mortem": None},
    "processes": {"command": "[]", "environment": "{}", "options": "{}"},
}
"""The columns that hold JSON, with what stands for what cannot be read."""
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
"""A column that has one of a few values, where the schema does not say which."""


def backups(directory: StateDirectory) -> list[Path]:
    """The copies of a store that there are, the newest first."""
    found = directory.backups.glob(f"{directory.store.stem}-*.db")
    return sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)


def newest_whole_backup(directory: StateDirectory) -> Path | None:
    """The newest backup that is whole."""
    for backup in backups(directory):
        if is_whole(backup):
            return backup
    return None


def is_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a file, and all of its rows can be read."""
    try:
        with closing(_opened(path)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
            return (
                found
                and _has_its_schema(connection)
                and all(_can_be_read(connection, table) for table in TABLES)
            )
    except UNREADABLE:
        return False


def has_lost_log(directory: StateDirectory) -> bool:
    """Whether the log of a store that was found damaged was cut, or its mark says so."""
    with suppress(OSError):
        if directory.damage_mark.read_bytes().startswith(LOST_LOG):
            return True
    return was_log_cut(directory.store)


def _has_its_schema(connection: Any) -> bool:
    """Whether there is all that a store of this version has. One of another is not known."""
    if connection.execute("PRAGMA user_version").fetchone()[0] != len(STEPS):
        return True
    with closing(sqlite3.connect(":memory:")) as reference:
        migrate(reference)
        return _schema(reference) <= _schema(connection)


def _schema(connection: Any) -> set[tuple[str, str]]:
    """Tables, indexes and triggers by their names, and columns by those of their tables."""
    names = {("", name) for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    columns = {(table, name) for table in TABLES for name in _columns(connection, table)}
    return columns | {each for each in names if not each[1].startswith(("sqlite_", "_sqlite"))}


def _opened(path: Path, _cleanup: ExitStack | None = None) -> Any:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{read_options(path)}", uri=True)


def _opened_to_the_cut(path: Path, cleanup: ExitStack) -> Any:
    """A copy of a file with what its log has up to a cut. The index still speaks of what is gone.

    To read the file drops this process's locks on it, which it needs no longer.
    """
    copy = Path(cleanup.enter_context(_folder_beside(path))) / "copy.db"
    shutil.copyfile(path, copy)
    with suppress(FileNotFoundError):
        shutil.copyfile(log_of(path), log_of(copy))
    return sqlite3.connect(copy)


def _folder_beside(path: Path) -> TemporaryDirectory[str]:
    return TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part")


def _can_be_read(connection: Any, table: str) -> bool:
    """Whether every row of a table says what this package can understand."""
    columns = [name for name in _columns(connection, table) if name != "data"]
    if not columns:
        return True  # a store of an earlier version has fewer
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
    return all(_mended(table, row := dict(zip(columns, each, strict=True))) == row for each in rows)


# One in the place of the other.


def replace(
    directory: StateDirectory, fresh: TaskStore, fill_in: Callable[[TaskStore, Path, bool], int]
) -> str:
    """Put a store with all that can be saved in the place of a damaged one.

    Returns what is to be said. `fresh` is an empty store in a file beside it, which is used up;
    `fill_in` adds what a backup has and it does not. A crash at any moment leaves either
    store complete under the name, and the mark of the damage. Raises `StoreUnwritable` where the
    disk takes no more: the damaged store is in its place then.
    """
    source = _whole_name(directory)
    backup = newest_whole_backup(directory)
    saved = Saved(has_lost_log=has_lost_log(directory))
    try:
        salvage(source, fresh, saved)
    except StoreUnwritable:
        raise  # what could be read has no room: the damaged one stays, and is tried again
    except (StoreError, OSError, *UNREADABLE):
        pass
    restored = 0
    if backup is not None and not saved.is_complete:
        # What a store does not have whose tasks could all be read was deleted, and stays so.
        restored = fill_in(fresh, backup, "tasks" in saved.unread or saved.has_lost_log)
    fresh.close()
    if Path(f"{fresh.database.path}-wal").exists():
        # SQLite could not copy the log into the file, whose rows are in the log alone then.
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
        rows = "1 row" if restored == 1 else f"{restored} rows"
        said += f"; {rows} more from the backup {backup.name}"
    if saved.is_complete:
        return f"{said}. Nothing is missing"
    if saved.has_lost_log:
        said += ". Its log was cut while it was in use: what was in that alone is lost"
    return f"{said}. What could not be read is missing; %bg_list --all shows what is there"


def _whole_name(directory: StateDirectory) -> Path:
    """The damaged file by the name that it has together with its log.

    Somebody may have been killed between giving it another name and putting one in its place.
    """
    aside = _aside(directory, "*")
    same = (file for file in aside.parent.glob(aside.name) if _is_same(file, directory.store))
    return next(same, directory.store)


def _is_same(file: Path, other: Path) -> bool:
    return identity_of(file) == identity_of(other)


def _aside(directory: StateDirectory, when: str) -> Path:
    return directory.store.with_name(f"{directory.store.stem}-damaged-{when}.db")


def _exchange(directory: StateDirectory, damaged: Path, fresh: Path) -> Path:
    """Give the damaged file another name, and its own to the new one, in one step."""
    aside = damaged
    if damaged == directory.store:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = _aside(directory, f"{stamp}-{time.time_ns() % 10**6}")
        # A second name, so that there is never none: who finds no store would begin another.
        try:
            aside.hardlink_to(damaged)
        except OSError:
            damaged.rename(aside)
        # What another file's log says must not be taken for the new one's.
        move_log(damaged, aside)
    fresh.replace(directory.store)
    return aside


# What can be read.


@dataclass
class Saved:
    """What came over from a damaged store."""

    rows: dict[str, int] = field(default_factory=dict)
    """How many of each table."""
    unread: set[str] = field(default_factory=lambda: {*TABLES})
    """The tables of which something could not be read."""
    has_lost_log: bool = False
    """Whether what is not there to be read any more was in its log."""
    refused: int = 0
    """How many rows made no sense, or belong to a task that is lost."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return not (self.unread or self.refused or self.has_lost_log)


def salvage(damaged: Path, fresh: TaskStore, saved: Saved) -> None:
    """Copy every row that can be read into an empty store, under the key that it had."""
    open_it = _opened_to_the_cut if saved.has_lost_log else _opened
    with ExitStack() as cleanup:
        source = cleanup.enter_context(closing(open_it(damaged, cleanup)))
        source.text_factory = lambda data: data.decode("utf-8", "replace")
        # Without it SQLite refuses a file that is shorter than its header says.
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
            fresh.database.execute(INTERRUPT, (CUT_OFF,))


@contextmanager
def _filling(fresh: TaskStore) -> Iterator[Any]:
    """A transaction in which rows may come in any order, and nothing happens because they come."""
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
    """Read all rows that can be: from the front to the damage, from the end back to it, and so on
    with both halves of what is between. Returns whether that is all.
    """
    gaps, looks, is_whole = deque([(LOWEST, HIGHEST)]), 0, True
    while gaps and looks < LOOKS:
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
    """Read the rows between two; returns None at their end, else the last that could be read."""
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
    """The row as this package can read it; None for what says nothing."""
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
    """A time that is near the one that cannot be: another of the same row."""
    times = (row.get(name) for name in names)
    return next((at for at in times if isinstance(at, float) and 0 <= at < YEAR_2200_S), 0.0)


def _insert(target: Any, insert: str, row: Sequence[Any]) -> int:
    try:
        return int(target.execute(insert, row).rowcount)
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError):
        return 0  # a damaged value that the schema refuses


def _make_up_owners(target: Any) -> int:
    """A task whose session or notebook cannot be read is still worth having.

    Returns how many had to be made up.
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
    """Remove what belongs to tasks that could not be read. Returns how many rows that were."""
    dropped = 0
    for table in BELONGING:
        query = f"DELETE FROM {table} WHERE task_key NOT IN (SELECT key FROM tasks)"
        dropped += target.execute(query).rowcount
    for query in (
        "UPDATE tasks SET rerun_of = NULL WHERE rerun_of NOT IN (SELECT key FROM tasks)",
        "DELETE FROM supervisors WHERE session_id NOT IN (SELECT id FROM sessions)",
        """UPDATE processes SET supervisor_key = NULL
            WHERE supervisor_key NOT IN (SELECT key FROM supervisors)""",
    ):
        dropped += target.execute(query).rowcount
    return dropped


def _keep_counters(source: Any, target: Any) -> None:
    """No notebook gives a number again, and no key is given again, that the damaged file knew of.

    A damaged counter is not believed where that would make an end of counting.
    """
    with suppress(*UNREADABLE):
        for name, last in source.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
            raise_counter(target, name, last)
    target.execute(
        """UPDATE notebooks SET last_number = max(last_number, coalesce(
            (SELECT max(number) FROM tasks WHERE notebook_key = notebooks.key), 0))"""
    )


def raise_counter(target: Any, table: str, last: Any) -> None:
    """Have a table give no key that is not higher than this."""
    if not isinstance(last, int) or not 0 <= last < HIGHEST:
        return
    target.execute(
        """INSERT INTO sqlite_sequence (name, seq) SELECT ?1, 0
        WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)""",
        (table,),
    )
    target.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table))
