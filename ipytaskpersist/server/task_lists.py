"""The lists of tasks in the sidebars of pages: whole at first, then what has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.server.task_document import Describer, TaskDocument
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

TASKS = 1_000
"""Number of tasks on a list for which no other number is wished."""
AT_ONCE = 200
"""Number of tasks in one message."""
GONE_KEPT = 10_000


def listed(store: TaskStore, notebook_key: int | None, limit: int) -> list[TaskRecord]:
    """Return the tasks of a list: live ones first, then the newest, at most so many.

    The key None stands for every notebook's.
    """
    live = store.tasks.select(Selection(notebook_key, LIVE_STATES, limit=limit))
    newest = store.tasks.select(Selection(notebook_key, cleared=False, limit=limit))
    found = {task.key: task for task in (*reversed(live), *reversed(newest))}
    return [*found.values()][:limit]


SEARCHED = ("id", "name", "notebook", "state", "source", "line")


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
    limit: int
    """Number of tasks that it has at most."""
    describer: Describer
    version: int = 0
    """Number of the last change; 0 before it was read."""
    running: int = 0
    """Number of live tasks, whether it has them or not."""
    _rows: dict[int, _Row] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    """Ids of the tasks that were taken off, with the version."""
    _messages: dict[int, list[bytes]] = field(default_factory=dict)
    """What pages with a version lack."""

    def read(self, store: TaskStore, changed: Collection[int] | None = None) -> None:
        """Read the list. Only these tasks are described anew, and those that were not on it."""
        tasks = listed(store, self.notebook_key, self.limit)
        rows = {
            task.key: self.describer.document(task)
            for task in tasks
            if task.key not in self._rows or changed is None or task.key in changed
        }
        new = {
            key: row
            for key, row in rows.items()
            if key not in self._rows or self._rows[key].task != row
        }
        gone = self._rows.keys() - {task.key for task in tasks}
        running = store.tasks.count(Selection(self.notebook_key, LIVE_STATES))
        if new or gone or running != self.running or not self.version:
            self.running = running
            self._begin_version()
            self._rows.update({key: _Row(row, self.version) for key, row in new.items()})
            for row in new.values():
                self._gone.pop(row["id"], None)
            self._take_off(gone)

    def _take_off(self, gone: Collection[int]) -> None:
        for key in gone:
            self._gone[self._rows.pop(key).task["id"]] = self.version
        for old in [*self._gone][:-GONE_KEPT]:
            del self._gone[old]

    def _begin_version(self) -> None:
        self.version += 1
        self._messages.clear()

    def messages(self, since: int) -> list[bytes]:
        """Return what a page lacks that has a version of the list; 0 for none."""
        if since not in self._messages:
            self._messages[since] = [*self._made(since)]
        return self._messages[since]

    def _made(self, since: int) -> Iterator[bytes]:
        rows = [row.task for row in self._rows.values() if row.version > since]
        rows.sort(key=lambda row: row["created"], reverse=True)
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
