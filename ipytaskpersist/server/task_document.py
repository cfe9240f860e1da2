"""A task as pages receive it."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, Progress, TaskRecord
from ipytaskpersist.panel import rows
from ipytaskpersist.store.task_store import TaskStore

SOURCE_CHARACTERS = 200
DISPLAYS = (OutputKind.DISPLAY_DATA, OutputKind.EXECUTE_RESULT)

TaskDocument = dict[str, Any]


class Describer:
    """Describes tasks to the pages of one server."""

    def __init__(self, root: Path) -> None:
        self._roots = [*dict.fromkeys((root, Path(os.path.realpath(root))))]

    def document(self, store: TaskStore, task: TaskRecord) -> TaskDocument:
        """Return the task as pages receive it."""
        return {**_document(store, task), "path": self.path(task.notebook)}

    def path(self, notebook: str) -> str | None:
        """Return the path by which the server knows a notebook; None if it is elsewhere."""
        for root in self._roots:
            with suppress(ValueError):
                return Path(notebook).relative_to(root).as_posix()
        return None


def _document(store: TaskStore, task: TaskRecord) -> TaskDocument:
    """Return the task as JSON. Times are seconds since the epoch."""
    sizes = [store.outputs.stream_size(task.key, kind) for kind in STREAM_KINDS]
    return {
        "id": task.id,
        "number": task.number,
        "name": rows.text(task.name),
        "state": task.state.value,
        "reason": None if task.reason is None else rows.text(task.reason),
        "kind": "shell" if task.kind == "shell" else task.runner,
        "notebook": task.notebook,
        "cell_id": task.cell_id or "",
        "created_at": task.created_at.timestamp(),
        "started_at": _seconds(task.started_at),
        "ended_at": _seconds(task.ended_at),
        "exit_code": task.exit_code,
        "source": task.source[:SOURCE_CHARACTERS],
        "progress": None if task.progress is None else _progress(task.progress),
        "last_line": rows.text(rows.last_line(task)),
        "lines": sum(size.lines for size in sizes),
        "displays": store.outputs.count(task.key, DISPLAYS),
        "is_live": not task.state.is_final,
    }


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _progress(progress: Progress) -> dict[str, Any]:
    return {**progress.as_json(), "fraction": progress.fraction}
