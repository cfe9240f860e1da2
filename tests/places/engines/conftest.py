"""Engines for the tests of places."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from engines import DaskCluster, Link, Slurm, SshServer


@pytest.fixture
def make_ssh_server(tmp_path: Path) -> Iterator[Callable[..., SshServer]]:
    """Start ssh servers: `make_ssh_server(shell="fish")`."""
    with ExitStack() as servers:

        def make(**options: Any) -> SshServer:
            folder = tmp_path / f"sshd-{len(list(tmp_path.glob('sshd-*')))}"
            return servers.enter_context(closing(SshServer(folder, **options)))

        yield make


@pytest.fixture
def ssh_server(make_ssh_server: Callable[..., SshServer]) -> SshServer:
    return make_ssh_server()


@pytest.fixture(scope="module")
def dask_scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask scheduler, for all tests of a module."""
    with closing(DaskCluster(tmp_path_factory.mktemp("dask") / "cluster")) as cluster:
        yield cluster


@pytest.fixture
def dask_cluster(dask_scheduler: DaskCluster) -> Iterator[DaskCluster]:
    """A Dask scheduler, without workers so far."""
    yield dask_scheduler
    dask_scheduler.end_workers()
    # It would have the next worker occupied by what occupied the last one, for up to two minutes.
    dask_scheduler.stop_scheduler()
    dask_scheduler.start_scheduler()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A Slurm cluster of this machine with two CPUs, for all tests of a module."""
    # Paths of sockets are limited, and the folder must be readable for all of Slurm's programs.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder,
        closing(Slurm(Path(folder) / "s")) as cluster,
    ):
        yield cluster


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="places-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Callable[..., Link]]:
    """Connect to places: `link(spec)`, `link(spec, SILENCE_S=1.0)`."""
    with ExitStack() as links:

        def connect(
            spec: dict[str, Any], state_dir: Path = tmp_path / "state", **changed: Any
        ) -> Link:
            state_dir.mkdir(mode=0o700, exist_ok=True)
            return links.enter_context(Link(spec, state_dir, **changed))

        yield connect
