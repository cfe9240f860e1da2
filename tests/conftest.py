"""Fixtures shared by all tests: a private store, and real kernels that use it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, end_processes_of

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so, and children inherit it: no interrupt of a
    # test would reach them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as cores: most tests wait for kernels and processes half of the time."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say in the very last line how many browser tests did not run: a green end hides it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter is not None else ()
    count = sum("/browser/" in f"/{report.nodeid}" for report in skipped)
    if count:
        tests = "1 test" if count == 1 else f"{count} tests"
        reporter.write_line(f"{tests} in a browser did not run; make test-browser runs them")


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of the test's own, which this process and its children use."""
    directory = tmp_path / "state"
    monkeypatch.setenv("IPYTASKPERSIST_DIR", str(directory))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    yield directory
    end_processes_of(directory)


@pytest.fixture
def make_kernel(state_dir: Path) -> Iterator[Callable[..., NotebookKernel]]:
    """Start kernels on one store: `make_kernel(notebook=…, env=…, load=True)`."""
    with ExitStack() as kernels:

        def make(*, load: bool = True, **options: Any) -> NotebookKernel:
            kernel = kernels.enter_context(NotebookKernel(state_dir, **options))
            if load:
                kernel.run("%load_ext ipytaskpersist")
            return kernel

        yield make


@pytest.fixture
def kernel(make_kernel: Callable[..., NotebookKernel]) -> NotebookKernel:
    """A kernel with the extension loaded."""
    return make_kernel()


@pytest.fixture
def store(state_dir: Path) -> Iterator[TaskStore]:
    """The store in the private state directory, made and opened."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        yield store


@pytest.fixture
def archives(store: TaskStore) -> Iterator[Archives]:
    """The archives beside it."""
    with closing(Archives(store)) as archives:
        yield archives


@pytest.fixture
def manager(state_dir: Path) -> Iterator[BackgroundTasks]:
    """What a command has, for the store in the private state directory."""
    with closing(BackgroundTasks()) as manager:
        yield manager
