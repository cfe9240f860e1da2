"""The archives: tasks that ended long ago, in a separate store for each month."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.private_files import remove
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store.file.locks import exclusive
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.store.transfer import copy_tasks, in_steps, remove_leftovers, remove_tasks
from ipytaskpersist.values import checkpoints

COPIED_AT_ONCE = 200


class Archives:
    """The archives beside a store, each opened on first use."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._opened: dict[str, TaskStore] = {}
        self._identities: dict[str, tuple[int, int] | None] = {}

    def open(self, month: str) -> TaskStore:
        """Return the archive of a month, ``YYYY-MM``. Create it if missing."""
        known = self._opened.get(month)
        if known is not None and _identity(known) == self._identities[month]:
            return known
        if known is not None:
            known.close()  # the file was removed or replaced
        archive = self._store.beside(self._store.directory.archive(month))
        archive.database.is_on_demand = True
        archive.open()
        if archive.notice:
            print(legible(archive.notice), file=sys.stderr)
        self._opened[month], self._identities[month] = archive, _identity(archive)
        return archive

    def all(self) -> list[TaskStore]:
        """Return all existing archives, latest first."""
        return [self.open(month) for month in self._store.directory.months()]

    def with_own(self) -> list[TaskStore]:
        """Return the store itself, and all archives."""
        return [self._store, *self.all()]

    def readable(self) -> Iterator[TaskStore]:
        """Yield the archives that can be read at the moment, latest first, each when needed."""
        for month in self._store.directory.months():
            with suppress(StoreError):
                yield self.open(month)

    def store_of(self, task: TaskRecord) -> TaskStore:
        """Return the store of a task: an archive, or the store itself."""
        return self.open(task.archive) if task.archive else self._store

    def with_inputs(self, task: TaskRecord) -> TaskRecord | None:
        """Return the task that has a task's inputs, wherever it is; None if it was deleted."""
        if task.inputs_of == task.id:
            return task
        found = (place.tasks.by_id(task.inputs_of) for place in self.with_own())
        return next((each for each in found if each is not None), None)

    def close(self) -> None:
        """Close the archives."""
        while self._opened:
            self._opened.popitem()[1].close()

    # Reading.

    def select(self, selection: Selection) -> list[TaskRecord]:
        """Return the archived tasks of a selection, oldest first."""
        found: list[TaskRecord] = []
        for archive in self.all():
            there = self._translated(selection, archive)
            found[:0] = [] if there is None else self.without_own(archive.tasks.select(there))
        return sorted(found, key=lambda task: task.created_at)[-(selection.limit or len(found)) :]

    def count(self, selection: Selection) -> int:
        """Return the size of `select` without its limit; too many if a move was cut off."""
        there = ((archive, self._translated(selection, archive)) for archive in self.all())
        return sum(archive.tasks.count(each) for archive, each in there if each is not None)

    def _translated(self, selection: Selection, archive: TaskStore) -> Selection | None:
        """Return the selection with an archive's notebook key; None if it has no such notebook."""
        if selection.notebook_key is None:
            return selection
        key = self.notebook_key(selection.notebook_key, archive)
        return None if key is None else replace(selection, notebook_key=key)

    def notebook_key(self, own_key: int, archive: TaskStore) -> int | None:
        """Return an archive's key of a notebook that the store knows."""
        uid = self._store.sessions.uid_of_notebook(own_key)
        return None if uid is None else archive.sessions.notebook_of_uid(uid)

    def without_own(self, tasks: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Leave out tasks that are also in the store itself, because a move was cut off."""
        own = self._store.tasks.existing([task.id for task in tasks])
        return [task for task in tasks if task.id not in own]

    # Moving.

    def archive(self, tasks: Sequence[TaskRecord]) -> dict[str, int]:
        """Move ended tasks into the archives of the months in which they were created.

        Their checkpoints are removed: a task is not gone on with after so long. Return how many
        went into each. Raise `StoreBusy` if another process is moving tasks.
        """
        by_month = defaultdict(list)
        for task in tasks:
            by_month[f"{task.created_at:%Y-%m}"].append(task.id)
        moved: dict[str, int] = defaultdict(int)
        with self._moving():
            remove_leftovers(self._store.database)
            for month, ids in sorted(by_month.items()):
                archive = self._make(month)
                for few in in_steps(ids, COPIED_AT_ONCE):
                    # Another process may have moved or deleted some of them in the meantime.
                    own = sorted(self._store.tasks.existing(few))
                    copy_tasks(archive.database, self._store.directory.store, own)
                    remove_tasks(self._store.database, own)
                    moved[month] += len(own)
            self._forget_checkpoints(tasks)
        return {month: count for month, count in moved.items() if count}

    def _make(self, month: str) -> TaskStore:
        """Open an archive to write to. If its creation fails, leave nothing behind for readers."""
        place = self._store.directory.archive(month).store
        is_new = not place.exists()
        try:
            return self.open(month)
        except StoreError:
            for suffix in ("", "-wal", "-shm") if is_new else ():
                remove(Path(f"{place}{suffix}"))
            raise

    def unarchive(self, tasks: Sequence[TaskRecord]) -> None:
        """Move archived tasks back into the store."""
        by_month = defaultdict(list)
        for task in tasks:
            by_month[task.archive].append(task.id)
        with self._moving():
            for month, ids in by_month.items():
                archive = self.open(month)
                remove_leftovers(archive.database)
                for few in in_steps(ids, COPIED_AT_ONCE):
                    own = self._store.tasks.existing(few)
                    missing = [each for each in few if each not in own]
                    copy_tasks(self._store.database, archive.directory.store, missing)
                    remove_tasks(archive.database, few)

    def delete(self, tasks: Sequence[TaskRecord]) -> None:
        """Remove tasks for good, wherever they are: they may have been moved in the meantime."""
        with self._moving():
            for place in [self._store, *self.all()]:
                remove_leftovers(place.database)
                remove_tasks(place.database, [task.id for task in tasks])
                place.database.cut_log()
            self._forget_checkpoints(tasks)

    def _forget_checkpoints(self, tasks: Sequence[TaskRecord]) -> None:
        """Remove the checkpoints of tasks, unless another task of the store may go on from them."""
        places = {task.checkpoint_place or "" for task in tasks}
        there = places & {*checkpoint_folders.all_places(self._store.directory)}
        if there:
            unused = there - self._store.tasks.places_in_use(there)
            checkpoints.delete(self._store.directory, unused)

    def older_than(self, age_s: float, keep: str) -> list[TaskRecord]:
        """Return the store's ended tasks that are older, except those with the tag `keep`."""
        return self._store.tasks.ended_before(time.time() - age_s, except_tag=keep)

    def _moving(self) -> AbstractContextManager[object]:
        self._store.require_own_version()
        return exclusive(
            self._store.directory.upkeep_lock,
            "another process is moving tasks between the store and its archives; try again soon",
        )


def _identity(archive: TaskStore) -> tuple[int, int] | None:
    """Return the identity of the file; None if it does not exist."""
    try:
        status = archive.database.path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
