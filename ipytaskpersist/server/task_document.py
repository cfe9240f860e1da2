"""A task as pages receive it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.panel import rows

SOURCE_CHARACTERS = 200

TaskDocument = dict[str, Any]


class Describer:
    """Describes tasks to the pages of one server."""

    def __init__(self, root: Path) -> None:
        self._roots = [*dict.fromkeys((root, Path(os.path.realpath(root))))]

    def document(self, task: TaskRecord) -> TaskDocument:
        """Return the task as a row of the panel's list, and what the page needs besides."""
        return {
            **rows.row_of(task, None),
            "kind": "shell" if task.kind == "shell" else task.runner,
            "path": self.path(task.notebook),
            "cell_id": task.cell_id or "",
            "source": task.source[:SOURCE_CHARACTERS],
        }

    def path(self, notebook: str) -> str | None:
        """Return the path by which the server knows a notebook; None if it is elsewhere."""
        for root in self._roots:
            with suppress(ValueError):
                return Path(notebook).relative_to(root).as_posix()
        return None
