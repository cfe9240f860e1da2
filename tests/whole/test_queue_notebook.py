"""The notebook about the queue, run as a person does: cell by cell, with the restart in it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import nbformat
import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "queue.ipynb"
RESTART_BEFORE = "restart-kernel-before"
TRAININGS, WIDTH = 12, 2


def runs_at_once(store: TaskStore) -> int:
    """The most tasks of the group that ever ran at the same time."""
    query = """SELECT events.key, events.state = 'running' FROM events
        JOIN tasks ON tasks.key = task_key WHERE group_name = 'sweep'
        AND (events.state = 'running' OR EXISTS (SELECT 1 FROM events AS before
            WHERE before.task_key = events.task_key AND before.state = 'running'
            AND before.key < events.key)) ORDER BY events.key"""
    running = most = 0
    for _key, begins in store.database.rows(query):
        running += 1 if begins else -1
        most = max(most, running)
    return most


@pytest.mark.timeout(600)
def test_the_sweep_goes_on_through_a_restart(state_dir: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown: dict[str, str] = {}
    with NotebookKernel(state_dir, notebook="queue.ipynb") as kernel:
        for cell in notebook.cells:
            if RESTART_BEFORE in cell.metadata.get("tags", ()):
                kernel.restart()
            if cell.id == "groups":
                run = partial(kernel.run, cell.source)
                until(lambda: "sweep is full: 2 of 2" in run().text, 60, "a full group")  # noqa: B023
            elif cell.cell_type == "code":
                shown[cell.id] = kernel.run(cell.source, timeout=300, cell_id=cell.id).text
    assert "best" in shown["load-again"]
    assert re.search(r"the best of 12: degree 2, alpha [\d.]+, 9\d\.\d%", shown["output"])
    assert re.match(r"\(2, [\d.]+\)", shown["result"])
    assert re.search(
        r"4 failed used ([\d.]+ [MG]B of|more than) its 600 MB; task 14 tries", shown["two-tries"]
    )
    assert "14 completed" in shown["two-tries"]

    store = TaskStore(StateDirectory(state_dir)).open()
    tasks = store.tasks.select(Selection())
    states = sorted(task.state for task in tasks)
    assert states == [TaskState.COMPLETED] * (TRAININGS + 1) + [TaskState.FAILED]
    assert runs_at_once(store) == WIDTH
    store.close()
