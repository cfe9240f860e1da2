"""Python cells and functions of real kernels that run at a place: an ssh server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engines import SshServer
from kernels import NotebookKernel, until
from places_in_use import Far

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore

MakeKernel = Callable[..., NotebookKernel]


@pytest.fixture
def far(tmp_path: Path, store: TaskStore) -> Iterator[Far]:
    with closing(SshServer(tmp_path / "ssh")) as server:
        found = Far(server, tmp_path, tmp_path / "far.ipynb", store)
        yield found
        found.stop.touch()


@pytest.fixture
def kernel(far: Far, make_kernel: MakeKernel) -> NotebookKernel:
    return far.use(make_kernel(notebook=far.notebook))


def test_variables_go_there_and_come_back_once_the_place_is_trusted(
    far: Far, kernel: NotebookKernel
) -> None:
    kernel.run(
        "import numpy as np\nfactor = 3\nvalues = np.arange(200_000)\nitems = [1]\n"
        "def times(x):\n    return factor * x"
    )
    kernel.run(
        "%%background --on far calculate\nimport os\nprint('in', os.getcwd())\n"
        "items.append(2)\ntotal = int(times(values).sum())\nlarge = values * 2\ntotal"
    )
    task = far.ended()
    print(task, far.text())
    assert task.state is TaskState.COMPLETED, task.reason
    print(kernel.run("print(items)").outputs)
    print(kernel.run("%bg_show 1").text)
    print(kernel.run("%bg_places far --trust").text)
    print(kernel.run("%bg_load 1").outputs)
    print(kernel.run("print(items, total, large[-1])").outputs)
    print(kernel.run("import ipytaskpersist as bg; bg.task(1).result()").outputs)
    until(lambda: not [p for p in far.left() if p.name != "buffers"], message="the removal of what it has left")
    print(far.left())
    assert 0
