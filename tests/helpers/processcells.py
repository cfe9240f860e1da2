"""Cells that run in processes, in a kernel with the extension."""

from __future__ import annotations

from kernels import Cell, NotebookKernel


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
