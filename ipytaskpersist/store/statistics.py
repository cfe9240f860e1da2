"""Size and contents of the store, from indexes alone: fast however much there is."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import output_bytes_of

PROBES = 5
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Day:
    """What was launched on one day, in UTC."""

    day: date
    tasks: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """File sizes in bytes."""

    store: int
    """The store, with its write-ahead log."""
    free: int
    """The part of the store that the next tasks will use."""
    archives: int
    results: int
    """Pickled results and variables."""
    search: int
    backups: int

    @property
    def total(self) -> int:
        """The total size."""
        return self.store + self.archives + self.results + self.search + self.backups


@dataclass(frozen=True, slots=True)
class Overview:
    """Tasks by state and by day."""

    by_state: dict[TaskState, int]
    days: Sequence[Day]
    """The days on which tasks were launched, latest first."""
    output_bytes: int


class Statistics:
    """Counts and sums over everything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def overview(self) -> Overview:
        """Return tasks and their output size, by state and by day."""
        rows = self._database.rows(
            f"""SELECT state, CAST(created_at / {DAY_S} AS INTEGER), count(*), sum(output_bytes)
            FROM tasks INDEXED BY tasks_overview GROUP BY state, 2"""
        )
        # A running task's total is not known yet.
        running = self._database.rows(
            f"""SELECT state, CAST(created_at / {DAY_S} AS INTEGER), 0,
                {output_bytes_of("tasks.key")}
            FROM tasks WHERE state = 'running'"""
        )
        return _overview([*rows, *running])

    def largest(self, count: int) -> list[int]:
        """Return the keys of the ended tasks with the most output."""
        rows = self._database.rows(
            """SELECT key FROM tasks INDEXED BY tasks_overview WHERE output_bytes > 0
            ORDER BY output_bytes DESC LIMIT ?""",
            (count,),
        )
        return [key for (key,) in rows]

    def count(self) -> int:
        """Return the number of tasks."""
        (count,) = self._database.row("SELECT count(*) FROM tasks")
        return int(count)

    def sessions(self) -> tuple[int, int]:
        """Return the number of active and of ended sessions."""
        (active,) = self._database.row("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
        (total,) = self._database.row("SELECT count(*) FROM sessions")
        return active, total - active

    def sizes(self) -> Sizes:
        """Return the disk usage of everything."""
        directory, store = self._database.directory, self._database.path
        (page,) = self._database.row("PRAGMA page_size")
        (free,) = self._database.row("PRAGMA freelist_count")
        (results,) = self._database.row(
            "SELECT coalesce(sum(size_bytes), 0) FROM results WHERE size_bytes IS NOT NULL"
        )
        places = checkpoint_folders.all_places(directory)
        checkpoints = checkpoint_folders.size_of(directory, places)
        return Sizes(
            store=_size(store) + _size(self._database.log),
            free=page * free,
            archives=_total(directory.archives.glob("*.db*")),
            results=max(0, results + checkpoints - repeated_bytes(directory)),
            search=_size(directory.search_index) + _total(directory.archives.glob("*.search")),
            backups=_total(directory.backups.glob("*.db")),
        )

    def write_latency_s(self) -> float:
        """Return how long a small commit takes now: the median of a few that change nothing."""
        return sorted(self._probe() for _ in range(PROBES))[PROBES // 2]

    def _probe(self) -> float:
        begun = time.perf_counter()
        self._database.write(
            """INSERT INTO upkeep (name, at) VALUES ('write probe', ?)
            ON CONFLICT (name) DO UPDATE SET at = excluded.at""",
            (time.time(),),
        )
        return time.perf_counter() - begun


def _overview(rows: Sequence[Any]) -> Overview:
    by_state: dict[TaskState, int] = {}
    by_day: dict[int, tuple[int, int]] = {}
    for state, day, count, size in rows:
        by_state[TaskState(state)] = by_state.get(TaskState(state), 0) + count
        tasks, before = by_day.get(day, (0, 0))
        by_day[day] = (tasks + count, before + (size or 0))
    days = [
        Day(datetime.fromtimestamp(day * DAY_S, UTC).date(), *by_day[day])
        for day in sorted(by_day, reverse=True)
    ]
    return Overview(by_state, days, sum(day.output_bytes for day in days))


def repeated_bytes(directory: StateDirectory) -> int:
    """Return how much of the values' sizes several tasks share, and is on the disk only once.

    Each file of buffers has one name that all share, and one more for each task.
    """
    total = 0
    with suppress(OSError):
        for entry in os.scandir(directory.buffers):
            status = entry.stat()
            total += status.st_size * max(0, status.st_nlink - 2)
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _total(paths: Any) -> int:
    return sum(map(_size, paths))
