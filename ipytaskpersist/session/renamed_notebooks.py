"""Recognise a notebook that was renamed while no kernel ran, by the ids of its cells.

Such a notebook has another path and another kernel, so its sessions belong to a new notebook. Its
cells have kept their ids, by which the tasks of the old one can be taken over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.ownership import NotBelieved, read_regular
from ipytaskpersist.base.process_identity import host_name
from ipytaskpersist.base.records import SessionRecord
from ipytaskpersist.store.sessions import LeftNotebook
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import counted, notebook_name

NOTEBOOK_BYTES = 100_000_000
"""Largest notebook that is read for the ids of its cells."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Another notebook whose tasks belong to cells of this one."""

    key: int
    path: str
    tasks: int
    """How many of its tasks belong to cells of this notebook."""

    @property
    def name(self) -> str:
        """Its file's name, fit to be shown."""
        return legible(notebook_name(self.path))

    def offer(self) -> str:
        """Return the line that says how to take its tasks over."""
        belong, them = ("belongs", "it") if self.tasks == 1 else ("belong", "them")
        return (
            f"{counted(self.tasks, 'task')} of {self.name}, which is gone, {belong} to these "
            f"cells: %bg_adopt takes {them} over"
        )


def gone(store: TaskStore, session: SessionRecord) -> Origin | None:
    """Return the notebook that was renamed to a session's, as far as its cells say so.

    None if no notebook that is gone from this machine has tasks of these cells, or if its kernel
    still runs.
    """
    return _origin(store, session, is_gone=True)


def copied(store: TaskStore, session: SessionRecord) -> Origin | None:
    """Return a notebook that still exists, and of whose cells a session's has copies."""
    return _origin(store, session, is_gone=False)


def _origin(store: TaskStore, session: SessionRecord, *, is_gone: bool) -> Origin | None:
    others = [
        each
        for each in store.sessions.left_notebooks(session.notebook_key)
        if each.host == host_name() and each.path != session.path and _is_gone(each) == is_gone
    ]
    ids = _cell_ids(Path(session.path)) if others else []
    for other in others if ids else ():
        count = store.tasks.count_of_cells(other.key, ids)
        if count:
            return Origin(other.key, other.path, count)
    return None


def _is_gone(notebook: LeftNotebook) -> bool:
    try:
        return not Path(notebook.path).exists()
    except OSError:
        return False  # it may only be out of reach


def _cell_ids(notebook: Path) -> list[str]:
    """Return the ids of the cells of a notebook's file; none if it cannot be read."""
    if notebook.suffix != ".ipynb":
        return []
    try:
        data, _doubt = read_regular(notebook.resolve(), NOTEBOOK_BYTES)
        document: Any = json.loads(data)
        cells = document["cells"]
        ids = [cell.get("id") for cell in cells]
    except (OSError, NotBelieved, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return []  # not a notebook as it should be
    return [each for each in ids if isinstance(each, str)]
