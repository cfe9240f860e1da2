"""How much there is in the store, from indexes alone: however much it is, it is told at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from ipytaskpersist.records import TaskState
from ipytaskpersist.store.database import Database
from ipytaskpersist.store.migrations import output_bytes_of

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
    """What the files take, in bytes."""

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
        """All of it."""
        return self.store + self.archives + self.results + self.search + self.backups


@dataclass(frozen=True, slots=True)
class Overview:
    """Tasks by state and by day."""

    by_state: dict[TaskState, int]
    days: Sequence[Day]
    """The days on which tasks were launched, the latest first."""
    output_bytes: int


class Statistics:
    """Counts and sums over everything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def overview(self) -> Overview:
        """Tasks and what they printed and displayed, by state and by day."""
        rows = self._database.rows(
            f"""SELECT state, CAST(created_at / {DAY_S} AS INTEGER), count(*), sum(output_bytes)
            FROM tasks INDEXED BY tasks_overview GROUP BY state, 2"""
        )
        # Of one that runs the total is not known yet.
        running = self._database.rows(
            f"""SELECT state, CAST(created_at / {DAY_S} AS INTEGER), 0,
                {output_bytes_of("tasks.key")}
            FROM tasks WHERE state = 'running'"""
        )
        return _overview([*rows, *running])

    def largest(self, count: int) -> list[int]:
        """The keys of the ended tasks that have printed and displayed the most."""
        rows = self._database.rows(
            """SELECT key FROM tasks INDEXED BY tasks_overview WHERE output_bytes > 0
            ORDER BY output_bytes DESC LIMIT ?""",
            (count,),
        )
        return [key for (key,) in rows]

    def count(self) -> int:
        """How many tasks there are."""
        (count,) = self._database.row("SELECT count(*) FROM tasks")
        return int(count)

    def sessions(self) -> tuple[int, int]:
        """How many sessions are active, and how many have ended."""
        (active,) = self._database.row("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
        (total,) = self._database.row("SELECT count(*) FROM sessions")
        return active, total - active

    def sizes(self) -> Sizes:
        """What everything takes on disk."""
        directory, store = self._database.directory, self._database.path
        (page,) = self._database.row("PRAGMA page_size")
        (free,) = self._database.row("PRAGMA freelist_count")
        (results,) = self._database.row(
            "SELECT coalesce(sum(size_bytes), 0) FROM results WHERE size_bytes IS NOT NULL"
        )
        return Sizes(
            store=_size(store) + _size(self._database.log),
            free=page * free,
            archives=_total(directory.archives.glob("*.db*")),
            results=results,
            search=_size(directory.search_index) + _total(directory.archives.glob("*.search")),
            backups=_total(directory.backups.glob("*.db")),
        )

    def write_latency_s(self) -> float:
        """How long a small commit takes now: the median of a few that change nothing."""
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _total(paths: Any) -> int:
    return sum(map(_size, paths))
