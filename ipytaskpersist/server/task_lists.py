"""The lists of tasks in the sidebars of pages: whole at first, then what has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.server.task_document import TaskDocument, task_document
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

TASKS = 1_000
"""Number of newest tasks that are listed, in addition to all live ones."""
AT_ONCE = 200
"""Number of tasks in one message."""
GONE_KEPT = 10_000


def listed(store: TaskStore, notebook_key: int | None) -> list[TaskRecord]:
    """Return the tasks of a list, newest first. The key None stands for every notebook's."""
    newest = store.tasks.select(Selection(notebook_key, cleared=False, limit=TASKS))
    live = store.tasks.select(Selection(notebook_key, LIVE_STATES))
    found = {task.key: task for task in (*live, *newest)}.values()
    return sorted(found, key=lambda task: (task.created_at, task.key), reverse=True)


SEARCHED = ("id", "name", "notebook", "state", "source", "last_line")


def has_text(task: TaskDocument, text: str) -> bool:
    """Return whether a task contains each word of a text."""
    whole = "\n".join(str(task[name]) for name in SEARCHED).casefold()
    return all(word in whole for word in text.casefold().split())


@dataclass(slots=True)
class _Row:
    task: TaskDocument
    version: int
    """Version of the list in which it last changed."""


@dataclass(slots=True)
class TaskList:
    """One list, which any number of pages show."""

    notebook_key: int | None
    """The notebook whose tasks it has; None for every notebook's."""
    version: int = 0
    """Number of the last change; 0 before it was read."""
    _rows: dict[int, _Row] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    """Ids of the tasks that were taken off, with the version."""
    _messages: dict[int, list[bytes]] = field(default_factory=dict)
    """What pages with a version lack."""

    def read(self, store: TaskStore) -> None:
        """Read the whole list."""
        self.version = self.version or 1
        self.update(store, listed(store, self.notebook_key))
        self.take_off(store)

    def update(self, store: TaskStore, tasks: Iterable[TaskRecord]) -> None:
        """Take in the tasks that may have changed."""
        own = [task for task in tasks if self.notebook_key in (None, task.notebook_key)]
        new = {each.key: task_document(store, each) for each in own if each.cleared_at is None}
        changed = {
            key: row
            for key, row in new.items()
            if key not in self._rows or self._rows[key].task != row
        }
        if changed:
            self._begin_version()
            self._rows.update({key: _Row(row, self.version) for key, row in changed.items()})

    def take_off(self, store: TaskStore) -> None:
        """Take off the tasks that were deleted, archived or cleared."""
        gone = self._rows.keys() - store.tasks.keys(Selection(self.notebook_key, cleared=False))
        if gone:
            self._begin_version()
            for key in gone:
                self._gone[self._rows.pop(key).task["id"]] = self.version
            for old in [*self._gone][:-GONE_KEPT]:
                del self._gone[old]

    def _begin_version(self) -> None:
        self.version += 1
        self._messages.clear()

    @property
    def running(self) -> int:
        """Number of live tasks."""
        return sum(row.task["is_live"] for row in self._rows.values())

    def messages(self, since: int) -> list[bytes]:
        """Return what a page lacks that has a version of the list; 0 for none."""
        if since not in self._messages:
            self._messages[since] = [*self._made(since)]
        return self._messages[since]

    def _made(self, since: int) -> Iterator[bytes]:
        rows = [row.task for row in self._rows.values() if row.version > since]
        rows.sort(key=lambda row: row["created_at"], reverse=True)
        gone = [each for each, version in self._gone.items() if version > since > 0]
        yield (
            self._line(changed=rows[:AT_ONCE], gone=gone)
            if since
            else self._line(tasks=rows[:AT_ONCE])
        )
        for begin in range(AT_ONCE, len(rows), AT_ONCE):
            yield self._line(changed=rows[begin : begin + AT_ONCE], gone=[])

    def _line(self, **parts: Collection[Any]) -> bytes:
        return encoded({**parts, "running": self.running}) + b"\n"
