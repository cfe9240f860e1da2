"""The notebook about a cluster, run as a person does, with the death of a worker and a kernel."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from engines import need_dask
from kernels import NotebookKernel, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "cluster.ipynb"
KILL_BEFORE = "kill-kernel-before"
TRAININGS = 6


@pytest.mark.timeout(600)
def test_the_sweep_outlives_a_worker_and_the_kernel(state_dir: Path) -> None:
    need_dask()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown: dict[str, str] = {}
    store = TaskStore(StateDirectory(state_dir)).open()

    def trainings(state: TaskState) -> int:
        tasks = store.tasks.select(Selection(states=(state,)))
        return sum(task.name.startswith("degree") for task in tasks)

    def state_of_left() -> TaskState:
        (left,) = [each for each in store.tasks.select(Selection()) if each.name == "left"]
        return left.state

    with NotebookKernel(state_dir, notebook="cluster.ipynb") as kernel:
        for cell in notebook.cells:
            if KILL_BEFORE in cell.metadata.get("tags", ()):
                kernel.kill()
                kernel.revive()
            if cell.id == "kill-worker":
                until(lambda: trainings(TaskState.RUNNING) == 2, 120, "two trainings")
            if cell.cell_type == "code":
                shown[cell.id] = kernel.run(cell.source, timeout=300, cell_id=cell.id).text
            if cell.id == "kill-worker":
                until(lambda: state_of_left() is TaskState.FAILED, message="the worker's end")
        assert re.search(r"the best of 6: degree 2, alpha [\d.]+, 9\d\.\d%", shown["results"])
        until(lambda: not store.tasks.select(Selection(states=(TaskState.RUNNING,))))
    assert trainings(TaskState.COMPLETED) == TRAININGS
    events = store.database.rows(
        """SELECT count(*) FROM events JOIN tasks ON tasks.key = task_key
        WHERE name LIKE 'degree%' AND events.state = 'running'"""
    )
    assert events == [(TRAININGS,)]
    store.close()
