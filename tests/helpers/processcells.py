"""Cells that run in processes, in a kernel with the extension."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels import Cell, NotebookKernel

UNTIL_GO = """
def until_go():
    from pathlib import Path
    from time import sleep
    while not Path('go').exists():
        sleep(0.01)
    Path('go').unlink()
"""
"""A function of the notebook: a cell that calls it waits for the file `go` in its folder."""


class Notebook:
    """A kernel with the extension, whose cells run in processes when they are told to."""

    def __init__(self, kernel: NotebookKernel) -> None:
        self._kernel = kernel

    def refused(self, source: str) -> str:
        """Launch a cell in a process, and return why that was refused."""
        launched = self._kernel.run(f"%%background --process\n{source}", check=False)
        assert launched.error, launched.text
        return launched.error[1]

    def foreground(self, source: str) -> Cell:
        """Run a foreground cell."""
        return self._kernel.run(source)

    def cell(self, source: str) -> str:
        """Run a foreground cell; return all that it shows."""
        return self._kernel.run(source).text

    def process(self, source: str, flags: str = "") -> str:
        """Run a cell in a process to its end; return what is said of it before the next cell."""
        launched = self._kernel.run(f"%%background --process {flags}\n{source}")
        assert not launched.stream("stderr"), launched.text
        self._kernel.run("%bg_wait --timeout 60")
        return self.cell("pass")

    def printed(self, source: str) -> str:
        """What a cell prints in a process."""
        self.process(source)
        return self.cell("%bg_output --raw")


@pytest.fixture(scope="module")
def a_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel with the extension for all tests of a module."""
    with NotebookKernel(tmp_path_factory.mktemp("process-cells")) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        yield kernel


@pytest.fixture
def notebook(a_kernel: NotebookKernel) -> Notebook:
    """That kernel without variables."""
    a_kernel.run("%reset -f")
    return Notebook(a_kernel)
