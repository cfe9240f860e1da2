"""What a worker prints belongs to whoever submitted the work, whoever started the worker."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from kernels import Cell, NotebookKernel, end_processes_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
TESTS = Path(__file__).parent
ON_LINUX = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="a worker finds pipes by /proc"
)
EACH = [
    *[make.__name__ for make in jobs.THREADS],
    *[pytest.param(make.__name__, marks=ON_LINUX) for make in jobs.PROCESSES],
]
WORDS = re.compile(r"(?:prints|warns|echoes) (\w+)")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel, in which a cell has made one of each before the first task, a task another."""
    state_dir = tmp_path_factory.mktemp("workers") / "state"
    env = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    with NotebookKernel(state_dir, env=env) as kernel:
        kernel.run("%load_ext ipytaskpersist\nimport jobs, time, sys, os, threading")
        kernel.run("of_cell = {name: make() for name, make in jobs.MAKERS.items()}", 120)
        kernel.run(
            "%%background\nof_task = {name: make() for name, make in jobs.MAKERS.items()}\n"
            "time.sleep(9999)"
        )
        kernel.run("while 'of_task' not in globals(): time.sleep(0.01)", 120)
        yield kernel
    end_processes_of(state_dir)


def words_of(text: str) -> set[str]:
    """The words that were said, however often."""
    return set(WORDS.findall(text))


def streams_of(cell: Cell) -> str:
    """What a cell has printed: the card of a task in it shows the task's last line."""
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def in_cell(kernel: NotebookKernel, code: str, word: str) -> None:
    """Have a word said in a foreground cell, and see it there, and no other."""
    cell = kernel.run(code)
    kernel.take_until(lambda: is_said(cell, word), 30, f"{word}, said in a cell")
    assert words_of(streams_of(cell)) == {word}


def is_said(cell: Cell, word: str) -> bool:
    return word in words_of(streams_of(cell))


def in_task(kernel: NotebookKernel, code: str, word: str) -> None:
    """Have a word said in a task, and see it there, and no other."""
    launched = kernel.run(f"%%background\n{code}")
    assert "completed" in kernel.run("%bg_wait").text
    assert words_of(kernel.run("%bg_output").text) == {word}
    assert words_of(streams_of(launched)) == set()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("maker", ["of_cell", "of_task"])
def test_each_line_belongs_to_whoever_submitted_the_work(
    notebook: NotebookKernel, maker: str, name: str
) -> None:
    """Foreground and tasks in turn, with workers that a cell or a task that still runs has made."""
    use = f"{maker}['{name}']"
    in_cell(notebook, f"{use}('one')", "one")
    in_task(notebook, f"{use}('two')", "two")
    in_task(notebook, f"{use}('three')", "three")
    in_cell(notebook, f"{use}('four')", "four")
