"""What a Python task's process needs of the store: its rows.

A fresh interpreter reads them itself. A fork server's process is given them, which takes less time
than to open the store. At a place there is no store: they are sent in a file.
"""

from __future__ import annotations

import pickle  # what the own machine sends to a place  # nosec B403
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import INPUTS, ProcessRecord, ResultRecord, TaskRecord
from ipytaskpersist.places.far.keeper import PYTHON_FOLDER
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.travelling import FileToSend, inputs_there

SENT = "rows"
"""Name of the file with the rows of a task at a place."""


class TaskRows(NamedTuple):
    """A Python task in the store."""

    task: TaskRecord
    process: ProcessRecord
    inputs: ResultRecord
    inputs_of: TaskRecord
    """The task to which the inputs belong: the first try of the first run has those of all."""

    @classmethod
    def of(cls, store: TaskStore, task: TaskRecord | None) -> TaskRows:
        """Read the rows of a task. Raises `StoreError`."""
        assert task is not None, "the supervisor starts tasks of the store"
        first = store.tasks.with_inputs(task)
        process, inputs = store.processes.get(task.key), store.results.get(first.key, INPUTS)
        assert process is not None
        assert inputs is not None
        return cls(task, replace(process, environment={}), inputs, first)


def read(root: Path, task_id: str) -> TaskRows:
    """Read the rows of a task from the store in a state directory. Raises `StoreError`."""
    store = TaskStore(StateDirectory(root)).open()
    rows = TaskRows.of(store, store.tasks.by_id(task_id))
    store.close()
    return rows


def files_to_send(directory: StateDirectory, rows: TaskRows) -> list[FileToSend]:
    """Return all that a task is given at its place, as files. Raises `ResultUnavailable`."""
    task, process, inputs, inputs_of = rows
    assert process.place is not None, "it runs at a place"
    theirs, files = inputs_there(directory, process.place, task, inputs, inputs_of)
    sent = TaskRows(task, process, theirs, task)
    return [*files, FileToSend(f"{PYTHON_FOLDER}/{SENT}", content=pickle.dumps(sent))]


def read_sent(root: Path) -> TaskRows:
    """Read the rows that were sent for a task, and remove them. Both ends have the same version."""
    file = root / SENT
    rows = pickle.loads(file.read_bytes())  # nosec B301
    file.unlink()
    assert isinstance(rows, TaskRows)
    return rows
