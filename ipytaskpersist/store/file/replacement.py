"""Switch to another file when the open one, or its log, was removed, moved or replaced.

The open file can still be read, but no other process will ever see it. Whatever belongs to this
process's session and has not ended is copied into the file that is now at the store's path, under
the keys that this process knows. What another process has copied before is completed. From then on
this process writes there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store.file.database import Database, Retired, sqlite3
from ipytaskpersist.store.file.locks import exclusive, one_at_a_time
from ipytaskpersist.store.file.migrations import without_triggers
from ipytaskpersist.store.file.open_store import OpenStore
from ipytaskpersist.store.file.repair import UNREADABLE, raise_counter
from ipytaskpersist.store.file.sidecars import Identity, identity_of, log_of, move_log
from ipytaskpersist.text.formatting import counted

READ_AT_ONCE = 64
SAME_OUTPUT = ("kind", "at", "first_byte", "size_bytes")
"""Columns that distinguish the pieces of a task's output."""
PROGRESSED = (
    *("state", "reason", "exit_code", "started_at", "ended_at", "output_bytes", "dropped_bytes"),
    *("progress", "post_mortem", "declared_dead"),
)
"""Columns of a task's row that its owner changes while it runs."""


@dataclass
class Carried:
    """The tasks carried from the old file into the new one."""

    tasks: int = 0
    left: int = 0
    """Number of tasks left behind because other tasks have their places."""


def succeed(store: OpenStore, since: float) -> str:
    """Switch to the file at the store's path, and return what to say about it.

    `since` is a time at which the old file was certainly in place: tasks that ended later are
    carried over, too. Raises `StoreError` when there is no room for a new file; the old one is kept
    until there is.
    """
    database = store.database
    old = database.retire()
    try:
        is_there = identity_of(database.path) == old.identity
        if is_there and old.has_lost_log:
            said = _renew(store, old, since)
        elif is_there or not store.session_id:
            said = ""  # it is back, or holds nothing of this process
            store.forget()
        else:
            said = _move(store, old, since)
    except BaseException:
        database.hold()
        raise
    database.go_on()
    return said


def _renew(store: OpenStore, old: Retired, since: float) -> str:
    """Replace a store that has lost its log with a full copy, and switch to that.

    Only a process that has the log open still knows what is in it.
    """
    path = store.database.path
    with one_at_a_time(store.directory):
        is_first = identity_of(path) == old.identity
        if is_first:
            copy = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
            store.write_copy(old.connection, copy)
            store.database.leave_mark()  # keeps other processes from opening it meanwhile
            move_log(path, path.with_name(f"{path.stem}-left-{time.time_ns()}.db"))
            copy.replace(path)
            store.directory.damage_mark.unlink(missing_ok=True)
    if not is_first:
        return _move(store, old, since)  # another process has done this already, or has repaired it
    store.begin_anew()
    _carry(old.connection, store.database, store.session_id, since, Carried())
    return (
        f"the log of the store {path} was removed while this session used it; all that it held is "
        "in a new store in its place"
    )


def _move(store: OpenStore, old: Retired, since: float) -> str:
    now = _file_of(store.directory, old.identity)
    if now is not None and not store.database.exists:
        move_log(store.database.path, now)  # renaming a store by hand leaves these files behind
    store.begin_anew()
    store.require_writable()
    carried = Carried()
    if old.connection is not None:
        _carry(old.connection, store.database, store.session_id, since, carried)
    # Without its log a renamed file lacks part of what was written to it.
    is_left = now is not None and (store.database.is_shared_by_hosts or log_of(now).exists())
    rescued = None if is_left or old.connection is None else _rescue(store, old)
    return _in_words(store.database.path, carried, now, rescued)


def _file_of(directory: StateDirectory, identity: Identity | None) -> Path | None:
    """Return the old file's present name, if it is in the state directory."""
    found = (file for file in directory.root.glob("*.db") if identity_of(file) == identity)
    return next(found, None)


def _rescue(store: OpenStore, old: Retired) -> Path | None:
    """Back up everything in a removed file, once for all processes that had it open."""
    assert old.identity is not None
    why = f"removed-{old.identity[1]}"
    with exclusive(store.directory.upkeep_lock, "the store is being put in order"):
        known = next(store.directory.backups.glob(f"*-{why}.db"), None)
        if known is not None:
            return known
        try:
            target = store.new_backup(why)
            store.write_copy(old.connection, target)
        except (StoreError, OSError):
            return None  # no room, or it is damaged
        return target


def _in_words(path: Path, carried: Carried, now: Path | None, rescued: Path | None) -> str:
    if now is not None:
        said = f"the store {path} was replaced while this session used it, and is now {now}"
    else:
        said = f"the store {path} was removed while this session used it"
    tasks = counted(carried.tasks, "task")
    said += f"; this session goes on in the one that is there now, with {tasks} of its own"
    if carried.left:
        said += (
            f", without {carried.left} whose place another task has: what they print from now on "
            "is not kept, run them again"
        )
    if rescued is not None:
        said += f". All that it held is saved: %bg_restore {rescued} brings it back"
    elif now is None:
        said += ". What else it held is lost"
    return said


# Copying from one file to the other.


def _carry(old: Any, new: Database, session_id: str, since: float, carried: Carried) -> None:
    with new.errors(), new.transaction() as target, without_triggers(target):
        _raise_counters(old, target)
        notebook = _carry_session(old, target, session_id)
        supervisors = _carry_supervisors(old, target, session_id)
        for row in _read(old, "SELECT * FROM groups"):
            _insert(target, "groups", row, "INSERT OR IGNORE")
        for row in _own_tasks(old, session_id, since):
            if _carry_task(target, row, notebook):
                carried.tasks += 1
                _carry_belongings(old, target, row["key"], supervisors)
            else:
                carried.left += 1


def _read(connection: Any, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return the rows of a query as dictionaries, as far as they can be read."""
    found: list[dict[str, Any]] = []
    with suppress(*UNREADABLE):
        cursor = connection.execute(query, parameters)
        names = [column[0] for column in cursor.description]
        found.extend(dict(zip(names, row, strict=True)) for row in cursor)
    return found


def _insert(target: Any, table: str, row: Mapping[str, Any], verb: str = "INSERT") -> int:
    # Either file may be from a newer version, which has additional columns.
    known = {name for _place, name, *_ in target.execute(f"PRAGMA table_info({table})")}
    row = {name: value for name, value in row.items() if name in known}
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    cursor = target.execute(f"{verb} INTO {table} ({names}) VALUES ({marks})", [*row.values()])
    return int(cursor.rowcount)


def _raise_counters(old: Any, target: Any) -> None:
    """Never reuse a key that the old file has given: other processes still know tasks by theirs."""
    for row in _read(old, "SELECT name, seq FROM sqlite_sequence"):
        raise_counter(target, row["name"], row["seq"])


def _carry_session(old: Any, target: Any, session_id: str) -> int | None:
    """Copy the session and its notebook if they are missing. Return the notebook's new key."""
    sessions = _read(old, "SELECT * FROM sessions WHERE id = ?", (session_id,))
    for session in sessions:
        query = "SELECT path, last_number, created_at, uid FROM notebooks WHERE key = ?"
        for notebook in _read(old, query, (session["notebook_key"],)):
            known = "SELECT key FROM notebooks WHERE uid = ?"
            if target.execute(known, (notebook["uid"],)).fetchone() is None:
                _insert(target, "notebooks", notebook)
            target.execute(
                "UPDATE notebooks SET last_number = max(last_number, ?) WHERE uid = ?",
                (notebook["last_number"], notebook["uid"]),
            )
            (key,) = target.execute(known, (notebook["uid"],)).fetchone()
            _insert(target, "sessions", {**session, "notebook_key": key}, "INSERT OR IGNORE")
    found = target.execute(
        "SELECT notebook_key FROM sessions WHERE id = ?", (session_id,)
    ).fetchone()
    return None if found is None else int(found[0])


def _carry_supervisors(old: Any, target: Any, session_id: str) -> dict[int, int]:
    """Copy the session's live supervisors. Return the key of each in the new file."""
    keys = {}
    query = "SELECT * FROM supervisors WHERE session_id = ? AND ended_at IS NULL"
    for row in _read(old, query, (session_id,)):
        same = (row["pid"], row["process_start"], row["boot_id"], row["pid_namespace"])
        known = """SELECT key FROM supervisors WHERE pid = ? AND process_start = ?
            AND boot_id = ? AND pid_namespace IS ?"""
        if target.execute(known, same).fetchone() is None:
            is_taken = target.execute(
                "SELECT 1 FROM supervisors WHERE key = ?", (row["key"],)
            ).fetchone()
            _insert(target, "supervisors", {**row, "key": None if is_taken else row["key"]})
        (keys[row["key"]],) = target.execute(known, same).fetchone()
    return keys


def _own_tasks(old: Any, session_id: str, since: float) -> list[dict[str, Any]]:
    query = """SELECT * FROM tasks WHERE session_id = ?
        AND (state IN ('pending', 'running') OR ended_at >= ?) ORDER BY key"""
    return _read(old, query, (session_id, since))


def _carry_task(target: Any, row: Mapping[str, Any], notebook: int | None) -> bool:
    """Copy a task's row, or what has changed in it. Return False when its place is taken."""
    known = target.execute("SELECT key FROM tasks WHERE id = ?", (row["id"],)).fetchone()
    if known is None:
        new = {**row, "notebook_key": notebook, "rerun_of": None}
        try:
            return bool(_insert(target, "tasks", new))
        except sqlite3.IntegrityError:
            return False
    if known[0] != row["key"]:
        return False
    # The old file's row may be the older one: the task's owner may have been here before.
    changes = ", ".join(f"{name} = ?" for name in PROGRESSED)
    target.execute(
        f"""UPDATE tasks SET {changes},
            cancel_requested_at = coalesce(cancel_requested_at, ?)
        WHERE key = ? AND (state = 'pending' OR (state = 'running' AND ? <> 'pending'))""",
        [
            *(row[name] for name in PROGRESSED),
            *(row["cancel_requested_at"], row["key"], row["state"]),
        ],
    )
    return True


def _carry_belongings(old: Any, target: Any, key: int, supervisors: Mapping[int, int]) -> None:
    _append_missing(old, target, "events", key, "key", ("state", "at"))
    _append_missing(old, target, "outputs", key, "sequence", SAME_OUTPUT)
    for row in _read(old, "SELECT * FROM results WHERE task_key = ?", (key,)):
        _insert(target, "results", {**row, "key": None}, "INSERT OR IGNORE")
    for row in _read(old, "SELECT * FROM tags WHERE task_key = ?", (key,)):
        _insert(target, "tags", row, "INSERT OR IGNORE")
    for row in _read(old, "SELECT * FROM dependencies WHERE task_key = ?", (key,)):
        _insert(target, "dependencies", {**row, "key": None}, "INSERT OR IGNORE")
    for row in _read(old, "SELECT * FROM processes WHERE task_key = ?", (key,)):
        row["supervisor_key"] = supervisors.get(row["supervisor_key"])
        _insert(target, "processes", row, "INSERT OR IGNORE")
        target.execute(
            """UPDATE processes SET supervisor_key = coalesce(supervisor_key, ?),
                pid = coalesce(pid, ?), process_start = coalesce(process_start, ?),
                pid_namespace = coalesce(pid_namespace, ?)
            WHERE task_key = ?""",
            (
                *(row["supervisor_key"], row["pid"], row["process_start"]),
                *(row["pid_namespace"], key),
            ),
        )


def _append_missing(
    old: Any, target: Any, table: str, task_key: int, place: str, same: Sequence[str]
) -> None:
    """Append those of a task's rows that the new file lacks, under new keys."""
    names = ", ".join(same)
    query = f"SELECT {names} FROM {table} WHERE task_key = ?"
    there = set(map(tuple, target.execute(query, (task_key,))))
    for row in _in_order(old, table, task_key, place):
        if tuple(row[name] for name in same) not in there:
            _insert(target, table, {**row, place: None})


def _in_order(old: Any, table: str, task_key: int, place: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a task, a few at a time."""
    after = -1
    while True:
        rows = _read(
            old,
            f"""SELECT * FROM {table} WHERE task_key = ? AND {place} > ?
            ORDER BY {place} LIMIT {READ_AT_ONCE}""",
            (task_key, after),
        )
        yield from rows
        if len(rows) < READ_AT_ONCE:
            return
        after = rows[-1][place]
