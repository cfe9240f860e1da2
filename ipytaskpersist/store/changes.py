"""Changes to the store since a position, for the live display of tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import IN_SLOT


@dataclass(frozen=True, slots=True)
class Position:
    """A point in the store's history."""

    event: int = 0
    """The last entry of the state history."""
    output: int = 0
    """The last entry of the outputs."""
    task: int = 0
    """The last task. Unlike the keys of deleted entries, its key is never reused."""
    live: frozenset[tuple[Any, ...]] = frozenset()
    """The live tasks, each with the columns that change without an entry anywhere."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What is new since a position."""

    position: Position
    """Position to pass next time."""
    states: frozenset[int] = frozenset()
    """Rows of tasks that were launched, or whose state or progress changed."""
    outputs: frozenset[int] = frozenset()
    """Rows of tasks that printed or displayed something."""

    @property
    def tasks(self) -> frozenset[int]:
        """Rows of all these tasks."""
        return self.states | self.outputs


class Changes:
    """Finds changed tasks by appended entries, so that the cost depends on the changes alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> Position:
        """Return the current position."""
        row = self._database.row(
            """SELECT (SELECT max(key) FROM events), (SELECT max(sequence) FROM outputs),
                (SELECT max(key) FROM tasks)"""
        )
        return Position(row[0] or 0, row[1] or 0, row[2] or 0, self._live())

    def since(self, position: Position) -> Changed:
        """Return what is new since a position."""
        events = self._appended("events", "key", position.event)
        outputs = self._appended("outputs", "sequence", position.output)
        live = self._live()
        rows = self._database.rows("SELECT key FROM tasks WHERE key > ?", (position.task,))
        new = {key for (key,) in rows}
        now = Position(events[0], outputs[0], max([position.task, *new]), live)
        moved = {row[0] for row in live ^ position.live}
        return Changed(now, frozenset(events[1] | moved | new), frozenset(outputs[1]))

    def _appended(self, table: str, key: str, after: int) -> tuple[int, set[int]]:
        rows = self._database.rows(
            f"SELECT task_key, max({key}) FROM {table} NOT INDEXED WHERE {key} > ?"
            " GROUP BY task_key",
            (after,),
        )
        if rows:
            return max(last for _task, last in rows), {task for task, _last in rows}
        # Deleted tasks may have taken the last entries with them; SQLite reuses their keys.
        (last,) = self._database.row(f"SELECT max({key}) FROM {table}")
        return min(after, last or 0), set()

    def _live(self) -> frozenset[tuple[Any, ...]]:
        """Return the live tasks, those that wait with what is known of their group."""
        rows = self._database.rows(
            f"""SELECT key, progress, cancel_requested_at, paused_at, pause_requested, waits_for,
                lacks, checkpoint_at, group_name, state = 'pending', {IN_SLOT}
            FROM tasks INDEXED BY tasks_live
            WHERE state IN ('pending', 'running')"""
        )
        groups = self._groups(Counter(group for *_own, group, _waits, has_slot in rows if has_slot))
        return frozenset(
            (*own, groups.get(group) if waits else None) for *own, group, waits, _has_slot in rows
        )

    def _groups(self, running: Counter[str]) -> dict[str, tuple[Any, ...]]:
        """Return what the tasks that wait for each group are told of it."""
        return {
            name: (width, is_paused, width is not None and running[name] >= width)
            for name, width, is_paused in self._database.rows(
                "SELECT name, width, paused_at IS NOT NULL FROM groups"
            )
        }
