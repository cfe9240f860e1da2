"""The groups with their widths, and the tasks that wait: for each other, for a time, for room.

The process that claims a task decides, in the transaction that claims it (`store.claiming`). So the
widths hold across all notebooks and terminals of a user, without a daemon. A task that has to wait
blocks only the tasks behind it in its own group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.records import DEFAULT_GROUP
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.store.booking import Booking, Machine, bookings_on, is_anything_asked
from ipytaskpersist.store.claiming import ORDER, ready, width_left
from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import DEMANDING, IN_SLOT, TO_PAUSE
from ipytaskpersist.store.occurrences import leave_out_missed

OK, FAILED, ANY = CONDITIONS = ("ok", "failed", "any")
"""How another task has to end: completed, in any other way, or in any way at all."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another task that has to end before a task may start."""

    key: int
    """Row of that task."""
    condition: str = OK
    """One of `CONDITIONS`."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a new task waits for before it starts."""

    group: str = DEFAULT_GROUP
    priority: int = 0
    """Tasks of a higher priority start first."""
    after: Sequence[Dependency] = ()
    due_at: float | None = None
    """Time before which it does not start, in seconds since the epoch."""
    demands: Demands = field(default_factory=Demands)
    """What it needs of the machine."""

    @property
    def columns(self) -> dict[str, Any]:
        """The task's columns of `tasks`."""
        return {
            "group_name": self.group,
            "priority": self.priority,
            "due_at": self.due_at,
            "waits_for": 0 if self.due_at is None else 1,
            **self.demands.columns,
        }


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Tasks that share a width."""

    name: str
    width: int | None
    """How many of them run at once; None for any number."""
    is_paused: bool
    """Whether none of them starts."""
    running: int
    pending: int


def add_dependencies(connection: Any, key: int, after: Sequence[Dependency]) -> None:
    """Have a new task wait for others, in the transaction that records it."""
    for dependency in after:
        (state,) = connection.execute(
            "SELECT state FROM tasks WHERE key = ?", (dependency.key,)
        ).fetchone() or (None,)
        if state is None:
            raise InvalidRequest("a task to wait for was just deleted; nothing was launched")
        has_ended = state not in ("pending", "running")
        if has_ended and dependency.condition in (ANY, OK if state == "completed" else FAILED):
            continue
        connection.execute(
            """UPDATE tasks SET waits_for = waits_for + 1, doomed_by = coalesce(doomed_by, ?)
            WHERE key = ?""",
            (dependency.key if has_ended else None, key),
        )
        if not has_ended:
            connection.execute(
                "INSERT INTO dependencies (task_key, on_key, condition) VALUES (?, ?, ?)",
                (key, dependency.key, dependency.condition),
            )


def settle(connection: Any, session_id: str, at: float) -> None:
    """Let go the tasks whose time has come, and cancel those that can never start.

    Tasks with a schedule only of this session: whether their time was missed depends on when the
    session's own supervisor sees it. A cancelled task may keep others from ever starting; so this
    goes on through the whole chain.
    """
    if not connection.execute(IS_UNSETTLED, (at, session_id)).fetchone()[0]:
        return
    leave_out_missed(connection, session_id, at)
    connection.execute(
        """UPDATE tasks INDEXED BY tasks_due SET waits_for = waits_for - 1, due_at = NULL
        WHERE due_at <= ? AND state = 'pending' AND (schedule IS NULL OR session_id = ?)""",
        (at, session_id),
    )
    while connection.execute(CANCEL_DOOMED, (at,)).rowcount > 0:
        pass


IS_UNSETTLED = """SELECT EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_due
        WHERE due_at <= ? AND state = 'pending' AND (schedule IS NULL OR session_id = ?))
    OR EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_doomed
        WHERE doomed_by IS NOT NULL AND state = 'pending')"""
"""Whether `settle` would do anything."""
CANCEL_DOOMED = """UPDATE tasks SET state = 'cancelled', notify = NULL,
    ended_at = max(?, created_at),
    reason = coalesce((
        SELECT 'task ' || cause.number || iif(cause.name = '', '', ' (' || cause.name || ')')
            || iif(cause.state IN ('failed', 'completed'), ' ', ' was ') || cause.state
        FROM tasks AS cause WHERE cause.key = tasks.doomed_by), 'the task it waited for is lost')
    WHERE key IN (SELECT key FROM tasks INDEXED BY tasks_doomed
        WHERE doomed_by IS NOT NULL AND state = 'pending')"""


IS_PAUSED = "SELECT 1 FROM groups WHERE name = ? AND paused_at IS NOT NULL"
PRIORITIES_BESIDE = """SELECT max(priority), min(priority) FROM tasks WHERE state = 'pending'
    AND group_name = (SELECT group_name FROM tasks WHERE key = ?)"""
"""The highest and the lowest priority of the tasks that wait in a task's group."""
MOVE_FIRST = """UPDATE tasks SET priority = ?2, place = coalesce((
        SELECT min(coalesce(other.place, other.key)) - 1 FROM tasks AS other
        WHERE other.state = 'pending' AND other.group_name = tasks.group_name
        AND other.priority = ?2 AND other.key <> tasks.key), key)
    WHERE key = ?1 AND state = 'pending'"""
MOVE_LAST = """UPDATE tasks SET priority = ?2, place = coalesce((
        SELECT max(coalesce(other.place, other.key)) + 1 FROM tasks AS other
        WHERE other.state = 'pending' AND other.group_name = tasks.group_name
        AND other.priority = ?2 AND other.key <> tasks.key), key)
    WHERE key = ?1 AND state = 'pending'"""


class Queue:
    """The groups, and the tasks that wait."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def may_claim(
        self, session_id: str, runner: str, at: float, machine: Machine | None = None
    ) -> bool:
        """Return whether `claim` would do anything now. Reads only."""
        with self._database.errors():
            connection = self._database.connection
            row = connection.execute(IS_UNSETTLED, (at, session_id)).fetchone()
            found = ready(connection, session_id, runner, 1, machine)
            return bool(row[0] or found.keys or found.lacks)

    def asks_for_gpus(self, session_id: str) -> bool | None:
        """Return whether any task that might start needs a GPU.

        None if none of the session needs any part of the machine.
        """
        with self._database.errors():
            connection = self._database.connection
            if not is_anything_asked(connection, session_id):
                return None
            query = f"""SELECT max(gpus IS NOT NULL) FROM tasks INDEXED BY tasks_demanding
                WHERE {DEMANDING}"""
            return bool(connection.execute(query).fetchone()[0])

    def bookings_on(self, host: str) -> list[Booking]:
        """Return what the running tasks of a machine have booked."""
        with self._database.errors():
            return bookings_on(self._database.connection, host)

    def claim_for_threads(self, session_id: str, at: float) -> int | None:
        """Set the next task of a session's threads running. Return its key; None for none."""
        with self._database.transaction() as connection:
            settle(connection, session_id, at)
            for key in ready(connection, session_id, "thread", 1).keys:
                set_running(connection, key, at)
                return key
        return None

    def next_due(self, session_id: str) -> float | None:
        """Return the time for which the session's tasks wait; None if none waits for a time."""
        row = self._database.row(
            """SELECT min(due_at) FROM tasks INDEXED BY tasks_due
            WHERE due_at IS NOT NULL AND state = 'pending' AND session_id = ?""",
            (session_id,),
        )
        return None if row is None or row[0] is None else float(row[0])

    def is_blocked(self, session_id: str) -> bool:
        """Return whether a process task of the session waits for more than a time."""
        row = self._database.row(
            """SELECT 1 FROM tasks INDEXED BY tasks_pending WHERE session_id = ?
            AND state = 'pending' AND runner = 'process' AND due_at IS NULL LIMIT 1""",
            (session_id,),
        )
        return row is not None

    # Pauses.

    def request_pause(self, key: int, *, keep_slot: bool) -> bool:
        """Have a running task paused. Return whether it was running."""
        cursor = self._database.write(
            """UPDATE tasks SET pause_requested = 1, keeps_slot = ?
            WHERE key = ? AND state = 'running'""",
            (keep_slot, key),
        )
        return bool(cursor.rowcount)

    def request_continue(self, key: int) -> bool:
        """Have a paused task continued as soon as its group has room. Return whether it runs."""
        cursor = self._database.write(
            "UPDATE tasks SET pause_requested = 0 WHERE key = ? AND state = 'running'", (key,)
        )
        return bool(cursor.rowcount)

    def to_pause(self, session_id: str) -> list[tuple[int, bool]]:
        """Return the keys of a session's tasks to pause (True) or to continue (False)."""
        rows = self._database.rows(
            f"""SELECT key, pause_requested FROM tasks INDEXED BY tasks_to_pause
            WHERE session_id = ? AND {TO_PAUSE} ORDER BY key""",
            (session_id,),
        )
        return [(key, bool(is_pause)) for key, is_pause in rows]

    def paused(self, key: int, at: float) -> None:
        """Record that a task's processes are stopped."""
        self._database.write(
            "UPDATE tasks SET paused_at = ? WHERE key = ? AND state = 'running'", (at, key)
        )

    def may_continue(self, key: int, at: float) -> bool:
        """Give a paused task its slot back, if there is room. Return whether it may go on."""
        with self._database.transaction() as connection:
            row = connection.execute(
                """SELECT group_name, keeps_slot FROM tasks
                WHERE key = ? AND state = 'running' AND paused_at IS NOT NULL""",
                (key,),
            ).fetchone()
            if row is None or (not row[1] and width_left(connection, row[0]) == 0):
                return False
            connection.execute(
                """UPDATE tasks SET paused_s = paused_s + max(0, ?1 - paused_at), paused_at = NULL
                WHERE key = ?2""",
                (at, key),
            )
        return True

    # Groups.

    def groups(self) -> list[GroupRecord]:
        """Return all groups by name: those with a row of their own, and those of live tasks."""
        counts: dict[str, dict[str, int]] = {DEFAULT_GROUP: {}}
        for name, state, count in self._database.rows(
            """SELECT group_name, state, count(*) FROM tasks
            WHERE state IN ('pending', 'running') GROUP BY group_name, state"""
        ):
            counts.setdefault(name, {})[state] = count
        rows = self._database.rows("SELECT name, width, paused_at IS NOT NULL FROM groups")
        known = {name: (width, bool(is_paused)) for name, width, is_paused in rows}
        return [
            GroupRecord(
                name,
                *known.get(name, (None, False)),
                counts.get(name, {}).get("running", 0),
                counts.get(name, {}).get("pending", 0),
            )
            for name in sorted({*counts, *known})
        ]

    def is_paused(self, name: str) -> bool:
        """Return whether no task of a group starts."""
        return self._database.row(IS_PAUSED, (name,)) is not None

    def width(self, name: str) -> int | None:
        """Return how many tasks of a group run at once; None for any number."""
        row = self._database.row("SELECT width FROM groups WHERE name = ?", (name,))
        return None if row is None else row[0]

    def set_width(self, name: str, width: int | None) -> None:
        """Set how many tasks of a group run at once; None for any number."""
        self._database.write(
            """INSERT INTO groups (name, width) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET width = ?2""",
            (name, width),
        )

    def pause_group(self, name: str, at: float | None) -> None:
        """Let no more tasks of a group start; with None as the time, let them start again."""
        self._database.write(
            """INSERT INTO groups (name, paused_at) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET paused_at = ?2""",
            (name, at),
        )

    def delete_group(self, name: str) -> None:
        """Forget a group's width. The caller has checked that no live task is in it."""
        self._database.write("DELETE FROM groups WHERE name = ?", (name,))

    # The order.

    def next_keys(self, group: str, at_most: int) -> list[int]:
        """Return the pending tasks of a group in the order in which they start."""
        rows = self._database.rows(
            f"""SELECT key FROM tasks WHERE group_name = ? AND state = 'pending'
            ORDER BY waits_for > 0, {ORDER} LIMIT ?""",
            (group, at_most),
        )
        return [key for (key,) in rows]

    def keys_in_slots(self, group: str) -> list[int]:
        """Return the running tasks that take part of a group's width."""
        rows = self._database.rows(
            f"SELECT key FROM tasks INDEXED BY tasks_slots WHERE group_name = ? AND {IN_SLOT}",
            (group,),
        )
        return [key for (key,) in rows]

    def ahead(self, key: int) -> int:
        """Return how many tasks of its group start before a pending one."""
        row = self._database.row(
            """SELECT count(*) FROM tasks JOIN tasks AS it ON it.key = ?
            WHERE tasks.group_name = it.group_name AND tasks.state = 'pending'
            AND (-tasks.priority, coalesce(tasks.place, tasks.key))
                < (-it.priority, coalesce(it.place, it.key))""",
            (key,),
        )
        return int(row[0])

    def move_to_end(self, key: int, *, first: bool) -> bool:
        """Move a pending task before all others of its group, or behind them.

        It gets their priority, too. Return whether it was pending.
        """
        with self._database.transaction() as connection:
            (highest, lowest) = connection.execute(PRIORITIES_BESIDE, (key,)).fetchone()
            values = (key, highest if first else lowest)
            cursor = connection.execute(MOVE_FIRST if first else MOVE_LAST, values)
        return bool(cursor.rowcount)

    def move_before(self, key: int, other: int) -> bool:
        """Move a pending task to just before another one of its group.

        It gets that one's priority, too. Return whether both are pending, in the same group.
        """
        with self._database.transaction() as connection:
            row = connection.execute(
                """SELECT priority, coalesce(place, key), (
                    SELECT max(coalesce(before.place, before.key)) FROM tasks AS before
                    WHERE before.state = 'pending' AND before.group_name = tasks.group_name
                    AND before.priority = tasks.priority AND before.key <> ?1
                    AND coalesce(before.place, before.key) < coalesce(tasks.place, tasks.key))
                FROM tasks WHERE key = ?2 AND state = 'pending'
                AND group_name = (SELECT group_name FROM tasks WHERE key = ?1)""",
                (key, other),
            ).fetchone()
            if row is None:
                return False
            priority, place, before = row
            cursor = connection.execute(
                "UPDATE tasks SET priority = ?, place = ? WHERE key = ? AND state = 'pending'",
                (priority, place - 1 if before is None else (before + place) / 2, key),
            )
        return bool(cursor.rowcount)


def set_running(connection: Any, key: int, at: float) -> None:
    """Change a claimed task from pending to running, in the transaction that claims it."""
    connection.execute(
        "UPDATE tasks SET state = 'running', started_at = ? WHERE key = ?", (at, key)
    )


def submit(connection: Any, key: int, at: float) -> None:
    """Note that a claimed task is handed to its place, in the transaction that claims it.

    It waits until it begins there, and takes part of its group's width meanwhile.
    """
    connection.execute(
        "UPDATE tasks SET submitted_at = ?, waits_for = waits_for + 1 WHERE key = ?", (at, key)
    )
