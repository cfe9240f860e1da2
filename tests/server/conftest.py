"""A Jupyter server, and the store of which it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import end_processes_of
from plain_servers import PlainServer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("state")
    directory.chmod(0o700)
    yield directory
    end_processes_of(directory)


@pytest.fixture(scope="module")
def server(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    with PlainServer(tmp_path_factory.mktemp("server"), directory) as server:
        yield server
