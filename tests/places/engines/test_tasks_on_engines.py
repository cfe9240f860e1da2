"""Tasks of real kernels on a Dask cluster and in Slurm's queue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import DaskCluster, Slurm
from kernels import NotebookKernel, until
from places_in_use import PACKAGE_FOLDER

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
COUNT = """\
%%background --shell --on cluster counter
number=0
while [ ! -e {stop} ]; do echo line $number; number=$((number + 1)); sleep 0.01; done
echo done
"""


def use(kernel: NotebookKernel, spec: dict[str, Any], folder: Path) -> None:
    place = {key: value for key, value in spec.items() if key != "name"}
    place["folder"] = str(folder / "tasks there")
    kernel.run(f"%config BackgroundTasks.places = {{'cluster': {place!r}}}")


def task(store: TaskStore, number: int = 1) -> TaskRecord:
    (found,) = [each for each in store.tasks.select(Selection()) if each.number == number]
    return found


def text(store: TaskStore, number: int = 1) -> str:
    return b"".join(each.data for each in store.outputs.of(task(store, number).key)).decode()


def ended(store: TaskStore, number: int = 1) -> TaskRecord:
    until(lambda: task(store, number).state.is_final, 90, f"the end of task {number}")
    return task(store, number)


def is_whole(said: str) -> bool:
    *counted, last = said.splitlines()
    return counted == [f"line {number}" for number in range(len(counted))] and last == "done"


def runs_python(kernel: NotebookKernel, store: TaskStore, number: int) -> None:
    """Check that variables go to the cluster and come back."""
    kernel.run("%bg_places cluster --trust\nlines = ['x' * 100_000]")
    kernel.run("%%background --on cluster\nlines.append(len(lines[0]))\nprint('runs')")
    assert ended(store, number).state is TaskState.COMPLETED, task(store, number).reason
    assert text(store, number) == "runs\n"
    assert kernel.run("print(lines[1:])").stream("stdout").splitlines()[-1] == "[100000]"


def test_a_task_on_a_dask_cluster_outlives_kernel_supervisor_and_worker(
    dask_cluster: DaskCluster, make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    notebook, stop = tmp_path / "dask.ipynb", tmp_path / "stop"
    dask_cluster.add_worker()
    kernel = make_kernel(notebook=notebook)
    use(kernel, dask_cluster.spec, tmp_path)
    kernel.run(COUNT.format(stop=stop))
    until(lambda: text(store).count("\n") > 5, message="lines")
    kernel.kill()
    (supervisor,) = store.supervisors.unfinished()
    psutil.Process(supervisor.pid).kill()
    until(lambda: ProcessIdentity.of(supervisor.pid) is None, message="its death")
    dask_cluster.end_workers()
    dask_cluster.add_worker()
    again = make_kernel(notebook=notebook)
    assert "counter" in again.run("%bg_list").text
    before = text(store).count("\n")
    until(lambda: text(store).count("\n") > before + 5, 90, "more lines")
    stop.touch()
    assert ended(store).state is TaskState.COMPLETED
    assert is_whole(text(store))
    use(again, dask_cluster.spec, tmp_path)
    runs_python(again, store, 2)


def test_a_task_waits_in_slurms_queue_and_says_why(
    slurm: Slurm,
    make_kernel: MakeKernel,
    store: TaskStore,
    short_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    stop = short_dir / "stop"
    kernel = make_kernel()
    use(kernel, {**slurm.spec, "options": ["--exclusive"]}, short_dir)
    kernel.run(COUNT.format(stop=stop))
    until(lambda: text(store).count("\n") > 5, 90, "lines")
    kernel.run("%%background --shell --on cluster next\necho its turn; exit 4")
    until(lambda: "waits for cluster: " in kernel.run("%bg_list").text, 90, "why it waits")
    assert task(store, 2).state is TaskState.PENDING
    stop.touch()
    assert ended(store).state is TaskState.COMPLETED
    assert is_whole(text(store))
    last = ended(store, 2)
    assert (last.state, last.exit_code, text(store, 2)) == (TaskState.FAILED, 4, "its turn\n")
    shown = kernel.run("%bg_show next").text
    assert "on cluster" in shown
    assert "job " in shown
    python = f"env PYTHONPATH={PACKAGE_FOLDER} {sys.executable}"
    use(kernel, {**slurm.spec, "python": python}, short_dir)
    runs_python(kernel, store, 3)
