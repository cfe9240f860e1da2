"""Fixtures of the tests that type commands."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, end_processes_of
from typed import SURFACES, MakeKernel, Notebook, Run, record

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.transfer import remove_tasks


@pytest.fixture(scope="package")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """One kernel for the tests that only need their own tasks."""
    folder = tmp_path_factory.mktemp("commands")
    path = folder / "shared.ipynb"
    try:
        with NotebookKernel(folder / "state", notebook=path) as kernel:
            kernel.run("%load_ext ipytaskpersist")
            yield Notebook(kernel, folder / "state", path)
    finally:
        end_processes_of(folder / "state")


@pytest.fixture
def make_notebook(make_kernel: MakeKernel, state_dir: Path) -> Callable[..., Notebook]:
    """Kernels for the tests that need one to themselves."""

    def make(name: str = "own.ipynb", **options: Any) -> Notebook:
        path = state_dir.parent / name
        return Notebook(make_kernel(notebook=path, **options), state_dir, path)

    return make


@pytest.fixture(params=SURFACES)
def run(request: pytest.FixtureRequest, notebook: Notebook) -> Run:
    """Run a verb on each surface."""
    return getattr(notebook, request.param)


@pytest.fixture
def elsewhere(notebook: Notebook) -> Iterator[TaskRecord]:
    """A live task of another notebook, with a name and a number that this one does not have."""
    with closing(TaskStore(StateDirectory(notebook.state_dir)).open()) as store:
        session = uuid.uuid4().hex
        (first,) = record(store, "first", path=f"/{session}.ipynb", session=session)
        store.database.execute(
            "UPDATE notebooks SET last_number = 9000 WHERE key = ?", (first.notebook_key,)
        )
        (task,) = record(store, "elsewhere", path=f"/{session}.ipynb", session=session)
        yield task
        for each in (first, task):
            remove_tasks(store.database, [each.id])
