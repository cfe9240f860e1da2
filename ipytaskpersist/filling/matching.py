"""Which task a cell of a notebook shows: by its mark, by the cell's id, or by its source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.task_store import TaskStore

T = TypeVar("T")
CELL = re.compile(r"\A\s*%%background\b[^\n]*\n(?P<source>.*)", re.DOTALL)
LINE = re.compile(r"^[^\S\n]*%background[^\S\n]+(?P<source>[^\n]+)$", re.MULTILINE)
AGAIN = re.compile(r"^[^\S\n]*%bg[_ ](rerun|resume)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cell:
    """A code cell of a notebook."""

    id: str
    """Empty in a notebook of an older format, which has none."""
    source: str
    marked: str | None = None
    """Id of the task that its outputs are marked with."""

    @property
    def is_whole(self) -> bool:
        """Whether it is one background cell, which shows nothing but its task."""
        return self.source.lstrip().startswith("%%")

    @property
    def launches(self) -> bool:
        """Whether it launches a task when it is run, as far as its text says."""
        return any(pattern.search(self.source) for pattern in (CELL, LINE, AGAIN))

    @property
    def task_source(self) -> str:
        """The source of the task that it launches; empty if unknown."""
        found = CELL.match(self.source) or LINE.search(self.source)
        return found["source"].strip() if found else ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a notebook is, and which kernel a server says that it has."""

    path: Path
    kernel_uuid: str | None = None


class Matching:
    """Finds the tasks of a notebook's cells in the store and in its archives."""

    def __init__(self, store: TaskStore, archives: Archives) -> None:
        self._store = store
        self._archives = archives

    def tasks(self, place: Place, cells: Sequence[Cell]) -> list[TaskRecord | None]:
        """Return the task of each cell; None for a cell that shows none."""
        marked = [self.latest_try(cell.marked) if cell.marked else None for cell in cells]
        key = self.notebook_key(place, cells, [task for task in marked if task is not None])
        latest = self._latest(key, cells)
        return [
            _newer(known, latest.get(cell.id)) or self._of_source(key, cell, cells)
            for cell, known in zip(cells, marked, strict=True)
        ]

    def task(self, task_id: str) -> TaskRecord | None:
        """Return the task with this id, archived or not."""
        return self._first(lambda store: store.tasks.by_id(task_id))

    def latest_try(self, task_id: str) -> TaskRecord | None:
        """Return the latest try of the task with this id, archived or not."""
        task = self.task(task_id)
        return task if task is None or task.archive else self._store.tasks.last_try(task)

    def earlier_try(self, cell: Cell, task: TaskRecord) -> str | None:
        """Return the mark of a cell with the outputs of an earlier try of its task; else None."""
        marked = self.task(cell.marked) if cell.marked and cell.marked != task.id else None
        if marked is None or marked.archive or task.archive:
            return None
        is_same = (marked.try_of or marked.key) == (task.try_of or task.key)
        return cell.marked if is_same else None

    def notebook_key(
        self, place: Place, cells: Sequence[Cell] = (), marked: Sequence[TaskRecord] = ()
    ) -> int | None:
        """Return the key of the notebook; None if the store does not know it.

        A notebook that was renamed without its kernel is known by its marks or its cells, unless
        there still is one at the old path: then this is a copy.
        """
        for path in dict.fromkeys((place.path, _resolved(place.path))):
            found = self._store.sessions.notebook_at(str(path), place.kernel_uuid)
            if found is not None:
                return found.key
        own = [(task.notebook_key, task.notebook) for task in marked if not task.archive]
        named = self._store.cells.notebooks([cell.id for cell in cells if cell.launches])
        gone = (key for key, path in (*own, *named) if not Path(path).exists())
        return next(gone, None)

    def _latest(self, key: int | None, cells: Sequence[Cell]) -> dict[str, TaskRecord]:
        """Return the latest task of each cell. What was archived is older than what was not."""
        left = {cell.id for cell in cells if cell.id and cell.launches}
        found: dict[str, TaskRecord] = {}
        for store in self._stores():
            if key is None or not left:
                break
            there = self._key_in(store, key)
            rows = {} if there is None else store.cells.latest(there, left)
            tasks = {task.key: task for task in store.tasks.of_keys(rows.values())}
            found |= {cell_id: tasks[row] for cell_id, row in rows.items() if row in tasks}
            left -= found.keys()
        return found

    def _of_source(self, key: int | None, cell: Cell, cells: Sequence[Cell]) -> TaskRecord | None:
        """Return the latest task of this source, if no other cell has the same one."""
        sources = Counter(each.task_source for each in cells)
        if key is None or not cell.task_source or sources[cell.task_source] > 1:
            return None

        def find(store: TaskStore) -> TaskRecord | None:
            there = self._key_in(store, key)
            row = None if there is None else store.cells.latest_of_source(there, cell.task_source)
            return None if row is None else store.tasks.get(row)

        return self._first(find)

    def _stores(self) -> Iterator[TaskStore]:
        yield self._store
        yield from self._archives.readable()

    def _first(self, find: Callable[[TaskStore], T | None]) -> T | None:
        return next((each for each in map(find, self._stores()) if each is not None), None)

    def _key_in(self, store: TaskStore, key: int) -> int | None:
        return key if store is self._store else self._archives.notebook_key(key, store)


def _resolved(path: Path) -> Path:
    """Return where links lead; the path itself if no file can have it."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _newer(task: TaskRecord | None, other: TaskRecord | None) -> TaskRecord | None:
    """Return the later of two tasks: a mark may be older than the cell's last run."""
    if task is None or other is None:
        return task or other
    return max(task, other, key=lambda each: (each.created_at, each.number))
