"""A place on loopback, and a kernel that uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engines import SshServer
from kernels import NotebookKernel
from places_in_use import Far

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
